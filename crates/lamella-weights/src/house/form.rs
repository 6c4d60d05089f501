//! The stored form of the house recipe.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | bits 0-3: memory bits of the trellis (0, 2 to 8); bit 4: rows have exponents; other bits 0 |
//! | 2 | check, little endian: `(length + 31 rows + 1009 columns) mod 65521`, `length` the bytes of the stream |
//! | 3 | base step: the upper three bytes of an `f32`, little endian, from 2^-96 to 2^96 |
//! | length | one range-coded stream: column exponents, row exponents where flagged, offsets, codes |
//!
//! Column `j` has the step `base * 2^(c_j / 4)`, row `i` multiplies it by `2^(r_i / 2)`; both powers come from a
//! table of four constants and an exact power of two. `c_j` lies within -88 to 88, `r_i` within -16 to 16. A value is
//! `level * (column step * row factor)`, clamped to the largest finite number of the array's type. Offsets: for each group
//! from the lowest to the highest one used by any column, for quantiser 0 and 1, for magnitudes 1, 2 and 3 or
//! more. A column's group is `(c_j + 16) >> 2` within 0 to 7.

use lamella_entropy::range::{RangeDecoder, RangeEncoder};
use lamella_quant::sweep::trellis::Trellis;
use lamella_quant::sweep::{OFFSET_MAGNITUDES, Offsets, level};

use super::coder::{Columns, Direction, code_sequence};

/// Largest exponent of a column, in quarter octaves.
pub const MAX_EXPONENT: i32 = 88;
/// Largest exponent of a row, in half octaves.
pub const MAX_ROW_EXPONENT: i32 = 16;
/// Smallest base step.
pub const MIN_BASE: f32 = f32::from_bits((127 - 96) << 23);
/// Largest base step.
pub const MAX_BASE: f32 = f32::from_bits((127 + 96) << 23);
/// Number of offset groups.
pub const GROUPS: usize = 8;

/// Quarter octaves: `2^(i/4)` rounded to `f32`.
const QUARTERS: [f32; 4] = [1.0, 1.189_207_1, std::f32::consts::SQRT_2, 1.681_792_9];

/// `2^(exponent / 4)`, exponents clamped to +-[`MAX_EXPONENT`].
pub fn power(exponent: i32) -> f32 {
    let exponent = exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT);
    let octave = f32::from_bits(((exponent.div_euclid(4) + 127) as u32) << 23);
    octave * QUARTERS[exponent.rem_euclid(4) as usize]
}

/// The offset group of a column.
pub fn group_of(exponent: i32) -> u8 {
    ((exponent + 16) >> 2).clamp(0, GROUPS as i32 - 1) as u8
}

/// Everything before the codes.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The trellis of every column.
    pub trellis: Trellis,
    /// Step of a column with exponent 0.
    pub base: f32,
    /// Quarter octaves, one per column.
    pub columns: Vec<i32>,
    /// Half octaves, one per row, or empty.
    pub rows: Vec<i32>,
    /// Reconstruction offsets.
    pub offsets: Offsets,
}

impl Header {
    /// Steps of the columns.
    pub fn column_steps(&self) -> Vec<f32> {
        self.columns.iter().map(|&exponent| self.base * power(exponent)).collect()
    }
    /// Factors of the rows, or empty.
    pub fn row_factors(&self) -> Vec<f32> {
        self.rows.iter().map(|&exponent| power(2 * exponent)).collect()
    }

    fn code<D: Direction>(&mut self, coder: &mut D) {
        code_sequence(coder, &mut self.columns);
        self.columns.iter_mut().for_each(|c| *c = (*c).clamp(-MAX_EXPONENT, MAX_EXPONENT));
        code_sequence(coder, &mut self.rows);
        self.rows.iter_mut().for_each(|r| *r = (*r).clamp(-MAX_ROW_EXPONENT, MAX_ROW_EXPONENT));
        let used = self.columns.iter().map(|&exponent| group_of(exponent));
        let (low, high) = used.fold((GROUPS as u8, 0), |(low, high), g| (low.min(g), high.max(g)));
        let groups = usize::from(low)..usize::from(high) + 1;
        let quantizers = if self.trellis.memory_bits() == 0 { 1 } else { 2 };
        self.offsets.groups.resize(GROUPS, Default::default());
        let mut numbers = Vec::new();
        for group in groups.clone() {
            for cells in &self.offsets.groups[group][..quantizers] {
                numbers.extend(cells.iter().map(|&offset| i32::from(offset)));
            }
        }
        code_sequence(coder, &mut numbers);
        let mut cells = numbers.chunks_exact(OFFSET_MAGNITUDES);
        for group in groups {
            for (offsets, numbers) in self.offsets.groups[group][..quantizers].iter_mut().zip(&mut cells) {
                for (offset, &number) in offsets.iter_mut().zip(numbers) {
                    *offset = number.clamp(-127, 127) as i8;
                }
            }
        }
    }
}

/// A base step as it is stored: 15 fraction bits.
pub fn stored_base(base: f32) -> f32 {
    let clamped = if base > MIN_BASE { base.min(MAX_BASE) } else { MIN_BASE };
    f32::from_bits((clamped.to_bits() + 0x80) & !0xff)
}

