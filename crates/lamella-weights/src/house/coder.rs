//! Codes of a matrix under an adaptive range coder that stores no table.
//!
//! # Idea
//! A code's spread is its column's (spread of the weights over the column's step) times its row's (some output
//! rows are larger than others). Both are known to a decoder: the column's from the numbers above and the columns
//! before, the row's from the numbers to the left. Their product, in quarter octaves, chooses a table; a table
//! starts as a bell of that width and learns.
//!
//! # Definition
//! All arithmetic is `f32` in the order written here. Numbers are visited column by column, in each column from
//! the first row to the last. A number's *position* is `|code| - quantizer / 2` (0 for code 0).
//!
//! 1. Rows: `f_i = (V + S_i) / (V + T)`, `V` = 8, `S_i` the sum of `position * h_j` over earlier columns, `T` the
//!    sum of `mean_j * h_j`, `h_j = 1 / (mean_j + 1/2)`.
//! 2. Column: before its first row its mean is expected to be `A / step_j`, `A` the average of `mean_j * step_j`
//!    over earlier columns with weights `mean_j h_j` that fade by 63/64 (1 for the very first). Before every 8th
//!    row the estimate is `(W expected + sum of positions) / (W + sum of f_i)` over the rows so far, `W` = 24.
//! 3. Class: [`class_of`]`(estimate * f_i)`.
//! 4. Symbol: `|code| >> shift`, with `shift` 0 below a class mean of 8 and one more per octave; the last symbol
//!    escapes to an adaptive Golomb code; the shifted-out bits and the sign are raw.
//! 5. After the column `mean_j` is the sum of its positions over the sum of its `f_i`.
//!
//! The state of the trellis runs down the rows of a strip (see [`STRIP_ROWS`]) and on into the same strip of the
//! next column.

use std::sync::LazyLock;

use lamella_entropy::range::{AdaptiveGolomb, RangeDecoder, RangeEncoder};
use lamella_quant::sweep::rates::{CLASSES, class_of, magnitude_of};
use lamella_quant::sweep::trellis::Trellis;

/// Rows of a strip: each strip has its own trellis state.
pub const STRIP_ROWS: usize = 64;
/// Rows between two looks at a column's mean.
const BLOCK_ROWS: usize = 8;
/// Symbols of a table, the last one an escape.
const SYMBOLS: usize = 40;
/// Frequencies of a table sum to `1 << TOTAL_BITS`.
const TOTAL_BITS: u32 = 15;
/// Weight of what a column is expected to be, in rows.
const COLUMN_PRIOR: f32 = 24.0;
/// Weight of a row being like all others, in columns.
const ROW_PRIOR: f32 = 8.0;
/// How much of the average spread is kept from column to column.
const FADE: f32 = 63.0 / 64.0;
/// Weight of a table's first guess, in 1/16 of a symbol.
const TABLE_PRIOR: u32 = 16 * 96;
/// Counts at which a table forgets half.
const TABLE_LIMIT: u32 = 16 << 16;
/// Magnitudes above this are no encoder's.
const MAX_MAGNITUDE: u32 = 1 << 22;

/// Writes numbers, reads them, or adds up what they would cost.
pub trait Direction {
    /// A symbol with these cumulative frequencies (`value` is ignored by readers).
    fn symbol(&mut self, cumulative: &[u16; SYMBOLS + 1], value: usize) -> usize;
    /// Equally likely bits.
    fn raw(&mut self, value: u32, width: u32) -> u32;
    /// A number that is usually small.
    fn golomb(&mut self, model: &mut AdaptiveGolomb, value: u32) -> u32;
}

impl Direction for RangeEncoder {
    fn symbol(&mut self, cumulative: &[u16; SYMBOLS + 1], value: usize) -> usize {
        let (low, high) = (u32::from(cumulative[value]), u32::from(cumulative[value + 1]));
        self.encode_frequency(low, high - low, TOTAL_BITS);
        value
    }
    fn raw(&mut self, value: u32, width: u32) -> u32 {
        self.encode_raw(value, width);
        value
    }
    fn golomb(&mut self, model: &mut AdaptiveGolomb, value: u32) -> u32 {
        model.encode(self, value);
        value
    }
}

