//! The bytes of a progressive array.
//!
//! # First layer
//! | bytes | field |
//! |---|---|
//! | 1 | bit 0: rows have exponents; bit 1: static tables; bit 2, beside bit 1: rows have classes; bit 3, beside bit 0: rows' exponents are quarter octaves; other bits 0 |
//! | 1 | threshold of code 0 in 1/128 of a step, 64 to 127 |
//! | 2 | check, little endian: `(length + 31 rows + 1009 columns) mod 65521`, `length` the bytes of the stream |
//! | 3 | base step: the upper three bytes of an `f32`, little endian, from 2^-96 to 2^96 |
//! | length | one range-coded stream: column exponents, row exponents where flagged, offsets of the 8 groups, codes |
//!
//! With static tables the stream comes behind its length (4 bytes) and has the classes of [`super::tables`] in place
//! of the codes, those of rows in their order; the codes' lists follow.
//!
//! Column `j` has the step `base * 2^(c_j / 8)` with `c_j` within -176 to 176, row `i` multiplies it by `2^(r_i / 4)`
//! (`2^(r_i / 2)` without bit 3).
//! A column's group is `(floor(c_j / 2) + 16) >> 2` within 0 to 7. Sequences and codes are coded as the house recipe's
//! ([`crate::house::coder`]), without a trellis.
//!
//! # Refinements
//! | bytes | field |
//! |---|---|
//! | 2 | check: `(length + 31 rows + 1009 columns + 7 units so far) mod 65521` |
//! | 1 | units in this layer, at least 1 |
//! | length | one range-coded stream: in the second layer the structure, then the units |
//!
//! The structure: rank (9 raw bits), quarter octaves of the loadings' step plus 64 (7 raw bits), then the loadings'
//! codes as a matrix of `rank` columns of as many rows as the array has columns. A unit is one more bit of every row
//! `i = p mod parts`; units go through the parts, then to the next depth. With static tables the stream is only there
//! in the second layer, behind its length (4 bytes), and has the structure alone; then each unit's length (4 bytes) and
//! lists.

use lamella_codec::ArraySpec;
use lamella_entropy::range::{AdaptiveBit, RangeDecoder, RangeEncoder};
use lamella_quant::refine::{GroupOffsets, OFFSET_MAGNITUDES};
use lamella_quant::sweep::trellis::Trellis;

use super::tables::{CLASSES, Classes, order, read_codes, write_codes};
use crate::house::coder::{Direction, code_matrix, code_sequence};
use crate::house::form::{GROUPS, MAX_BASE, MAX_ROW_EXPONENT, MIN_BASE, group_of, power};

/// Largest exponent of a column, in eighths of an octave.
pub const MAX_EXPONENT: i32 = 176;
/// Largest exponent of a row, in quarters of an octave.
pub const MAX_ROW_QUARTERS: i32 = 2 * MAX_ROW_EXPONENT;
/// Largest number of directions in a structure.
pub const MAX_RANK: usize = 256;
/// Largest code of a loading.
const MAX_LOADING: i32 = 1 << 14;
/// `2^(1/8)` rounded to `f32`.
const EIGHTH: f32 = 1.090_507_7;
/// Elements of a unit: small arrays have one unit per bit, large ones up to [`MAX_PARTS`].
const UNIT_ELEMENTS: usize = 32_768;
/// Most units per bit.
const MAX_PARTS: usize = 4;

/// Units per bit of an array.
pub fn parts(rows: usize, columns: usize) -> usize {
    (rows.saturating_mul(columns) / UNIT_ELEMENTS).clamp(1, MAX_PARTS).min(rows.max(1))
}

/// `2^(exponent / 8)`.
pub fn power_of_eighths(exponent: i32) -> f32 {
    let exponent = exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT);
    let quarters = power(exponent.div_euclid(2));
    if exponent.rem_euclid(2) == 1 { quarters * EIGHTH } else { quarters }
}

