//! The model: contexts, match, counting, and the mixer that weighs them.

use std::sync::OnceLock;

use super::priming::PRIMING;
use super::tables::{Counter, STRETCH_LIMIT, hash, squash, stretch};

/// Contexts with a table of counters: orders 0 to 4 and 6, word, column.
const N_CONTEXTS: usize = 8;
/// Inputs of the mixer: the contexts, the match model, the counting model, a constant.
const N_INPUTS: usize = N_CONTEXTS + 3;
/// How fast weights move.
const LEARNING_RATE: i64 = 14;

/// Predicts one bit after the other.
#[derive(Debug, Clone)]
pub(super) struct Model {
    tables: Vec<Counter>,
    table_bits: u32,
    /// Hash of each context at the current byte, and the counters it picks for the current bit.
    contexts: [u32; N_CONTEXTS],
    bases: [usize; N_CONTEXTS],
    slots: [usize; N_CONTEXTS],
    weights: Vec<[i32; N_INPUTS]>,
    chosen: [usize; 2],
    inputs: [i32; N_INPUTS],
    outputs: [i32; 2],
    pub(super) text: Vec<u8>,
    /// Bits of the current byte so far, with a leading 1.
    partial: u32,
    matches: Predictor,
    last_seen: Vec<u32>,
    counting: Predictor,
    /// The number being read, the last one read, and the text that would count on from it.
    number: Option<u64>,
    expected: Vec<u8>,
    word: u64,
    line_start: usize,
    above: usize,
}

/// Says which byte comes next, and learns how often it is right.
#[derive(Debug, Clone)]
struct Predictor {
    byte: Option<u8>,
    /// How much it has been right lately: picks the counter.
    confidence: usize,
    counters: [Counter; 64],
    /// For the current bit: whether it says 1, where it still agrees with the byte so far.
    says: Option<bool>,
}

impl Predictor {
    fn new() -> Self {
        Self { byte: None, confidence: 0, counters: [Counter::NEW; 64], says: None }
    }
    /// The input for the mixer.
    fn predict(&mut self, partial: u32) -> i32 {
        let bits = partial.ilog2();
        let expected = self.byte.map(|byte| u32::from(byte) | 0x100);
        self.says = expected
            .filter(|expected| expected >> (8 - bits) == partial)
            .map(|expected| (expected >> (7 - bits)) & 1 == 1);
        let strength = stretch(self.counters[self.confidence.min(63)].p);
        match self.says {
            Some(true) => strength,
            Some(false) => -strength,
            None => 0,
        }
    }
    fn update(&mut self, bit: bool) {
        if let Some(says) = self.says {
            self.counters[self.confidence.min(63)].update(says == bit);
        }
    }
}

const MATCH_BYTES: usize = 4;
const NOWHERE: u32 = u32::MAX;
/// Rows of weights for the first choice: contexts known (0 to 8), match strength (0 to 3), counting (0, 1).
const FIRST_ROWS: usize = (N_CONTEXTS + 1) * 8;

impl Model {
    /// A model for a text of `length` bytes that has read [`PRIMING`].
    pub(super) fn new(length: usize) -> Self {
        // Short texts are coded again and again while a size is searched; their model is primed once.
        static PRIMED: OnceLock<Model> = OnceLock::new();
        let table_bits = (length + PRIMING.len()).min(1 << 17).next_power_of_two().ilog2() + 2;
        let smallest = PRIMING.len().next_power_of_two().ilog2() + 2;
        if table_bits == smallest {
            return PRIMED.get_or_init(|| Self::primed(smallest)).clone();
        }
        Self::primed(table_bits)
    }

    fn primed(table_bits: u32) -> Self {
        let mut first = [65536 / 4; N_INPUTS];
        first[N_CONTEXTS] = 65536 / 2;
        let mut model = Self {
            tables: vec![Counter::NEW; N_CONTEXTS << table_bits],
            table_bits,
            contexts: [0; N_CONTEXTS],
            bases: [0; N_CONTEXTS],
            slots: [0; N_CONTEXTS],
            weights: vec![first; FIRST_ROWS + 256],
            chosen: [0; 2],
            inputs: [0; N_INPUTS],
            outputs: [0; 2],
            text: Vec::new(),
            partial: 1,
            matches: Predictor::new(),
            last_seen: vec![NOWHERE; 1 << table_bits.min(16)],
            counting: Predictor::new(),
            number: None,
            expected: Vec::new(),
            word: 0,
            line_start: 0,
            above: 0,
        };
        model.next_byte();
        for &byte in PRIMING {
            for shift in (0..8).rev() {
                model.predict();
                model.update(byte >> shift & 1 == 1);
            }
        }
        model
    }

    /// Probability of a 1, in 1/65536.
    pub(super) fn predict(&mut self) -> u32 {
        // Sixteen counters, one cache line, hold all that half a byte can need.
        let n_bits = self.partial.ilog2();
        if n_bits.is_multiple_of(4) {
            self.find_bases();
        }
        let first_of_half = 1u32 << (n_bits % 4);
        let within_half =
            if n_bits < 4 { self.partial } else { first_of_half | (self.partial & (first_of_half - 1)) };
        let mut known = 0;
        for context in 0..N_CONTEXTS {
            let slot = self.bases[context] + within_half as usize;
            self.slots[context] = slot;
            let counter = self.tables[slot];
            known += usize::from(counter.uses > 0);
            self.inputs[context] = stretch(counter.p);
        }
        self.inputs[N_CONTEXTS] = self.matches.predict(self.partial);
        self.inputs[N_CONTEXTS + 1] = self.counting.predict(self.partial);
        self.inputs[N_CONTEXTS + 2] = 256;
        let strength = match (self.matches.says, self.matches.confidence) {
            (None, _) => 0,
            (_, ..16) => 1,
            (_, 16..32) => 2,
            _ => 3,
        };
        let counts = usize::from(self.counting.says.is_some());
        self.chosen = [(known * 4 + strength) * 2 + counts, FIRST_ROWS + self.partial as usize];
        for (output, &row) in self.outputs.iter_mut().zip(&self.chosen) {
            let sum: i64 =
                self.weights[row].iter().zip(&self.inputs).map(|(&w, &x)| i64::from(w) * i64::from(x)).sum();
            *output = (sum >> 16).clamp(-i64::from(STRETCH_LIMIT), i64::from(STRETCH_LIMIT)) as i32;
        }
        squash((self.outputs[0] + self.outputs[1]) / 2) as u32
    }

