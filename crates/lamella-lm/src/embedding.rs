//! Tables that are looked up by token, and the pooling of rows into one vector per text.

use std::sync::Arc;

use lamella_codec::{Array, ArraySpec, CodedLinear, TensorSource};
use serde_json::Value;

use crate::elementwise::{add, dot};
use crate::hidden::Hidden;
use crate::{LmError, fields::Fields};

/// A lookup table: whole in memory, in coded form, or read from its source row by row.
#[derive(Clone)]
pub(crate) enum Table<'a> {
    Resident(Arc<Vec<f32>>),
    Coded(Arc<dyn CodedLinear>),
    Stored(Array<'a>),
}

impl<'a> Table<'a> {
    /// Opens a table of `rows` rows of `width` features where it lies.
    pub(crate) fn open(
        source: &'a dyn TensorSource,
        name: &str,
        (rows, width): (usize, usize),
    ) -> Result<Self, LmError> {
        let array = source.array(name)?;
        if array.spec.shape != [rows, width] {
            return Err(LmError::Shape {
                name: name.to_owned(),
                expected: vec![rows, width],
                found: array.spec.shape,
            });
        }
        Ok(Self::Stored(array))
    }

    /// Bytes in memory.
    pub(crate) fn resident_bytes(&self) -> usize {
        match self {
            Self::Resident(numbers) => size_of_val(&numbers[..]),
            Self::Coded(operator) => operator.resident_bytes(),
            Self::Stored(_) => 0,
        }
    }

    /// Adds row `index` to `target`.
    ///
    /// # Panics
    /// Where there is no such row; callers check against the table's shape.
    pub(crate) fn add_row(&self, index: usize, target: &mut [f32]) -> Result<(), LmError> {
        let width = target.len();
        match self {
            Self::Resident(numbers) => add(target, &numbers[index * width..][..width]),
            Self::Coded(operator) => operator.add_row(index, target),
            Self::Stored(array) => {
                let dtype = array.spec.dtype;
                let row_bytes = width * dtype.size_bytes();
                let bytes = &array.bytes[index * row_bytes..][..row_bytes];
                let row = Array::new(ArraySpec::new(array.spec.name.clone(), vec![width], dtype), bytes)?;
                add(target, &row.to_f32()?);
            }
        }
        Ok(())
    }
}

/// How an encoder's rows become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Pooling {
    /// Mean over all tokens.
    #[default]
    Mean,
    /// The first token's row.
    First,
    /// Largest value of every feature.
    Max,
}

impl Pooling {
    /// Reads `1_Pooling/config.json` of a sentence-transformers directory.
    ///
    /// # Errors
    /// [`LmError::Config`] where it asks for another kind, or for several.
    pub fn from_json(config: &Value) -> Result<Self, LmError> {
        let fields = Fields(config);
        let mut chosen = Vec::new();
        for (field, kind) in [
            ("pooling_mode_mean_tokens", Some(Self::Mean)),
            ("pooling_mode_cls_token", Some(Self::First)),
            ("pooling_mode_max_tokens", Some(Self::Max)),
            ("pooling_mode_mean_sqrt_len_tokens", None),
            ("pooling_mode_weightedmean_tokens", None),
            ("pooling_mode_lasttoken", None),
        ] {
            if fields.flag_or(field, false)? {
                chosen.push((field, kind));
            }
        }
        match (&chosen[..], fields.text("pooling_mode")) {
            ([(_, Some(kind))], _) => Ok(*kind),
            ([], None | Some("mean")) => Ok(Self::Mean),
            ([], Some("cls")) => Ok(Self::First),
            ([], Some("max")) => Ok(Self::Max),
            (found, text) => Err(LmError::Config {
                field: found.first().map_or("pooling_mode", |(field, _)| field).to_owned(),
                message: format!(
                    "{} is not built (one of mean, cls and max is)",
                    text.map_or_else(|| format!("a pooling of {} kinds", found.len()), str::to_owned)
                ),
            }),
        }
    }

    /// One vector of unit norm per sequence (zeros for an empty one).
    pub(crate) fn pool(self, hidden: &Hidden) -> Vec<Vec<f32>> {
        (0..hidden.n_sequences())
            .map(|sequence| {
                let rows = hidden.sequence(sequence);
                let mut vector = vec![0.0f32; hidden.hidden_size];
                for token in rows.clone() {
                    let row = hidden.row(token);
                    match self {
                        Self::Mean => add(&mut vector, row),
                        Self::First if token == rows.start => vector.copy_from_slice(row),
                        Self::First => break,
                        Self::Max if token == rows.start => vector.copy_from_slice(row),
                        Self::Max => vector.iter_mut().zip(row).for_each(|(x, y)| *x = x.max(*y)),
                    }
                }
                let length = dot(&vector, &vector).sqrt();
                if length > 0.0 {
                    vector.iter_mut().for_each(|x| *x /= length);
                }
                vector
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pooling_is_read_and_refused_by_name() {
        let mean = json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false});
        assert_eq!(Pooling::from_json(&mean).unwrap(), Pooling::Mean);
        assert_eq!(Pooling::from_json(&json!({"pooling_mode_cls_token": true})).unwrap(), Pooling::First);
        let error = Pooling::from_json(&json!({"pooling_mode_lasttoken": true})).unwrap_err();
        assert!(error.to_string().contains("pooling_mode_lasttoken"));
    }
}
