//! Section 4.1 and 4.2: the codings of the description and the side files.

use crate::container::{Result, check, refuse};

const PRIMING: &[u8] = include_bytes!("../../../lamella-file/src/mixing/priming.bin");

/// 4.1. Zstd frames are for texts beyond 2 MiB, which no golden file has.
pub(crate) fn decode(coding: u64, stored: &[u8], length: u64) -> Result<Vec<u8>> {
    let bound = 64 * stored.len() as u64 + 65_536;
    match coding {
        0 => check(length <= stored.len() as u64, "invalid", "a text ends early")?,
        1 => return refuse("unsupported", "zstd"),
        2 => check(length <= bound.min(2 << 20), "limit", "expansion of a mixed text")?,
        _ => return refuse("invalid", "unknown coding of a text"),
    }
    if coding == 0 {
        check(length == stored.len() as u64, "invalid", "a text is too long")?;
        return Ok(stored.to_vec());
    }
    // Arithmetic decoding.
    let mut model = Model::new(length as usize);
    for &byte in PRIMING {
        (0..8).rev().for_each(|shift| model.code(|_| byte >> shift & 1 == 1));
    }
    let mut next = stored.iter().map(|&byte| u32::from(byte)).chain(std::iter::repeat(0));
    let mut next = || next.next().unwrap_or(0);
    let (mut low, mut high) = (0u32, u32::MAX);
    let mut code = (0..4).fold(0, |code, _| code << 8 | next());
    while model.text.len() < PRIMING.len() + length as usize {
        model.code(|p| {
            let middle = low + ((u64::from(high - low) * p as u64) >> 16) as u32;
            let bit = code <= middle;
            if bit {
                high = middle
            } else {
                low = middle + 1
            }
            while (low ^ high) >> 24 == 0 {
                (low, high, code) = (low << 8, high << 8 | 255, code << 8 | next());
            }
            bit
        });
    }
    Ok(model.text.split_off(PRIMING.len()))
}

#[derive(Clone, Copy)]
struct Counter {
    p: i64,
    uses: i64,
}

impl Counter {
    fn learn(&mut self, bit: bool) {
        let rate = (131_072 / (2 * self.uses.min(31) + 3)).max(2048);
        let goal = if bit { 65_535 } else { 0 };
        self.p = (self.p + (((goal - self.p) * rate) >> 16)).clamp(32, 65_503);
        self.uses = (self.uses + 1).min(255);
    }
}

/// The match and the counting model: an expected byte, and how often such expectations came true.
struct Expectation {
    byte: Option<u8>,
    confidence: usize,
    counters: [Counter; 64],
}

struct Model {
    squash: Vec<i64>,
    stretch: Vec<i64>,
    bits: u32,
    tables: Vec<Vec<Counter>>,
    contexts: [u32; 8],
    bases: [usize; 8],
    weights: Vec<[i64; 11]>,
    text: Vec<u8>,
    partial: u32,
    /// The match model, then the counting model.
    expectations: [Expectation; 2],
    positions: Vec<Option<usize>>,
    expected: String,
    number: Option<u64>,
    word: u64,
    line: usize,
    above: usize,
}

