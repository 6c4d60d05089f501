//! Reading a weight matrix for a codec, with the refusals all codecs share.

use std::ops::Range;

use lamella_codec::{Array, ArraySpec, CodecError, Dtype, Recipe, Refusal};
use lamella_quant::sweep::{RowSource, strips};

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

/// The rows of an array, read when they are needed: a large matrix is never in memory whole.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRows<'a> {
    array: &'a Array<'a>,
    rows: usize,
    columns: usize,
}

impl<'a> MatrixRows<'a> {
    /// The rows of an array that [`accepts_matrix`], all of whose values are finite.
    ///
    /// # Errors
    /// As [`read_matrix`].
    pub fn new(recipe: &Recipe, array: &'a Array<'a>) -> Result<Self, CodecError> {
        let (rows, columns) = shape(recipe, array)?;
        let new = Self { array, rows, columns };
        for strip in strips(rows, columns) {
            check_finite(array, &new.read(strip.clone()), strip.start, columns)?;
        }
        Ok(new)
    }

    /// Some rows as a matrix of their own.
    pub fn picked(&self, rows: &[usize]) -> Matrix {
        let values = rows.iter().flat_map(|&row| self.read(row..row + 1)).collect();
        Matrix { rows: rows.len(), columns: self.columns, values }
    }
}

impl RowSource for MatrixRows<'_> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn columns(&self) -> usize {
        self.columns
    }
    fn read(&self, rows: Range<usize>) -> Vec<f32> {
        let row_bytes = self.columns * self.array.spec.dtype.size_bytes();
        let spec = ArraySpec::new("", vec![rows.len(), self.columns], self.array.spec.dtype);
        let bytes = &self.array.bytes[rows.start * row_bytes..rows.end * row_bytes];
        // `new` has seen that these are floats and fill the shape: there is no error left.
        Array::new(spec, bytes).and_then(|rows| rows.to_f32()).unwrap_or_default()
    }
}

impl RowSource for Matrix {
    fn rows(&self) -> usize {
        self.rows
    }
    fn columns(&self) -> usize {
        self.columns
    }
    fn read(&self, rows: Range<usize>) -> Vec<f32> {
        self.values[rows.start * self.columns..rows.end * self.columns].to_vec()
    }
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
    let (rows, columns) = shape(recipe, array)?;
    let values = array.to_f32()?;
    check_finite(array, &values, 0, columns)?;
    Ok(Matrix { rows, columns, values })
}

fn shape(recipe: &Recipe, array: &Array<'_>) -> Result<(usize, usize), CodecError> {
    let refused =
        |refusal| CodecError::Refused { recipe: recipe.to_string(), array: array.spec.name.clone(), refusal };
    accepts_matrix(&array.spec).map_err(refused)?;
    array.spec.matrix().ok_or_else(|| refused(Refusal { reason: "has not 2 axes".to_owned() }))
}

fn check_finite(
    array: &Array<'_>,
    values: &[f32],
    first_row: usize,
    columns: usize,
) -> Result<(), CodecError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let position = vec![first_row + index / columns, index % columns];
            Err(CodecError::NonFinite { array: array.spec.name.clone(), position })
        }
    }
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