/// Why bytes are no layer: a sentence.
pub type Wrong = String;

/// Everything of the first layer but its codes.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Threshold of code 0, in 1/128 of a step.
    pub threshold: u8,
    /// Step of a column with exponent 0.
    pub base: f32,
    /// Eighths of an octave, one per column.
    pub columns: Vec<i32>,
    /// Quarter octaves, one per row, or empty.
    pub rows: Vec<i32>,
    /// Offsets of the groups.
    pub offsets: Vec<GroupOffsets>,
    /// Classes of numbers, where tables are static.
    pub classes: Option<Classes>,
}

impl Header {
    /// Steps of the columns.
    pub fn steps(&self) -> Vec<f32> {
        self.columns.iter().map(|&exponent| self.base * power_of_eighths(exponent)).collect()
    }
    /// Factors of the rows, or empty.
    pub fn row_factors(&self) -> Vec<f32> {
        self.rows.iter().map(|&exponent| power(exponent)).collect()
    }
    /// Offset groups of the columns.
    pub fn groups(&self) -> Vec<u8> {
        self.columns.iter().map(|exponent| group_of(exponent.div_euclid(2))).collect()
    }

    /// Exponents that were stored as half octaves, as quarters.
    fn rows_from(&mut self, flags: u8) {
        if flags & 8 == 0 {
            let quarters = |half: i32| half.clamp(-MAX_ROW_EXPONENT, MAX_ROW_EXPONENT) * 2;
            self.rows.iter_mut().for_each(|row| *row = quarters(*row));
        }
    }

    fn code<D: Direction>(&mut self, coder: &mut D) {
        code_sequence(coder, &mut self.columns);
        self.columns.iter_mut().for_each(|c| *c = (*c).clamp(-MAX_EXPONENT, MAX_EXPONENT));
        code_sequence(coder, &mut self.rows);
        self.rows.iter_mut().for_each(|r| *r = (*r).clamp(-MAX_ROW_QUARTERS, MAX_ROW_QUARTERS));
        let mut numbers: Vec<i32> =
            self.offsets.as_flattened().iter().map(|&offset| i32::from(offset)).collect();
        code_sequence(coder, &mut numbers);
        for (offsets, numbers) in self.offsets.iter_mut().zip(numbers.chunks_exact(OFFSET_MAGNITUDES)) {
            offsets.iter_mut().zip(numbers).for_each(|(o, &number)| *o = number.clamp(-15, 15) as i8);
        }
        if let Some(classes) = &mut self.classes {
            let most = CLASSES as i32;
            for sequence in [&mut classes.columns, &mut classes.rows] {
                // Differences: neighbours are alike, or all the same.
                let mut before = 0;
                let mut steps: Vec<i32> =
                    sequence.iter().map(|&class| class - std::mem::replace(&mut before, class)).collect();
                code_sequence(coder, &mut steps);
                before = 0;
                for (class, step) in sequence.iter_mut().zip(steps) {
                    before = before.saturating_add(step).clamp(-most, most);
                    *class = before;
                }
            }
        }
    }
}

fn check(length: usize, rows: usize, columns: usize, units: usize) -> u16 {
    let parts = [(length, 1), (rows, 31), (columns, 1009), (units, 7)];
    (parts.iter().map(|&(part, factor)| part as u64 % 65_521 * factor).sum::<u64>() % 65_521) as u16
}

/// Whether a stream of so many bytes was there to its end.
///
/// # Errors
/// A sentence with the bytes that are missing.
pub fn ended(decoder: &RangeDecoder<'_>, length: usize) -> Result<(), Wrong> {
    match decoder.overrun() {
        0..=4 => Ok(()),
        over => Err(format!("the stream of {length} bytes ends {} bytes early", over - 4)),
    }
}

/// The relative steps that the coder of codes is told.
fn relative(header: &Header) -> Vec<f32> {
    header.columns.iter().map(|&exponent| power_of_eighths(exponent)).collect()
}

