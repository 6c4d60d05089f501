//! `exact`: every bit kept, losslessly coded.
//!
//! # Idea
//! The bits of a float say different things: exponents are few symbols, sign and mantissa are close to noise. Each is
//! a stream of its own, coded where that pays and stored as it is where it does not. What is a fine-tuned copy of a
//! known base model is coded as its difference to that (`exact(base=…)`), at about a third of the size.
//!
//! # Stored form
//! [`crate::lossless`]: streams in blocks of 2^18 elements, each decodable by itself.
//!
//! # Cost
//! Two passes, at the speed of memory. Never more than the raw bytes plus a few per stream and block.
//!
//! # When to choose it
//! Norms, biases, whatever `--keep` names, and whole models with `--lossless`.

use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Encoded, Knowledge, Rate, Recipe, Refusal, Registration,
    TensorSource,
};

use crate::distortion::weighted_energy;
use crate::lossless::{self, Planes, decode_delta, encode_delta};
use crate::matrix::{damaged, single_layer};

/// `exact`.
#[derive(Clone)]
pub struct Exact {
    recipe: Recipe,
    base: Option<Arc<dyn TensorSource>>,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "exact",
        summary: "keep every bit, losslessly coded",
        arguments: &[(
            "base",
            "none",
            "the content hash of the model that this one is stored as the difference to; set by `--base`",
        )],
        build: |recipe| {
            recipe.reject_unknown(&["base"])?;
            Ok(Arc::new(Exact { recipe: recipe.clone(), base: None }))
        },
    }
}

impl std::fmt::Debug for Exact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exact({})", self.recipe)
    }
}

impl Exact {
    /// The codec of `exact(base=…)` with its base at hand, which the caller has checked by its hash.
    pub fn with_base(recipe: Recipe, base: Arc<dyn TensorSource>) -> Self {
        Self { recipe, base: Some(base) }
    }

    fn base_of(&self, spec: &ArraySpec) -> Result<Array<'_>, CodecError> {
        let failed = |message: String| CodecError::Solver { array: spec.name.clone(), message };
        let base = self.base.as_ref().ok_or_else(|| {
            failed(
                "it is stored as the difference to a base model; `lamella expand --base DIR` reads it"
                    .to_owned(),
            )
        })?;
        base.array(&spec.name).map_err(|error| failed(format!("the base does not give it: {error}")))
    }
}

impl Codec for Exact {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn accepts(&self, _spec: &ArraySpec) -> Result<(), Refusal> {
        Ok(())
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, _rate: Rate) -> Result<Encoded, CodecError> {
        let failed = |error: lossless::StreamError| CodecError::Solver {
            array: array.spec.name.clone(),
            message: error.to_string(),
        };
        let payload = match self.recipe.get("base") {
            Some(_) => {
                encode_delta(array, &self.base_of(&array.spec)?).map_err(failed)?.ok_or_else(|| {
                    CodecError::Refused {
                        recipe: self.recipe.to_string(),
                        array: array.spec.name.clone(),
                        refusal: Refusal {
                            reason: "has another shape or type than the base's array".to_owned(),
                        },
                    }
                })?
            }
            None => lossless::encode(&array.spec, &array.bytes).map_err(failed)?,
        };
        // Inputs may be several trailing axes taken together.
        let inputs = knowledge.second_moment.as_ref().map(|moment| moment.dimension());
        let columns = inputs
            .filter(|&inputs| inputs > 0 && array.spec.len().is_multiple_of(inputs))
            .unwrap_or(array.spec.shape.last().copied().unwrap_or(1));
        let energy = match array.to_f32() {
            Ok(values) if values.iter().all(|value| value.is_finite()) => {
                weighted_energy(&values, columns, knowledge)
            }
            _ => 0.0,
        };
        Ok(Encoded::single(payload, 0.0, energy))
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let payload = single_layer(spec, layers)?;
        let bytes = match self.recipe.get("base") {
            Some(_) => decode_delta(spec, payload, &self.base_of(spec)?),
            None => Planes::parse(spec, payload).and_then(|planes| planes.decode()),
        };
        Ok(Array::new(spec.clone(), bytes.map_err(|error| damaged(spec, 0, error.to_string()))?)?)
    }
}
