//! From a matrix and its inputs' second moment to the bytes of a tensor.

use std::sync::Arc;

use lamella_io::{BlockForm, Codes, GgmlType};
use lamella_math::{FactorError, InverseFactor, SecondMoment};
use lamella_quant::feedback;
use rayon::prelude::*;

use super::refine::refine;
use super::sweep::{BlockQuantizer, to_f16};

/// Damping of the second moment, of its mean diagonal.
const DAMPING: f64 = 0.01;

/// How much is spent on a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// The sweep alone: what an allocator compares types by.
    Sweep,
    /// The sweep, then [coordinate descent](super::refine).
    Refined,
}

/// Quantises `values` (`[rows, columns]`, row-major, finite) into blocks of `kind`, row after row.
///
/// Without a second moment (or with an empty one) every column counts the same and no error is fed on.
///
/// # Errors
/// A type that is not quantised into, rows that are no whole blocks, or a second moment that does not fit; a
/// sentence without subject.
pub fn quantize(
    values: &[f32],
    columns: usize,
    kind: GgmlType,
    second_moment: Option<&Arc<SecondMoment>>,
) -> Result<Vec<u8>, String> {
    quantize_with(values, columns, kind, second_moment, Effort::Refined)
}

/// [`quantize`] at a chosen effort.
pub(crate) fn quantize_with(
    values: &[f32],
    columns: usize,
    kind: GgmlType,
    second_moment: Option<&Arc<SecondMoment>>,
    effort: Effort,
) -> Result<Vec<u8>, String> {
    let form = kind.block_form().ok_or_else(|| format!("is not quantised into {}", kind.name()))?;
    let blocks = solve(values, columns, &form, to_f16, second_moment, effort)?;
    let mut out = Vec::with_capacity(blocks.len() * kind.block_bytes());
    blocks.iter().for_each(|block| form.pack(block, &mut out));
    Ok(out)
}

/// The blocks of a matrix, row after row. `rounding` is what a block's scale becomes when it is stored.
///
/// # Errors
/// As [`quantize`].
pub(crate) fn solve(
    values: &[f32],
    columns: usize,
    form: &BlockForm,
    rounding: fn(f32) -> f32,
    second_moment: Option<&Arc<SecondMoment>>,
    effort: Effort,
) -> Result<Vec<Codes>, String> {
    if columns == 0 || !columns.is_multiple_of(form.block) || !values.len().is_multiple_of(columns) {
        return Err(format!("has rows of {columns}, no whole blocks of {}", form.block));
    }
    let factor = factor(columns, second_moment)?;
    let costs = costs(columns, factor.as_ref());
    let mut swept = values.to_vec();
    let make = |_first: usize, rows: usize| BlockQuantizer::new(*form, &costs, rows, rounding);
    let upper = factor.as_ref().map_or(&[][..], InverseFactor::upper);
    let chunks = feedback::sweep(&mut swept, columns, upper, form.group, make);
    let hessian = match (second_moment, &factor, effort) {
        (Some(moment), Some(factor), Effort::Refined) => Some(damped(moment, factor.absolute_damping())),
        _ => None,
    };
    let per_row = columns / form.block;
    let rows: Vec<Vec<Codes>> = chunks
        .into_par_iter()
        .zip(values.par_chunks(feedback::ROWS_PER_CHUNK * columns))
        .map(|(chunk, values)| {
            let rows = values.len() / columns;
            let mut columns_first: Vec<Option<Codes>> = chunk.blocks.into_iter().map(Some).collect();
            let mut blocks = Vec::with_capacity(columns_first.len());
            for row in 0..rows {
                blocks.extend((0..per_row).filter_map(|block| columns_first[block * rows + row].take()));
            }
            if let Some(hessian) = &hessian {
                refine(form, columns, hessian, values, &mut blocks, rounding);
            }
            blocks
        })
        .collect();
    Ok(rows.into_iter().flatten().collect())
}

/// The factor of the inverse second moment; `None` where nothing is known of the inputs.
///
/// # Errors
/// A moment of another size, or one that has no factor.
pub(crate) fn factor(
    columns: usize,
    second_moment: Option<&Arc<SecondMoment>>,
) -> Result<Option<InverseFactor>, String> {
    match second_moment {
        None => Ok(None),
        Some(moment) if moment.dimension() != columns => {
            Err(format!("has {columns} columns, its second moment {}", moment.dimension()))
        }
        Some(moment) => match InverseFactor::new(moment, DAMPING) {
            Ok(factor) => Ok(Some(factor)),
            // No text reached these inputs.
            Err(FactorError::Empty { .. }) => Ok(None),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// What an error of each column costs, brought to a mean of one, so that sums stay in range.
pub(crate) fn costs(columns: usize, factor: Option<&InverseFactor>) -> Vec<f32> {
    let Some(factor) = factor else { return vec![1.0; columns] };
    let costs: Vec<f32> = factor.diagonal().iter().map(|&u| 1.0 / (u * u)).collect();
    let mean = costs.iter().map(|&cost| f64::from(cost)).sum::<f64>() / columns.max(1) as f64;
    costs.iter().map(|&cost| (f64::from(cost) / mean) as f32).collect()
}

/// The mean second moment with the damping that its factor has.
fn damped(moment: &SecondMoment, absolute_damping: f64) -> Vec<f32> {
    let (n, scale) = (moment.dimension(), 1.0 / moment.tokens().max(1) as f64);
    let mut hessian: Vec<f32> = moment.sum().iter().map(|&sum| (f64::from(sum) * scale) as f32).collect();
    (0..n).for_each(|i| hessian[i * n + i] += absolute_damping as f32);
    hessian
}
