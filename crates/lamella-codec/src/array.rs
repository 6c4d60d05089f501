//! Named n-dimensional numbers.

use std::borrow::Cow;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::Dtype;

/// What an array is, without its numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArraySpec {
    /// Whole name, `model.layers.0.mlp.up_proj.weight` for instance.
    pub name: String,
    /// Extents, slowest axis first. A linear weight is `[out_features, in_features]`. Empty for a scalar.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
}

impl ArraySpec {
    /// Names an array.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, dtype: Dtype) -> Self {
        Self { name: name.into(), shape, dtype }
    }
    /// Number of elements, or `None` where the product of the extents overflows.
    pub fn checked_len(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))
    }
    /// Number of elements (saturating: a spec from hostile bytes goes through [`ArraySpec::checked_len`] first).
    pub fn len(&self) -> usize {
        self.checked_len().unwrap_or(usize::MAX)
    }
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of the array in its own dtype, or `None` on overflow.
    pub fn checked_size_bytes(&self) -> Option<usize> {
        self.checked_len()?.checked_mul(self.dtype.size_bytes())
    }
    /// `(rows, columns)` of an array read as a weight matrix: `(out_features, in_features)` of two axes; of more
    /// (a convolution's kernels) the first axis and all others together. `None` for fewer than two axes.
    pub fn matrix(&self) -> Option<(usize, usize)> {
        match &self.shape[..] {
            [rows, rest @ ..] if !rest.is_empty() => {
                let columns = rest.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?;
                rows.checked_mul(columns)?;
                Some((*rows, columns))
            }
            _ => None,
        }
    }
}

/// Why numbers could not be read from or written into an array.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum ArrayError {
    /// The bytes do not fill the shape.
    #[error("array `{name}` of shape {shape:?} needs {needed} bytes, found {found}")]
    Length {
        /// Array.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes the shape asks for.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
    /// Elements are not floating-point numbers.
    #[error("array `{name}` holds {dtype}, not floating-point numbers")]
    NotFloat {
        /// Array.
        name: String,
        /// Its element type.
        dtype: &'static str,
    },
}

/// An array: what it is and its little-endian bytes in row-major order, borrowed (memory-mapped) or owned.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<'a> {
    /// Name, shape, dtype.
    pub spec: ArraySpec,
    /// Little-endian elements, row-major.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Array<'a> {
    /// An array over existing bytes.
    ///
    /// # Errors
    /// [`ArrayError::Length`] where the bytes do not fill the shape exactly.
    pub fn new(spec: ArraySpec, bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self, ArrayError> {
        let bytes = bytes.into();
        let needed = spec.checked_size_bytes().unwrap_or(usize::MAX);
        if needed != bytes.len() {
            return Err(ArrayError::Length {
                name: spec.name,
                shape: spec.shape,
                needed,
                found: bytes.len(),
            });
        }
        Ok(Self { spec, bytes })
    }

    /// An owned copy of `values`, rounded to nearest (ties to even) in the spec's float type.
    ///
    /// # Errors
    /// Wrong length, or a dtype that is not a float.
    pub fn from_f32(spec: ArraySpec, values: &[f32]) -> Result<Array<'static>, ArrayError> {
        let mut bytes = Vec::with_capacity(values.len() * spec.dtype.size_bytes());
        match spec.dtype {
            Dtype::F64 => values.iter().for_each(|&v| bytes.extend_from_slice(&f64::from(v).to_le_bytes())),
            Dtype::F32 => values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes())),
            Dtype::F16 => {
                values.iter().for_each(|&v| bytes.extend_from_slice(&f16::from_f32(v).to_le_bytes()))
            }
            Dtype::BF16 => {
                values.iter().for_each(|&v| bytes.extend_from_slice(&bf16::from_f32(v).to_le_bytes()))
            }
            Dtype::F8E4M3 => values.iter().for_each(|&v| bytes.push(float8::from_f32(v, float8::E4M3))),
            Dtype::F8E5M2 => values.iter().for_each(|&v| bytes.push(float8::from_f32(v, float8::E5M2))),
            other => {
                return Err(ArrayError::NotFloat { name: spec.name, dtype: other.name() });
            }
        }
        Array::new(spec, bytes)
    }

    /// The elements as `f32`, row-major. `F64` rounds to nearest; all other floats are exact.
    ///
    /// # Errors
    /// [`ArrayError::NotFloat`] for integer types.
    pub fn to_f32(&self) -> Result<Vec<f32>, ArrayError> {
        let bytes = &self.bytes[..];
        Ok(match self.spec.dtype {
            Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => {
                bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
            }
            Dtype::F8E4M3 => bytes.iter().map(|&b| float8::to_f32(b, float8::E4M3)).collect(),
            Dtype::F8E5M2 => bytes.iter().map(|&b| float8::to_f32(b, float8::E5M2)).collect(),
            other => {
                return Err(ArrayError::NotFloat { name: self.spec.name.clone(), dtype: other.name() });
            }
        })
    }

    /// The same array with its bytes owned.
    pub fn into_owned(self) -> Array<'static> {
        Array { spec: self.spec, bytes: Cow::Owned(self.bytes.into_owned()) }
    }

    /// Position of the first element that is NaN or infinite, or `None` (also for integer types).
    pub fn first_non_finite(&self) -> Option<usize> {
        // In chunks: an array may be larger than the memory its `f32` copy would need.
        const ELEMENTS: usize = 1 << 16;
        let width = self.spec.dtype.size_bytes();
        self.bytes.chunks(ELEMENTS * width).enumerate().find_map(|(chunk, bytes)| {
            let spec = ArraySpec::new("", vec![bytes.len() / width], self.spec.dtype);
            let values = Array::new(spec, bytes).ok()?.to_f32().ok()?;
            values.iter().position(|value| !value.is_finite()).map(|index| chunk * ELEMENTS + index)
        })
    }
}