fn check(length: usize, rows: usize, columns: usize) -> u16 {
    let parts = [(length, 1), (rows, 31), (columns, 1009)];
    (parts.iter().map(|&(part, factor)| part as u64 % 65_521 * factor).sum::<u64>() % 65_521) as u16
}

/// Header and codes (`[columns, rows]`) to bytes. The base must be a [`stored_base`].
pub fn write(header: &Header, rows: usize, codes: &[i32]) -> Vec<u8> {
    let mut header = header.clone();
    let columns = header.columns.len();
    let mut encoder = RangeEncoder::new();
    header.code(&mut encoder);
    if rows > 0 {
        let mut coder = Columns::new(header.trellis, rows);
        let mut column = vec![0i32; rows];
        for (codes, step) in codes.chunks_exact(rows).zip(header.column_steps()) {
            column.copy_from_slice(codes);
            coder.code(&mut encoder, step, &mut column);
        }
    }
    let stream = encoder.finish();
    let mut bytes = vec![header.trellis.memory_bits() as u8 | u8::from(!header.rows.is_empty()) << 4];
    bytes.extend_from_slice(&check(stream.len(), rows, columns).to_le_bytes());
    bytes.extend_from_slice(&header.base.to_le_bytes()[1..]);
    bytes.extend_from_slice(&stream);
    bytes
}

/// A payload whose header has been read.
pub struct Reader<'a> {
    /// Everything before the codes.
    pub header: Header,
    rows: usize,
    decoder: RangeDecoder<'a>,
    stream_bytes: usize,
}

impl<'a> Reader<'a> {
    /// Reads everything before the codes of a `rows` by `columns` matrix.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn new(payload: &'a [u8], rows: usize, columns: usize) -> Result<Self, String> {
        let Some((&[flags, c0, c1, b1, b2, b3], stream)) = payload.split_first_chunk::<6>() else {
            return Err(format!("{} bytes cannot hold the 6 of the header", payload.len()));
        };
        let trellis = Trellis::new(u32::from(flags & 15))
            .filter(|_| flags < 32)
            .ok_or_else(|| format!("flags {flags:#04x} are not known to this version"))?;
        if u16::from_le_bytes([c0, c1]) != check(stream.len(), rows, columns) {
            return Err(format!(
                "a stream of {} bytes does not belong to {rows} x {columns} weights",
                stream.len()
            ));
        }
        if rows.checked_mul(columns).is_none() {
            return Err(format!("{rows} x {columns} weights are too many"));
        }
        let base = f32::from_le_bytes([0, b1, b2, b3]);
        if !(MIN_BASE..=MAX_BASE).contains(&base) {
            return Err(format!("the base step {base} is outside 2^-96 to 2^96"));
        }
        let mut header = Header {
            trellis,
            base,
            columns: vec![0; columns],
            rows: vec![0; if flags & 16 != 0 { rows } else { 0 }],
            offsets: Offsets::default(),
        };
        let mut decoder = RangeDecoder::new(stream);
        header.code(&mut decoder);
        Ok(Self { header, rows, decoder, stream_bytes: stream.len() })
    }

    /// Shows every column with its codes and their quantisers.
    ///
    /// # Errors
    /// A stream that ends early.
    pub fn columns(mut self, mut visit: impl FnMut(usize, &[i32], &[u8])) -> Result<(), String> {
        if self.rows > 0 {
            let mut coder = Columns::new(self.header.trellis, self.rows);
            let mut codes = vec![0i32; self.rows];
            for (column, step) in self.header.column_steps().into_iter().enumerate() {
                coder.code(&mut self.decoder, step, &mut codes);
                visit(column, &codes, coder.quantizers());
            }
        }
        match self.decoder.overrun() {
            0..=4 => Ok(()),
            more => Err(format!("the stream of {} bytes ends {} bytes early", self.stream_bytes, more - 4)),
        }
    }
}

/// Bytes to header and codes (`[columns, rows]`): for those who look into a layer.
///
/// # Errors
/// As [`read`].
pub fn read_codes(payload: &[u8], rows: usize, columns: usize) -> Result<(Header, Vec<i32>), String> {
    let reader = Reader::new(payload, rows, columns)?;
    let header = reader.header.clone();
    let mut codes = Vec::with_capacity(rows * columns);
    reader.columns(|_, column, _| codes.extend_from_slice(column))?;
    Ok((header, codes))
}

/// Bytes to values, `[rows, columns]` row-major, none beyond `limit`.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read(payload: &[u8], rows: usize, columns: usize, limit: f32) -> Result<Vec<f32>, String> {
    let reader = Reader::new(payload, rows, columns)?;
    let header = reader.header.clone();
    let (steps, factors) = (header.column_steps(), header.row_factors());
    let mut values = vec![0.0f32; rows * columns];
    reader.columns(|column, codes, quantizers| {
        let offsets = header.offsets.of_group(usize::from(group_of(header.columns[column])));
        for (row, (&code, &quantizer)) in codes.iter().zip(quantizers).enumerate() {
            let step = steps[column] * factors.get(row).copied().unwrap_or(1.0);
            let value = level(code, u32::from(quantizer), &offsets) * step;
            values[row * columns + column] = value.clamp(-limit, limit);
        }
    })?;
    Ok(values)
}
