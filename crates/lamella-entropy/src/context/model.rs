//! What is expected of a code, and its decisions.

use super::Coder;
use super::mixing::{INPUTS, Mixer};
use crate::models::log2_fixed;
use crate::range::AdaptiveGolomb;

/// Decisions "more than k" by mixture.
const DECISIONS: usize = 15;
/// Contexts per decision and input.
const CONTEXTS: usize = 1 << 10;
/// Weight of the class mean, in rows.
const COLUMN_PRIOR: u64 = 24;
/// Weight of a row being like all others, in columns, with 8 fractional bits.
const ROW_PRIOR: u64 = 6 << 8;
/// Greatest magnitude that counts in means: sums stay far from 64 bits.
const MAGNITUDE_LIMIT: u32 = 1 << 20;

/// A column's or row's past.
#[derive(Debug, Clone, Copy, Default)]
struct Row {
    /// Relative magnitudes and what was expected of them, 8 fractional bits.
    seen: u64,
    expected: u64,
    /// The last two codes of the row.
    last: i32,
    before: i32,
}

/// The state of encoder and decoder.
pub(super) struct Model {
    rows: Vec<Row>,
    class_means: [Option<u64>; 256],
    mean_of_all: u64,
    class: usize,
    /// Sum of magnitudes of the current column, row number.
    sum: u64,
    row: usize,
    /// The last two codes of the column, this column's codes for the rows' statistics.
    above: i32,
    above_before: i32,
    column: Vec<i32>,
    mixer: Mixer,
    signs: Mixer,
    rest: AdaptiveGolomb,
}

impl Model {
    pub(super) fn new(_column_length: usize) -> Self {
        Self {
            rows: Vec::new(),
            class_means: [None; 256],
            mean_of_all: 256,
            class: 0,
            sum: 0,
            row: 0,
            above: 0,
            above_before: 0,
            column: Vec::new(),
            mixer: Mixer::new(DECISIONS * CONTEXTS, DECISIONS * 4),
            signs: Mixer::new(81, 1),
            rest: AdaptiveGolomb::new(),
        }
    }

    pub(super) fn begin_column(&mut self, class: u8) {
        self.class = usize::from(class);
        (self.sum, self.row, self.above, self.above_before) = (0, 0, 0, 0);
        self.column.clear();
    }

    pub(super) fn end_column(&mut self) {
        let count = self.column.len() as u64;
        if count == 0 {
            return;
        }
        let mean = 256 * self.sum / count;
        let old = self.class_means[self.class].unwrap_or(mean);
        self.class_means[self.class] = Some((7 * old + mean + 4) / 8);
        self.mean_of_all = (7 * self.mean_of_all + mean + 4) / 8;
        let expected = 256 * mean / (mean + 128);
        for (row, &code) in self.rows.iter_mut().zip(&self.column) {
            let magnitude = u64::from(code.unsigned_abs().min(MAGNITUDE_LIMIT));
            // Old columns fade a little: rows of a matrix keep their character, but not for ever.
            row.seen += 65_536 * magnitude / (mean + 128);
            row.expected += expected;
            if row.expected > 1 << 20 {
                row.seen /= 2;
                row.expected /= 2;
            }
            row.before = row.last;
            row.last = code;
        }
    }

    /// Codes (or decodes, where `code` is ignored) the next code of the column.
    pub(super) fn code(&mut self, coder: &mut impl Coder, code: i32) -> i32 {
        if self.rows.len() <= self.row {
            self.rows.push(Row::default());
        }
        let row = self.rows[self.row];
        let prior = self.class_means[self.class].unwrap_or(self.mean_of_all);
        let column_mean = (COLUMN_PRIOR * prior + 256 * self.sum) / (COLUMN_PRIOR + self.row as u64);
        let factor = 256 * (ROW_PRIOR + row.seen) / (ROW_PRIOR + row.expected);
        let expected = (column_mean * factor) >> 8;
        let shift = if expected >= 8 << 8 { (expected >> 8).ilog2() - 2 } else { 0 };
        // Geometric with this mean: the first guess of a context never seen.
        let scaled = (expected >> shift) + 4;
        let guess = (65_536 * scaled / (scaled + 256)).clamp(64, 65_472) as u16;

        let scale = octaves(expected, 3);
        let left = octaves(2 * magnitude(row.last) + magnitude(row.before), 1);
        let above = octaves(2 * magnitude(self.above) + magnitude(self.above_before), 1);
        let contexts: [usize; INPUTS] = [
            scale.min(CONTEXTS - 1),
            octaves(column_mean, 2).min(63) + 64 * octaves(factor, 1).min(15),
            left.min(31) + 32 * above.min(31),
            octaves(factor, 3).min(127) + 128 * (octaves(column_mean, 0).min(7)),
            self.class,
            octaves(expected, 1).min(31)
                + 32 * (row.last.unsigned_abs().min(3) + 4 * self.above.unsigned_abs().min(3)) as usize,
        ];
        let group = (scale / 12).min(3);
        let magnitude = code.unsigned_abs();
        let top = magnitude >> shift;
        let mut decided = 0u32;
        while (decided as usize) < DECISIONS {
            let base = decided as usize * CONTEXTS;
            let decision =
                self.mixer.predict(contexts.map(|c| base + c), decided as usize * 4 + group, guess);
            let bit = coder.bit(top > decided, decision.probability);
            self.mixer.update(&decision, bit);
            if !bit {
                break;
            }
            decided += 1;
        }
        let mut value = decided;
        if decided as usize == DECISIONS {
            value = value.saturating_add(coder.golomb(&mut self.rest, top.wrapping_sub(decided)));
        }
        // Bits shifted out; a decoder of damaged bytes may meet values no encoder has.
        let low = if shift > 0 { coder.raw(magnitude & ((1 << shift) - 1), shift) } else { 0 };
        let magnitude = (u64::from(value) << shift | u64::from(low)).min(1 << 31) as u32;
        let mut result = magnitude as i32;
        if magnitude != 0 {
            let sign = |code: i32| (code.signum() + 1) as usize;
            let near = sign(row.last) + 3 * sign(self.above);
            let far = near + 9 * sign(row.before) + 27 * sign(self.above_before);
            let contexts = [sign(row.last), sign(self.above), near, far, 0, sign(row.before)];
            let decision = self.signs.predict(contexts, 0, 1 << 15);
            let negative = coder.bit(code < 0, decision.probability);
            self.signs.update(&decision, negative);
            if negative {
                result = result.wrapping_neg();
            }
        }
        self.sum += u64::from(magnitude.min(MAGNITUDE_LIMIT));
        self.row += 1;
        (self.above_before, self.above) = (self.above, result);
        self.column.push(result);
        result
    }
}

fn magnitude(code: i32) -> u64 {
    256 * u64::from(code.unsigned_abs())
}

/// Logarithm of a number with 8 fractional bits in `2^-fine` octaves; numbers near zero share the first.
fn octaves(number: u64, fine: u32) -> usize {
    (log2_fixed(number + 32) - (5 << 16)) as usize >> (16 - fine)
}