/// The first layer. Codes are `[columns, rows]`, rows in the order of [`super::tables`].
///
/// # Errors
/// None for codes that a sweep gives; the type leaves room.
pub fn write_first(header: &Header, rows: usize, codes: &[i32]) -> Result<Vec<u8>, Wrong> {
    let columns = header.columns.len();
    let mut header = header.clone();
    let mut encoder = RangeEncoder::new();
    header.code(&mut encoder);
    let (mut flags, mut body) = (9 * u8::from(!header.rows.is_empty()), Vec::new());
    if let Some(classes) = &header.classes {
        flags |= 2 | u8::from(!classes.rows.is_empty()) << 2;
        append_framed(&mut body, &encoder.finish());
        body.extend_from_slice(&write_codes(classes, rows, codes)?);
    } else {
        let order = order(rows, parts(rows, columns));
        let mut codes = permuted(codes, &inverse(&order));
        code_matrix(&mut encoder, Trellis::NONE, rows, &relative(&header), &mut codes, |_, _, _| {});
        body = encoder.finish();
    }
    let mut bytes = vec![flags, header.threshold];
    bytes.extend_from_slice(&check(body.len(), rows, columns, 0).to_le_bytes());
    bytes.extend_from_slice(&header.base.to_le_bytes()[1..]);
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Appends bytes behind their length.
pub fn append_framed(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
    bytes.extend_from_slice(part);
}

/// Takes what [`append_framed`] wrote.
///
/// # Errors
/// A length beyond the end.
pub fn take_framed<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Wrong> {
    let cut = || "a stream is cut off".to_owned();
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
    let (part, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(cut)?;
    *bytes = rest;
    Ok(part)
}

/// Columns' numbers in another order of rows: place `p` gets that of row `order[p]`.
pub fn permuted<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
    values.chunks_exact(order.len().max(1)).flat_map(|column| order.iter().map(|&row| column[row])).collect()
}

/// The place of every row.
pub fn inverse(order: &[usize]) -> Vec<usize> {
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &row)| places[row] = place);
    places
}

/// Header and codes of a first layer, rows in the order of [`super::tables`].
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_first(payload: &[u8], rows: usize, columns: usize) -> Result<(Header, Vec<i32>), Wrong> {
    let Some((&[flags, threshold, c0, c1, b1, b2, b3], stream)) = payload.split_first_chunk::<7>() else {
        return Err(format!("{} bytes cannot hold the 7 of the header", payload.len()));
    };
    if flags > 15 || flags & 6 == 4 || flags & 9 == 8 || !(64..=127).contains(&threshold) {
        return Err(format!("flags {flags:#04x} and threshold {threshold} are not known to this version"));
    }
    if u16::from_le_bytes([c0, c1]) != check(stream.len(), rows, columns, 0) {
        return Err(format!(
            "a stream of {} bytes does not belong to {rows} x {columns} weights",
            stream.len()
        ));
    }
    let length =
        rows.checked_mul(columns).ok_or_else(|| format!("{rows} x {columns} weights are too many"))?;
    let base = f32::from_le_bytes([0, b1, b2, b3]);
    if !(MIN_BASE..=MAX_BASE).contains(&base) {
        return Err(format!("the base step {base} is outside 2^-96 to 2^96"));
    }
    let mut header = Header {
        threshold,
        base,
        columns: vec![0; columns],
        rows: vec![0; if flags & 1 == 1 { rows } else { 0 }],
        offsets: vec![[0; OFFSET_MAGNITUDES]; GROUPS],
        classes: None,
    };
    if flags & 2 != 0 {
        let mut body = stream;
        let stream = take_framed(&mut body)?;
        let rows_of_classes = if flags & 4 == 0 { 0 } else { rows };
        header.classes = Some(Classes { columns: vec![0; columns], rows: vec![0; rows_of_classes] });
        let mut decoder = RangeDecoder::new(stream);
        header.code(&mut decoder);
        header.rows_from(flags);
        ended(&decoder, stream.len())?;
        let codes = match &header.classes {
            Some(classes) => read_codes(body, classes, rows)?,
            None => Vec::new(),
        };
        return Ok((header, codes));
    }
    let mut decoder = RangeDecoder::new(stream);
    header.code(&mut decoder);
    header.rows_from(flags);
    let mut codes = vec![0i32; length];
    code_matrix(&mut decoder, Trellis::NONE, rows, &relative(&header), &mut codes, |_, _, _| {});
    ended(&decoder, stream.len())?;
    Ok((header, permuted(&codes, &order(rows, parts(rows, columns)))))
}