impl Direction for RangeDecoder<'_> {
    #[inline]
    fn symbol(&mut self, cumulative: &[u16; SYMBOLS + 1], _value: usize) -> usize {
        let position = self.peek(TOTAL_BITS);
        let mut symbol = 0;
        while symbol + 1 < SYMBOLS && u32::from(cumulative[symbol + 1]) <= position {
            symbol += 1;
        }
        let (low, high) = (u32::from(cumulative[symbol]), u32::from(cumulative[symbol + 1]));
        self.consume(low, high - low, TOTAL_BITS);
        symbol
    }
    fn raw(&mut self, _value: u32, width: u32) -> u32 {
        self.decode_raw(width)
    }
    fn golomb(&mut self, model: &mut AdaptiveGolomb, _value: u32) -> u32 {
        model.decode(self)
    }
}

/// A distribution that learns; its frequencies are rebuilt after every eighth more symbols.
#[derive(Debug, Clone)]
struct Table {
    counts: [u32; SYMBOLS],
    total: u32,
    rebuild_at: u32,
    cumulative: [u16; SYMBOLS + 1],
}

impl Table {
    fn new(mean: f64, quantizer: usize) -> Self {
        let mut table =
            Self { counts: bell(mean, quantizer), total: 0, rebuild_at: 0, cumulative: [0; SYMBOLS + 1] };
        table.total = table.counts.iter().sum();
        table.rebuild();
        table
    }

    #[inline]
    fn learn(&mut self, symbol: usize) {
        self.counts[symbol] += 16;
        self.total += 16;
        if self.total >= self.rebuild_at {
            self.rebuild();
        }
    }

    #[cold]
    fn rebuild(&mut self) {
        if self.total > TABLE_LIMIT {
            self.counts.iter_mut().for_each(|count| *count = (*count).div_ceil(2));
            self.total = self.counts.iter().sum();
        }
        // Every symbol keeps one part; the rest is shared by counts; what rounding leaves goes to symbol 0.
        let share = (1u64 << TOTAL_BITS) - SYMBOLS as u64;
        let parts = self.counts.map(|count| 1 + (u64::from(count) * share / u64::from(self.total)) as u16);
        let spare = (1u32 << TOTAL_BITS) - parts.iter().map(|&part| u32::from(part)).sum::<u32>();
        let mut sum = spare as u16;
        for (slot, part) in self.cumulative[1..].iter_mut().zip(parts) {
            sum += part;
            *slot = sum;
        }
        self.rebuild_at = self.total + (self.total / 8).max(16 * 16);
    }
}

/// First counts of a table whose positions have this mean: `1 / (1 + x^2 / 16)^8`, close to a Gaussian, with the
/// width that gives the mean (40 bisections).
fn bell(mean: f64, quantizer: usize) -> [u32; SYMBOLS] {
    let shape = |width: f64| {
        let mut weights = [0.0f64; SYMBOLS];
        let (mut total, mut moment) = (0.0, 0.0);
        for (magnitude, weight) in weights.iter_mut().enumerate() {
            let position = if magnitude == 0 { 0.0 } else { magnitude as f64 - 0.5 * quantizer as f64 };
            let x = position / width;
            let base = 1.0 / (1.0 + x * x / 16.0);
            let (square, sides) = (base * base, if magnitude == 0 { 1.0 } else { 2.0 });
            *weight = sides * (square * square) * (square * square);
            total += *weight;
            moment += *weight * position;
        }
        (weights.map(|weight| weight / total), moment / total)
    };
    let (mut low, mut high) = (0.0625f64, 64.0f64);
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        if shape(middle).1 < mean { low = middle } else { high = middle }
    }
    shape(0.5 * (low + high))
        .0
        .map(|weight| (weight * f64::from(TABLE_PRIOR)) as u32 + u32::from(weight > 1e-4))
}

/// Bits of a magnitude that are stored as they are, per class.
fn shift_of(class: usize) -> u32 {
    (class as u32 / 4).saturating_sub(11)
}

