//! One linear into a scheme's arrays.
//!
//! Integers go through the solver of the GGUF types with other groups: a scale search weighted by what each column's
//! error costs, error feedback, coordinate descent. Small floats have no even grid: rows get the scale that loses
//! least in a search, and error feedback.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use lamella_codec::{Array, ArrayError, ArraySpec, Dtype};
use lamella_io::{BlockForm, GgmlType};
use lamella_math::{InverseFactor, SecondMoment};
use lamella_quant::feedback::{self, Chunk, ColumnQuantizer};

use super::Scheme;
use crate::gguf::{Effort, costs, factor, solve};

/// Largest `F8_E4M3`.
const LARGEST: f32 = 448.0;

/// What a scale becomes in a float type.
fn rounding(dtype: Dtype) -> fn(f32) -> f32 {
    match dtype {
        Dtype::BF16 => |value| bf16::from_f32(value).to_f32(),
        Dtype::F16 => |value| f16::from_f32(value.clamp(-65_504.0, 65_504.0)).to_f32(),
        _ => |value| value,
    }
}

/// Codes and scales of `values` (`[rows, columns]`, row-major, finite) as the arrays of `specs`, which are
/// [`Scheme::arrays`].
///
/// # Errors
/// A sentence without subject: groups that do not divide the columns, a second moment that does not fit.
pub(super) fn quantize(
    values: &[f32],
    columns: usize,
    scheme: Scheme,
    specs: &[ArraySpec],
    second_moment: Option<&Arc<SecondMoment>>,
) -> Result<Vec<Array<'static>>, String> {
    let Some(scale_spec) = specs.get(1) else { return Err("has no scales".to_owned()) };
    let rounding = rounding(scale_spec.dtype);
    let text = |error: ArrayError| error.to_string();
    let group = scheme.group(columns);
    let grid = match scheme {
        Scheme::Int4 { .. } => GgmlType::Q4_0.block_form(),
        Scheme::Int8 { .. } | Scheme::Int8Channel => GgmlType::Q8_0.block_form(),
        Scheme::Fp8 => None,
    };
    let Some(grid) = grid else {
        let (codes, scales) = small_floats(values, columns, rounding, second_moment)?;
        let codes = Array::from_f32(specs[0].clone(), &codes).map_err(text)?;
        return Ok(vec![codes, Array::from_f32(scale_spec.clone(), &scales).map_err(text)?]);
    };
    let form = BlockForm { block: group, group, ..grid };
    let blocks = solve(values, columns, &form, rounding, second_moment, Effort::Refined)?;
    let scales: Vec<f32> = blocks.iter().map(|block| block.scale).collect();
    let scales = Array::from_f32(scale_spec.clone(), &scales).map_err(text)?;
    let codes = || blocks.iter().flat_map(|block| block.codes.iter().copied());
    let bytes: Vec<u8> = match scheme {
        Scheme::Int4 { .. } => {
            let codes: Vec<u8> = codes().collect();
            codes.chunks_exact(columns).flat_map(|row| padded(row.chunks(2).map(pair).collect())).collect()
        }
        Scheme::Int8 { .. } => {
            let codes: Vec<u8> = codes().collect();
            codes.chunks_exact(columns).flat_map(|row| padded(row.to_vec())).collect()
        }
        _ => codes().map(|code| code.wrapping_sub(128)).collect(),
    };
    let mut arrays = vec![Array::new(specs[0].clone(), bytes).map_err(text)?, scales];
    if let Some(shape) = specs.get(2) {
        let rows = values.len() / columns.max(1);
        let bytes: Vec<u8> =
            [rows as u64, columns as u64].iter().flat_map(|extent| extent.to_le_bytes()).collect();
        arrays.push(Array::new(shape.clone(), bytes).map_err(text)?);
    }
    Ok(arrays)
}

/// Two codes of four bits in a byte, the first one low.
fn pair(codes: &[u8]) -> u8 {
    codes[0] & 15 | codes.get(1).map_or(0, |code| code << 4)
}

