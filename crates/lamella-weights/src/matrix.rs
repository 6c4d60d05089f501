//! Reading a weight matrix for a codec, with the refusals all codecs share.

use lamella_codec::{Array, ArraySpec, CodecError, Dtype, Recipe, Refusal};

/// A weight matrix as solvers want it.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// `out_features`.
    pub rows: usize,
    /// `in_features`.
    pub columns: usize,
    /// Row-major values, all finite.
    pub values: Vec<f32>,
}

impl Matrix {
    /// The value of largest magnitude and its row and column: what errors about range name.
    pub fn largest(&self) -> (f32, usize, usize) {
        let larger =
            |best: (usize, f32), next: (usize, f32)| if next.1.abs() > best.1.abs() { next } else { best };
        let (index, value) = self.values.iter().copied().enumerate().fold((0, 0.0), larger);
        (value, index / self.columns.max(1), index % self.columns.max(1))
    }
}

/// The largest finite number of a type that `f32` values are rounded to: what reconstructions are clamped to.
pub fn largest_finite(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => 65_504.0,
        Dtype::BF16 => f32::from_bits(0x7f7f_0000),
        Dtype::F8E4M3 => 448.0,
        Dtype::F8E5M2 => 57_344.0,
        _ => f32::MAX,
    }
}

/// Values to an array of `spec`, clamped to its type's finite numbers.
///
/// # Errors
/// Another number of values than the spec has, or a type that is not a float.
pub fn clamped_array(spec: &ArraySpec, mut values: Vec<f32>) -> Result<Array<'static>, CodecError> {
    clamp(&mut values, spec.dtype);
    Ok(Array::from_f32(spec.clone(), &values)?)
}

/// Clamps values to the finite numbers of a type.
pub fn clamp(values: &mut [f32], dtype: Dtype) {
    let limit = largest_finite(dtype);
    values.iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
}

/// Whether an array is a weight matrix: floating point, two axes (or more, read as the first against the
/// others), at least one element.
///
/// # Errors
/// The reason why not, as a sentence without subject.
pub fn accepts_matrix(spec: &ArraySpec) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal { reason });
    if !spec.dtype.is_float() {
        return refuse(format!("holds {}, not floating-point numbers", spec.dtype.name()));
    }
    match spec.shape.len() {
        0 => return refuse("is a single number".to_owned()),
        1 => return refuse("has 1 axis, a weight matrix has 2".to_owned()),
        // A convolution's kernels: one row per output channel.
        _ => {}
    }
    if spec.is_empty() { refuse("is empty".to_owned()) } else { Ok(()) }
}

/// Reads an array that [`accepts_matrix`].
///
/// # Errors
/// A refused shape or dtype, or a value that is not finite (named by its position).
pub fn read_matrix(recipe: &Recipe, array: &Array<'_>) -> Result<Matrix, CodecError> {
    let refused =
        |refusal| CodecError::Refused { recipe: recipe.to_string(), array: array.spec.name.clone(), refusal };
    accepts_matrix(&array.spec).map_err(refused)?;
    let Some((rows, columns)) = array.spec.matrix() else {
        return Err(refused(Refusal { reason: "has not 2 axes".to_owned() }));
    };
    let values = array.to_f32()?;
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        let position = vec![index / columns, index % columns];
        return Err(CodecError::NonFinite { array: array.spec.name.clone(), position });
    }
    Ok(Matrix { rows, columns, values })
}

/// The one layer of a codec that has only one.
///
/// # Errors
/// No layer, or more than one.
pub fn single_layer<'a>(spec: &ArraySpec, layers: &[&'a [u8]]) -> Result<&'a [u8], CodecError> {
    match layers {
        [layer] => Ok(layer),
        _ => Err(damaged(spec, 0, format!("this recipe writes 1 layer, found {}", layers.len()))),
    }
}

/// A damaged layer of `spec`.
pub fn damaged(spec: &ArraySpec, layer: usize, message: impl Into<String>) -> CodecError {
    CodecError::Damaged { array: spec.name.clone(), layer, message: message.into() }
}

/// The error of a codec with grids whose scales are 16-bit floats, where the array's values need more.
pub fn out_of_range(spec: &ArraySpec, matrix: &Matrix, message: &str) -> CodecError {
    let (value, row, column) = matrix.largest();
    CodecError::Solver {
        array: spec.name.clone(),
        message: format!("{message}; its largest value is {value:e} at [{row}, {column}]"),
    }
}