/// A second moment's structure as it is stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Structure {
    /// Quarter octaves of the loadings' step.
    pub exponent: i32,
    /// Codes of the loadings, `[rank, columns]`.
    pub codes: Vec<i32>,
}

impl Structure {
    /// Loadings `[rank, columns]`.
    pub fn loadings(&self) -> Vec<f32> {
        let step = power(self.exponent);
        self.codes.iter().map(|&code| code.clamp(-MAX_LOADING, MAX_LOADING) as f32 * step).collect()
    }

    /// Codes the structure of `columns` features; readers get what was written.
    ///
    /// # Errors
    /// A rank that such an array cannot have.
    pub fn code<D: Direction>(&mut self, coder: &mut D, columns: usize) -> Result<(), Wrong> {
        let rank = coder.raw((self.codes.len() / columns.max(1)) as u32, 9) as usize;
        if rank > MAX_RANK.min(columns / 4) {
            return Err(format!("a structure of {rank} directions does not belong to {columns} columns"));
        }
        self.exponent = coder.raw((self.exponent + 64).clamp(0, 127) as u32, 7) as i32 - 64;
        self.codes.resize(rank * columns, 0);
        code_matrix(coder, Trellis::NONE, columns, &vec![1.0; rank], &mut self.codes, |_, _, _| {});
        Ok(())
    }
}

/// Bits under adaptive contexts, or as they are.
pub trait Bits: Direction {
    /// A bit that its context predicts (`bit` is ignored by readers).
    fn bit(&mut self, model: &mut AdaptiveBit, bit: bool) -> bool;
}

impl Bits for RangeEncoder {
    #[inline]
    fn bit(&mut self, model: &mut AdaptiveBit, bit: bool) -> bool {
        self.encode_adaptive(model, bit);
        bit
    }
}

impl Bits for RangeDecoder<'_> {
    #[inline]
    fn bit(&mut self, model: &mut AdaptiveBit, _bit: bool) -> bool {
        self.decode_adaptive(model)
    }
}

/// Frames the stream of a refinement whose first unit has the number `first`.
pub fn write_refinement(stream: &[u8], rows: usize, columns: usize, first: usize, units: usize) -> Vec<u8> {
    let mut bytes = check(stream.len(), rows, columns, first).to_le_bytes().to_vec();
    bytes.push(units as u8);
    bytes.extend_from_slice(stream);
    bytes
}

/// Units and stream of a refinement.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_refinement(
    payload: &[u8],
    rows: usize,
    columns: usize,
    first: usize,
) -> Result<(usize, &[u8]), Wrong> {
    let Some((&[c0, c1, units], stream)) = payload.split_first_chunk::<3>() else {
        return Err(format!("{} bytes cannot hold the 3 of the header", payload.len()));
    };
    if units == 0 || u16::from_le_bytes([c0, c1]) != check(stream.len(), rows, columns, first) {
        return Err(format!("a stream of {} bytes does not refine {rows} x {columns} weights", stream.len()));
    }
    Ok((usize::from(units), stream))
}

/// Rows and columns of a spec this form can hold.
pub fn shape(spec: &ArraySpec) -> Option<(usize, usize)> {
    spec.matrix().filter(|&(rows, columns)| rows > 0 && columns > 0)
}