/// One direction's models.
#[derive(Debug, Clone)]
pub struct Models {
    tables: Vec<[Table; 2]>,
    escapes: AdaptiveGolomb,
}

/// The models every stream starts from, computed once.
static START: LazyLock<Models> = LazyLock::new(Models::first);

impl Default for Models {
    fn default() -> Self {
        START.clone()
    }
}

impl Models {
    fn first() -> Self {
        let table = |class: usize, quantizer| {
            Table::new(magnitude_of(class) / f64::from(1u32 << shift_of(class)), quantizer)
        };
        let tables = (0..CLASSES).map(|class| [table(class, 0), table(class, 1)]).collect();
        Self { tables, escapes: AdaptiveGolomb::new() }
    }

    /// One code; readers return what they read.
    #[inline]
    pub fn code<D: Direction>(&mut self, coder: &mut D, class: usize, quantizer: u32, code: i32) -> i32 {
        let shift = shift_of(class);
        let magnitude = code.unsigned_abs().min(MAX_MAGNITUDE);
        let table = &mut self.tables[class][quantizer as usize & 1];
        let escape = (SYMBOLS - 1) as u32;
        let symbol = coder.symbol(&table.cumulative, (magnitude >> shift).min(escape) as usize) as u32;
        table.learn(symbol as usize);
        let mut read = symbol;
        if symbol == escape {
            let rest = coder.golomb(&mut self.escapes, (magnitude >> shift).saturating_sub(escape));
            read = escape.saturating_add(rest).min(MAX_MAGNITUDE);
        }
        if shift > 0 {
            let low = coder.raw(magnitude & ((1 << shift) - 1), shift);
            read = ((u64::from(read) << shift | u64::from(low)).min(u64::from(MAX_MAGNITUDE))) as u32;
        }
        if read == 0 {
            return 0;
        }
        if coder.raw(u32::from(code < 0), 1) == 1 { -(read as i32) } else { read as i32 }
    }
}

/// Codes a sequence of numbers around 0 of unknown spread (steps, offsets), each under a class of the mean so far.
pub fn code_sequence<D: Direction>(coder: &mut D, numbers: &mut [i32]) {
    let mut models = Models::default();
    let (mut sum, mut weight) = (2.0f32, 2.0f32);
    for number in numbers {
        *number = models.code(coder, class_of(sum / weight), 0, *number);
        sum += number.unsigned_abs() as f32;
        weight += 1.0;
    }
}

/// Codes a matrix's columns, one after the other.
#[derive(Debug, Clone)]
pub struct Columns {
    trellis: Trellis,
    models: Models,
    /// One state per strip of rows.
    states: Vec<u32>,
    row_sums: Vec<f32>,
    row_total: f32,
    factors: Vec<f32>,
    quantizers: Vec<u8>,
    spread_sum: f32,
    spread_weight: f32,
}

impl Columns {
    /// Before the first column.
    pub fn new(trellis: Trellis, rows: usize) -> Self {
        Self {
            trellis,
            models: Models::default(),
            states: vec![0; rows.div_ceil(STRIP_ROWS)],
            row_sums: vec![0.0; rows],
            row_total: 0.0,
            factors: vec![1.0; rows],
            quantizers: vec![0; rows],
            spread_sum: 0.0,
            spread_weight: 0.0,
        }
    }

    /// Which quantiser each code of the last column had.
    pub fn quantizers(&self) -> &[u8] {
        &self.quantizers
    }

