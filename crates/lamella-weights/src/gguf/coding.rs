//! One array into one type's bytes, and back.

use std::sync::Arc;

use half::{bf16, f16};
use lamella_codec::{Array, ArraySpec, Dtype, TensorSource};
use lamella_io::{GgmlType, GgufSource};
use lamella_lm::{LinearSite, Model};
use lamella_math::SecondMoment;

use super::ExportError;
use super::solve::{Effort, quantize_with};

/// The linear that an array is the weight of.
pub(crate) fn site<'m>(model: &'m Model, array: &str) -> Option<&'m LinearSite> {
    model.network.linears().iter().find(|site| site.weight == array && !site.is_transposed)
}

/// A tensor's part as finite `f32`, rows in the source's order.
///
/// # Errors
/// An array that cannot be read, or a value that is not finite.
pub(super) fn read(
    source: &dyn TensorSource,
    tensor: &GgufSource,
    part: &str,
) -> Result<Vec<f32>, ExportError> {
    let values = source.array(part)?.to_f32()?;
    source.release(part);
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        let message = format!("holds a value that is not finite (number {index} of `{part}`)");
        return Err(ExportError::Tensor { tensor: tensor.name.clone(), message });
    }
    Ok(values)
}

/// A part's bytes in a type, rows in the order of `values`.
///
/// # Errors
/// Values that the type cannot hold, rows that are no whole blocks; the tensor is named.
pub(super) fn encode(
    tensor: &GgufSource,
    kind: GgmlType,
    values: &[f32],
    moment: Option<&Arc<SecondMoment>>,
    effort: Effort,
) -> Result<Vec<u8>, ExportError> {
    let refuse = |message: String| ExportError::Tensor { tensor: tensor.name.clone(), message };
    Ok(match kind {
        GgmlType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        GgmlType::F16 => {
            if let Some(value) = values.iter().find(|value| value.abs() > 65_504.0) {
                return Err(refuse(format!("holds {value:e}, more than an f16 can")));
            }
            values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
        }
        GgmlType::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        _ => {
            let columns = tensor.shape.last().copied().unwrap_or(0);
            quantize_with(values, columns, kind, moment, effort).map_err(refuse)?
        }
    })
}

/// What a part's bytes decode to, as an array under the part's name.
///
/// # Errors
/// Never for bytes that [`encode`] made of an array of this shape.
pub(super) fn decoded(
    name: &str,
    shape: &[usize],
    kind: GgmlType,
    bytes: &[u8],
) -> Result<Array<'static>, ExportError> {
    let spec = |dtype| ArraySpec::new(name, shape.to_vec(), dtype);
    Ok(match kind {
        GgmlType::F32 => Array::new(spec(Dtype::F32), bytes.to_vec())?,
        GgmlType::F16 => Array::new(spec(Dtype::F16), bytes.to_vec())?,
        GgmlType::BF16 => Array::new(spec(Dtype::BF16), bytes.to_vec())?,
        _ => Array::from_f32(spec(Dtype::F32), &kind.dequantize(bytes))?,
    })
}