fn hash(value: u64, salt: u64) -> u32 {
    let m = (value ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    ((m ^ m >> 29) >> 16) as u32
}

impl Model {
    fn new(length: usize) -> Self {
        // Tables.
        let (mut step, mut term, mut n) = (0i128, 1i128 << 62, 0i128);
        while term > 0 {
            step += if n % 2 == 0 { term } else { -term };
            n += 1;
            term /= 256 * n;
        }
        let (mut squash, mut w) = (vec![0; 4095], 1i128 << 62);
        for x in 0..2048 {
            squash[2047 + x] = ((1i128 << 78) / ((1 << 62) + w)).min(65_520) as i64;
            squash[2047 - x] = 65_536 - squash[2047 + x];
            w = (w * step) >> 62;
        }
        let least = |p: i64| squash.partition_point(|&s| s < 16 * p + 8).min(4094) as i64 - 2047;
        let stretch = (0..4096).map(least).collect();
        let bits = (length + PRIMING.len()).min(131_072).next_power_of_two().ilog2() + 2;
        let new = Counter { p: 32_768, uses: 0 };
        let mut row = [16_384; 11];
        row[8] = 32_768;
        let expectation = || Expectation { byte: None, confidence: 0, counters: [new; 64] };
        Self {
            squash,
            stretch,
            bits,
            tables: vec![vec![new; 1 << bits]; 8],
            contexts: std::array::from_fn(|c| hash(0, c as u64 + 1)),
            bases: [0; 8],
            weights: vec![row; 72 + 256],
            text: Vec::new(),
            partial: 1,
            expectations: [expectation(), expectation()],
            positions: vec![None; 1 << bits.min(16)],
            expected: String::new(),
            number: None,
            word: 0,
            line: 0,
            above: 0,
        }
    }

    fn squash(&self, x: i64) -> i64 {
        self.squash[(x.clamp(-2047, 2047) + 2047) as usize]
    }

    /// One bit: predicts it, hands the probability of a 1 to `read`, learns what that returns.
    fn code(&mut self, read: impl FnOnce(i64) -> bool) {
        // Contexts.
        let known_bits = self.partial.ilog2();
        if known_bits.is_multiple_of(4) {
            for (base, context) in self.bases.iter_mut().zip(self.contexts) {
                let m = context.wrapping_add(self.partial.wrapping_mul(0x9e37_79b1));
                *base = (m ^ m >> 15) as usize & ((1 << self.bits) - 16);
            }
        }
        let half = 1 << (known_bits % 4) | self.partial as usize & ((1 << (known_bits % 4)) - 1);
        let (mut inputs, mut known) = ([256; 11], 0);
        for c in 0..8 {
            let counter = self.tables[c][self.bases[c] + half];
            inputs[c] = self.stretch[counter.p as usize / 16];
            known += usize::from(counter.uses > 0);
        }
        // Expected bits.
        let mut says = [None; 2];
        for (index, expectation) in self.expectations.iter().enumerate() {
            let byte = expectation.byte.map(|byte| u32::from(byte) | 256);
            let byte = byte.filter(|byte| byte >> (8 - known_bits) == self.partial);
            says[index] = byte.map(|byte| byte >> (7 - known_bits) & 1 == 1);
            let input = self.stretch[expectation.counters[expectation.confidence].p as usize / 16];
            inputs[8 + index] = says[index].map_or(0, |one| if one { input } else { -input });
        }
        // Mixing.
        let strength = says[0].map_or(0, |_| 1 + (self.expectations[0].confidence / 16).min(2));
        let counts = usize::from(says[1].is_some());
        let rows = [(known * 4 + strength) * 2 + counts, 72 + self.partial as usize];
        let sums = rows.map(|row| {
            let sum: i64 = self.weights[row].iter().zip(inputs).map(|(weight, input)| weight * input).sum();
            (sum >> 16).clamp(-2047, 2047)
        });
        let bit = read(self.squash((sums[0] + sums[1]) / 2));
        // Learning.
        for (row, x) in rows.into_iter().zip(sums) {
            let error = if bit { 65_535 } else { 0 } - self.squash(x);
            for (weight, input) in self.weights[row].iter_mut().zip(inputs) {
                *weight = (*weight + ((input * error * 14 + 131_072) >> 18)).clamp(-4_194_304, 4_194_304);
            }
        }
        for c in 0..8 {
            self.tables[c][self.bases[c] + half].learn(bit);
        }
        for (expectation, says) in self.expectations.iter_mut().zip(says) {
            if let Some(says) = says {
                expectation.counters[expectation.confidence].learn(says == bit);
            }
        }
        self.partial = self.partial << 1 | u32::from(bit);
        if self.partial >= 256 {
            let byte = self.partial as u8;
            self.text.push(byte);
            self.partial = 1;
            self.after(byte);
        }
    }

    fn last(&self, count: usize) -> u64 {
        self.text.iter().rev().take(count).rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    fn after(&mut self, byte: u8) {
        let n = self.text.len();
        let is_letter = byte.is_ascii_alphabetic() || byte >= 128;
        self.word = (self.word ^ u64::from(byte)).wrapping_mul(0x2545_f491_4f6c_dd1d) * u64::from(is_letter);
        if byte == 10 {
            (self.above, self.line) = (self.line, n);
        }
        // Match model.
        let found = if n < 4 {
            None
        } else {
            let entry = hash(self.last(4), 99) as usize & (self.positions.len() - 1);
            self.positions[entry].replace(n)
        };
        let text = &self.text;
        let model = &mut self.expectations[0];
        model.confidence = if model.byte == Some(byte) { (model.confidence + 1).min(63) } else { 0 };
        if n >= 4 {
            model.byte = found.map(|f| text[f]);
        }
        if let (Some(f), 0) = (found, model.confidence) {
            model.confidence = (1..=f.min(32)).take_while(|&back| text[f - back] == text[n - back]).count();
            model.byte = model.byte.filter(|_| model.confidence > 0);
        }
        // Counting model.
        let model = &mut self.expectations[1];
        if byte.is_ascii_digit() {
            let number = self.number.unwrap_or(0).wrapping_mul(10);
            self.number = Some(number.wrapping_add(u64::from(byte - b'0')));
        } else if let Some(number) = self.number.take() {
            let was_right = self.expected == number.to_string();
            model.confidence = if was_right { (model.confidence + 1).min(63) } else { model.confidence / 2 };
            self.expected = number.wrapping_add(1).to_string();
        }
        let digits = text.iter().rev().take(20).take_while(|byte| byte.is_ascii_digit()).count();
        let rest = self.expected.as_bytes().strip_prefix(&text[n - digits..]);
        let is_likely = digits > 0 || b" :[,".contains(&byte);
        model.byte = rest.and_then(|rest| rest.first().copied()).filter(|_| is_likely);
        // Contexts of the next byte.
        let place = self.above + n - self.line;
        let above = if place < self.line { u64::from(text[place]) } else { 0 };
        let b = |count| self.last(count);
        let values = [0, b(1), b(2), b(3), b(4), b(6), self.word ^ b(1) << 56, above << 8 | b(1)];
        self.contexts = std::array::from_fn(|c| hash(values[c], c as u64 + 1));
    }
}