/// Eight-bit floats as machine-learning checkpoints store them.
mod float8 {
    /// Exponent bits, mantissa bits, bias and whether the top exponent is kept for infinities (`E5M2`) or only
    /// the all-ones pattern is NaN (`E4M3`, the "fn" variant).
    #[derive(Clone, Copy)]
    pub(super) struct Layout {
        mantissa_bits: u32,
        bias: i32,
        has_infinity: bool,
    }
    pub(super) const E4M3: Layout = Layout { mantissa_bits: 3, bias: 7, has_infinity: false };
    pub(super) const E5M2: Layout = Layout { mantissa_bits: 2, bias: 15, has_infinity: true };

    pub(super) fn to_f32(byte: u8, layout: Layout) -> f32 {
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        let magnitude = u32::from(byte & 0x7f);
        let exponent = (magnitude >> layout.mantissa_bits) as i32;
        let mantissa = magnitude & ((1 << layout.mantissa_bits) - 1);
        let top = 0x7f >> layout.mantissa_bits;
        if layout.has_infinity && exponent == top {
            return if mantissa == 0 { sign * f32::INFINITY } else { f32::NAN };
        }
        if !layout.has_infinity && magnitude == 0x7f {
            return f32::NAN;
        }
        let unit = 2.0f32.powi(-(layout.mantissa_bits as i32));
        if exponent == 0 {
            sign * mantissa as f32 * unit * 2.0f32.powi(1 - layout.bias)
        } else {
            sign * (1.0 + mantissa as f32 * unit) * 2.0f32.powi(exponent - layout.bias)
        }
    }

    /// Nearest representable value, ties to the even code; beyond the range: infinity where the layout has one,
    /// NaN otherwise, as the usual frameworks do.
    pub(super) fn from_f32(value: f32, layout: Layout) -> u8 {
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        if value.is_nan() {
            return sign | 0x7f;
        }
        let magnitude = value.abs();
        let (mut low, mut high) = (0u8, if layout.has_infinity { 0x7b } else { 0x7e });
        let largest = to_f32(high, layout);
        let half_step = (largest - to_f32(high - 1, layout)) / 2.0;
        if magnitude >= largest + half_step {
            return sign | if layout.has_infinity { 0x7c } else { 0x7f };
        }
        // Codes of one sign are ordered as their values are, so the nearest is found by bisection.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if to_f32(middle, layout) <= magnitude { low = middle } else { high = middle }
        }
        let (below, above) = (magnitude - to_f32(low, layout), to_f32(high, layout) - magnitude);
        let code = match below.partial_cmp(&above) {
            Some(std::cmp::Ordering::Less) => low,
            Some(std::cmp::Ordering::Greater) => high,
            _ => low + (low & 1),
        };
        sign | code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_return_to_their_codes() {
        for dtype in [Dtype::F8E4M3, Dtype::F8E5M2] {
            for code in 0u8..=255 {
                let array = Array::new(ArraySpec::new("x", vec![1], dtype), vec![code]).unwrap();
                let value = array.to_f32().unwrap()[0];
                if value.is_nan() {
                    continue;
                }
                let back = Array::from_f32(ArraySpec::new("x", vec![1], dtype), &[value]).unwrap();
                assert_eq!(back.bytes[0], code, "{value}");
            }
        }
    }

    #[test]
    fn wrong_length_is_an_error_with_numbers() {
        let error = Array::new(ArraySpec::new("w", vec![3], Dtype::F32), vec![0u8; 11]).unwrap_err();
        assert_eq!(error.to_string(), "array `w` of shape [3] needs 12 bytes, found 11");
    }
}