    /// Codes the next column, one code per row, with its relative step (any common factor).
    pub fn code<D: Direction>(&mut self, coder: &mut D, step: f32, codes: &mut [i32]) {
        let Self { trellis, models, states, row_sums, factors, quantizers, .. } = self;
        let inverse = 1.0 / (ROW_PRIOR + self.row_total);
        for (factor, &sum) in factors.iter_mut().zip(&*row_sums) {
            *factor = (ROW_PRIOR + sum) * inverse;
        }
        let expected =
            if self.spread_weight > 0.0 { self.spread_sum / self.spread_weight / step } else { 1.0 };
        let (mut sum, mut weight) = (COLUMN_PRIOR * expected, COLUMN_PRIOR);
        for (block, block_codes) in codes.chunks_mut(BLOCK_ROWS).enumerate() {
            let first = block * BLOCK_ROWS;
            let estimate = sum / weight;
            let state = &mut states[first / STRIP_ROWS];
            for (index, code) in block_codes.iter_mut().enumerate() {
                let quantizer = trellis.quantizer(*state);
                let factor = factors[first + index];
                *code = models.code(coder, class_of(estimate * factor), quantizer, *code);
                let magnitude = code.unsigned_abs();
                *state = trellis.next(*state, magnitude);
                sum += position(magnitude, quantizer);
                weight += factor;
                quantizers[first + index] = quantizer as u8;
            }
        }
        let mean = (sum - COLUMN_PRIOR * expected).max(0.0) / (weight - COLUMN_PRIOR).max(1e-3);
        let information = 1.0 / (mean + 0.5);
        for ((total, &code), &quantizer) in row_sums.iter_mut().zip(codes.iter()).zip(&*quantizers) {
            *total += position(code.unsigned_abs(), u32::from(quantizer)) * information;
        }
        self.row_total += mean * information;
        self.spread_sum = self.spread_sum * FADE + mean * information * (mean * step);
        self.spread_weight = self.spread_weight * FADE + mean * information;
    }
}

/// Codes a matrix's codes, `[columns, rows]`, with the relative steps of its columns; shows each column with its codes
/// and their quantisers.
pub fn code_matrix<D: Direction>(
    coder: &mut D,
    trellis: Trellis,
    rows: usize,
    steps: &[f32],
    codes: &mut [i32],
    mut visit: impl FnMut(usize, &[i32], &[u8]),
) {
    if rows == 0 {
        return;
    }
    let mut columns = Columns::new(trellis, rows);
    for (column, (codes, &step)) in codes.chunks_exact_mut(rows).zip(steps).enumerate() {
        columns.code(coder, step, codes);
        visit(column, codes, columns.quantizers());
    }
}

#[inline]
fn position(magnitude: u32, quantizer: u32) -> f32 {
    if magnitude == 0 { 0.0 } else { magnitude as f32 - 0.5 * quantizer as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_any_size_return() {
        let (rows, columns) = (130, 7);
        for (memory_bits, spread) in [(0, 1), (3, 3), (6, 40), (8, 5000), (0, 1 << 24)] {
            let trellis = Trellis::new(memory_bits).unwrap();
            let mut state = 99u64;
            let codes: Vec<i32> = (0..rows * columns)
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    ((state >> 33) as i64 % (2 * spread + 1) - spread) as i32
                })
                .map(|code| code.clamp(-(MAX_MAGNITUDE as i32), MAX_MAGNITUDE as i32))
                .collect();
            let steps: Vec<f32> = (0..columns).map(|column| 0.1 * (column + 1) as f32).collect();
            let mut encoder = RangeEncoder::new();
            let mut written = codes.clone();
            code_matrix(&mut encoder, trellis, rows, &steps, &mut written, |_, _, _| {});
            assert_eq!(written, codes);
            let bytes = encoder.finish();
            let mut decoder = RangeDecoder::new(&bytes);
            let mut read = vec![0; codes.len()];
            code_matrix(&mut decoder, trellis, rows, &steps, &mut read, |_, _, _| {});
            assert!(decoder.overrun() <= 4);
            assert_eq!(read, codes);
        }
    }

    #[test]
    fn equal_codes_cost_next_to_nothing() {
        let mut encoder = RangeEncoder::new();
        code_sequence(&mut encoder, &mut [0; 4096]);
        let bytes = encoder.finish().len();
        assert!(bytes < 40, "{bytes} bytes for 4096 zeros");
    }

    #[test]
    fn frequencies_of_every_table_fill_the_range() {
        for tables in &Models::default().tables {
            for table in tables {
                assert_eq!(table.cumulative[SYMBOLS], 1 << TOTAL_BITS);
                assert!(table.cumulative.windows(2).all(|pair| pair[0] < pair[1]));
            }
        }
    }
}