/// Whole words.
fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The small floats (as `f32`) and one scale a row.
fn small_floats(
    values: &[f32],
    columns: usize,
    rounding: fn(f32) -> f32,
    second_moment: Option<&Arc<SecondMoment>>,
) -> Result<(Vec<f32>, Vec<f32>), String> {
    let factor = factor(columns, second_moment)?;
    let costs = costs(columns, factor.as_ref());
    let upper = factor.as_ref().map_or(&[][..], InverseFactor::upper);
    let mut swept = values.to_vec();
    let make = |_first: usize, rows: usize| RowQuantizer {
        costs: &costs,
        rounding,
        scales: vec![0.0; rows],
        codes: Vec::new(),
    };
    let chunks = feedback::sweep(&mut swept, columns, upper, columns, make);
    let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
    for chunk in chunks {
        codes.extend(feedback::transpose(&chunk.codes, columns, chunk.scales.len()));
        scales.extend(chunk.scales);
    }
    Ok((codes, scales))
}

/// Rounds rows to small floats under one scale each.
struct RowQuantizer<'a> {
    costs: &'a [f32],
    rounding: fn(f32) -> f32,
    scales: Vec<f32>,
    /// `[columns, rows]`
    codes: Vec<f32>,
}

impl ColumnQuantizer for RowQuantizer<'_> {
    fn begin_block(&mut self, chunk: &Chunk<'_>, columns: Range<usize>) {
        for (row, scale) in self.scales.iter_mut().enumerate() {
            let values: Vec<f32> = columns.clone().map(|column| chunk.column(column)[row]).collect();
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            // Floats have equal relative steps everywhere, so the scale decides little but what is lost at its ends.
            let mut best = f64::INFINITY;
            for step in 0..8 {
                let tried = (self.rounding)(largest / LARGEST * (1.0 + 0.125 * step as f32));
                if tried == 0.0 || !tried.is_finite() {
                    continue;
                }
                let error = |(&value, &cost): (&f32, &f32)| {
                    let difference = f64::from(value - tried * nearest(value / tried));
                    f64::from(cost) * difference * difference
                };
                let error: f64 = values.iter().zip(self.costs).map(error).sum();
                if error < best {
                    (best, *scale) = (error, tried);
                }
            }
        }
    }

    fn quantize(&mut self, _column: usize, values: &mut [f32]) {
        for (value, &scale) in values.iter_mut().zip(&self.scales) {
            let code = if scale == 0.0 { 0.0 } else { nearest(*value / scale) };
            self.codes.push(code);
            *value = code * scale;
        }
    }
}

/// The nearest `F8_E4M3`, ties to even, as `f32`; what is too large becomes the largest.
fn nearest(value: f32) -> f32 {
    let magnitude = value.abs().min(LARGEST);
    // Three bits of mantissa; below 2^-6 the step stays at 2^-9.
    let exponent = (magnitude.to_bits() >> 23) as i32 - 127;
    let step = f32::from_bits(((exponent.max(-6) - 3 + 127) as u32) << 23);
    ((magnitude / step).round_ties_even() * step).min(LARGEST).copysign(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_the_codecs_own_rounding() {
        for step in -4500..4500 {
            let value = step as f32 * 0.0993;
            let spec = ArraySpec::new("w", vec![1], Dtype::F8E4M3);
            let array = Array::from_f32(spec, &[value.clamp(-LARGEST, LARGEST)]).unwrap();
            assert_eq!(array.to_f32().unwrap()[0], nearest(value), "{value}");
        }
    }

    #[test]
    fn a_row_by_hand() {
        let specs = Scheme::Int4 { group_size: 4 }.arrays("m", 1, 4, Dtype::F32);
        let arrays =
            quantize(&[-8.0, 1.0, 0.0, 7.0], 4, Scheme::Int4 { group_size: 4 }, &specs, None).unwrap();
        // Codes 0, 9, 8 and 15 under a scale of one.
        assert_eq!(&arrays[0].bytes[..], [0x90, 0xf8, 0, 0]);
        assert_eq!(arrays[1].to_f32().unwrap(), [1.0]);
        assert_eq!(&arrays[2].bytes[..], [1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    }
}