    /// Where each context's counters for this half of the byte are.
    fn find_bases(&mut self) {
        let mask = (1usize << self.table_bits) - 16;
        for (context, (base, &hashed)) in self.bases.iter_mut().zip(&self.contexts).enumerate() {
            let mixed = hashed.wrapping_add(self.partial.wrapping_mul(0x9E37_79B1));
            *base = (context << self.table_bits) + ((mixed ^ (mixed >> 15)) as usize & mask);
        }
    }

    /// Learns the bit that was predicted.
    pub(super) fn update(&mut self, bit: bool) {
        for (&output, &row) in self.outputs.iter().zip(&self.chosen) {
            let error = i64::from(if bit { 65535 } else { 0 } - squash(output));
            for (weight, &input) in self.weights[row].iter_mut().zip(&self.inputs) {
                let step = (i64::from(input) * error * LEARNING_RATE + (1 << 17)) >> 18;
                *weight = (i64::from(*weight) + step).clamp(-(1 << 22), 1 << 22) as i32;
            }
        }
        for &slot in &self.slots {
            self.tables[slot].update(bit);
        }
        self.matches.update(bit);
        self.counting.update(bit);
        self.partial = self.partial * 2 + u32::from(bit);
        if self.partial >= 256 {
            self.text.push((self.partial & 0xff) as u8);
            self.partial = 1;
            self.after_byte();
            self.next_byte();
        }
    }

    /// Brings the match and counting models up to date with the byte just read.
    fn after_byte(&mut self) {
        let position = self.text.len();
        let byte = self.text[position - 1];
        self.word = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | 0x80.. => {
                (self.word ^ u64::from(byte)).wrapping_mul(0x2545_F491_4F6C_DD1D)
            }
            _ => 0,
        };
        if byte == b'\n' {
            (self.above, self.line_start) = (self.line_start, position);
        }
        match (byte, self.number) {
            (b'0'..=b'9', number) => {
                self.number = Some(number.unwrap_or(0).wrapping_mul(10).wrapping_add(u64::from(byte - b'0')));
            }
            (_, Some(number)) => {
                self.counting.confidence = match self.counting.confidence {
                    confidence if self.expected == number.to_string().as_bytes() => (confidence + 1).min(63),
                    confidence => confidence / 2,
                };
                self.expected = number.wrapping_add(1).to_string().into_bytes();
                self.number = None;
            }
            (_, None) => {}
        }
        self.counting.byte = self.expected_digit();
        self.find_match(position, byte);
    }

    /// The digit a counting list has next: after the digits read so far, or at a number's likely start.
    fn expected_digit(&self) -> Option<u8> {
        let read = self.text.iter().rev().take(20).take_while(|byte| byte.is_ascii_digit()).count();
        let so_far = &self.text[self.text.len() - read..];
        let rest = self.expected.strip_prefix(so_far)?;
        match rest.first() {
            None => None,
            // Between numbers most bytes are no digit; only after a blank or a bracket is one likely.
            Some(&digit) if read > 0 || matches!(self.text.last(), Some(b' ' | b':' | b'[' | b',')) => {
                Some(digit)
            }
            Some(_) => None,
        }
    }

    fn find_match(&mut self, position: usize, byte: u8) {
        if self.matches.byte == Some(byte) {
            self.matches.confidence = (self.matches.confidence + 1).min(63);
        } else {
            self.matches.confidence = 0;
        }
        if position < MATCH_BYTES {
            return;
        }
        let recent =
            self.text[position - MATCH_BYTES..].iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
        let bucket = hash(recent, 99) as usize & (self.last_seen.len() - 1);
        let found = self.last_seen[bucket];
        self.last_seen[bucket] = u32::try_from(position).unwrap_or(NOWHERE);
        let candidate = (found != NOWHERE).then_some(found as usize);
        self.matches.byte = candidate.and_then(|found| self.text.get(found).copied());
        if let (Some(found), 0) = (candidate, self.matches.confidence) {
            let same = (0..found.min(32))
                .take_while(|&back| self.text[found - 1 - back] == self.text[position - 1 - back]);
            self.matches.confidence = same.count();
            if self.matches.confidence == 0 {
                self.matches.byte = None;
            }
        }
    }

    /// Hashes the contexts of the byte to come.
    fn next_byte(&mut self) {
        let recent = self.text.iter().rev().take(8).rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
        let column = self.text.len() - self.line_start;
        let above = self.text.get(self.above + column).filter(|_| self.above + column < self.line_start);
        let above = above.copied().unwrap_or(0);
        let last = recent & 0xff;
        let values = [
            0,
            last,
            recent & 0xffff,
            recent & 0xff_ffff,
            recent & 0xffff_ffff,
            recent & 0xffff_ffff_ffff,
            self.word ^ (last << 56),
            u64::from(above) << 8 | last,
        ];
        for (salt, (context, value)) in self.contexts.iter_mut().zip(values).enumerate() {
            *context = hash(value, salt as u64 + 1);
        }
    }
}
