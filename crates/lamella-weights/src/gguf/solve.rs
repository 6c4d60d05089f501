//! From a matrix and its inputs' second moment to the bytes of a tensor.

use std::sync::Arc;

use lamella_io::{BlockForm, GgmlType};
use lamella_math::{FactorError, InverseFactor, SecondMoment};
use lamella_quant::feedback;

use super::sweep::BlockQuantizer;

/// Damping of the second moment, of its mean diagonal.
const DAMPING: f64 = 0.01;

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
    let form = kind.block_form().ok_or_else(|| format!("is not quantised into {}", kind.name()))?;
    if columns == 0 || !columns.is_multiple_of(form.block) || !values.len().is_multiple_of(columns) {
        return Err(format!("has rows of {columns}, no whole blocks of {}", form.block));
    }
    let factor = match second_moment {
        None => None,
        Some(moment) if moment.dimension() != columns => {
            return Err(format!("has {columns} columns, its second moment {}", moment.dimension()));
        }
        Some(moment) => match InverseFactor::new(moment, DAMPING) {
            Ok(factor) => Some(factor),
            // No text reached these inputs.
            Err(FactorError::Empty { .. }) => None,
            Err(error) => return Err(error.to_string()),
        },
    };
    let (upper, costs) = match &factor {
        Some(factor) => {
            let diagonal = factor.diagonal();
            (Some(factor.upper()), diagonal.iter().map(|&u| 1.0 / (u * u)).collect::<Vec<f32>>())
        }
        None => (None, vec![1.0; columns]),
    };
    // Costs of very different size are brought to a mean of one, so that sums stay in range.
    let mean = costs.iter().map(|&cost| f64::from(cost)).sum::<f64>() / columns as f64;
    let costs: Vec<f32> = costs.iter().map(|&cost| (f64::from(cost) / mean) as f32).collect();
    let mut swept = values.to_vec();
    let make = |_first: usize, rows: usize| BlockQuantizer::new(form, &costs, rows);
    let chunks = match upper {
        Some(upper) => feedback::sweep(&mut swept, columns, upper, form.group, make),
        None => {
            let mut identity = vec![0.0; columns * columns];
            (0..columns).for_each(|i| identity[i * columns + i] = 1.0);
            feedback::sweep(&mut swept, columns, &identity, form.group, make)
        }
    };
    Ok(pack(&form, columns, &chunks))
}

fn pack(form: &BlockForm, columns: usize, chunks: &[BlockQuantizer<'_>]) -> Vec<u8> {
    let per_row = columns / form.block;
    let mut out = Vec::new();
    for chunk in chunks {
        let rows = chunk.blocks.len() / per_row.max(1);
        for row in 0..rows {
            for block in 0..per_row {
                form.pack(&chunk.blocks[block * rows + row], &mut out);
            }
        }
    }
    out
}
