//! Reading a weight matrix for a codec, with the refusals all codecs share.

use lamella_codec::{Array, ArraySpec, CodecError, Recipe, Refusal};

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

/// Whether an array is a weight matrix: floating point, two axes, at least one element.
///
/// # Errors
/// The reason why not, as a sentence without subject.
pub fn accepts_matrix(spec: &ArraySpec) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal { reason });
    if !spec.dtype.is_float() {
        return refuse(format!("holds {}, not floating-point numbers", spec.dtype.name()));
    }
    match spec.shape.len() {
        2 => {}
        1 => return refuse("has 1 axis, a weight matrix has 2".to_owned()),
        axes => return refuse(format!("has {axes} axes, a weight matrix has 2")),
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
