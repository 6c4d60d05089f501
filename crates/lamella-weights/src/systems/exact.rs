//! `exact`: every bit kept, losslessly coded.
//!
//! # Idea
//! The bytes of a float say different things: sign and exponent are few symbols, the low mantissa bits are noise.
//! Each byte position of the elements is a plane of its own, coded with a table of its own where that pays and
//! stored as it is where it does not.
//!
//! # Stored form
//! One plane after the other, lowest byte first: a length (variable-length integer) and the plane, a
//! self-contained rANS array ([`lamella_entropy::rans`]) of one symbol per element.
//!
//! # Cost
//! One pass. Never more than the raw bytes plus a few per plane.
//!
//! # When to choose it
//! Norms, biases, and whatever `--keep` names.

use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Encoded, Knowledge, Rate, Recipe, Refusal, Registration,
};
use lamella_entropy::{rans, varint};

use crate::distortion::weighted_energy;
use crate::matrix::{damaged, single_layer};

/// `exact`.
#[derive(Debug, Clone)]
pub struct Exact {
    recipe: Recipe,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "exact",
        summary: "keep every bit, losslessly coded",
        arguments: &[],
        build: |recipe| {
            recipe.reject_unknown(&[])?;
            Ok(Arc::new(Exact { recipe: recipe.clone() }))
        },
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
        let width = array.spec.dtype.size_bytes();
        let mut payload = Vec::new();
        for plane in 0..width {
            let symbols: Vec<u8> = array.bytes.iter().skip(plane).step_by(width).copied().collect();
            let coded = rans::encode(&symbols).map_err(|error| CodecError::Solver {
                array: array.spec.name.clone(),
                message: error.to_string(),
            })?;
            varint::write_varint(&mut payload, coded.len() as u64);
            payload.extend_from_slice(&coded);
        }
        let columns = array.spec.shape.last().copied().unwrap_or(1);
        let energy = match array.to_f32() {
            Ok(values) if values.iter().all(|value| value.is_finite()) => {
                weighted_energy(&values, columns, knowledge)
            }
            _ => 0.0,
        };
        Ok(Encoded::single(payload, 0.0, energy))
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let mut rest = single_layer(spec, layers)?;
        let width = spec.dtype.size_bytes();
        let size = spec.checked_size_bytes().ok_or_else(|| damaged(spec, 0, "the shape overflows"))?;
        let mut planes = Vec::with_capacity(width);
        for _ in 0..width {
            let length = varint::read_varint(&mut rest).map_err(|error| damaged(spec, 0, error.to_string()))?;
            let (plane, later) = usize::try_from(length)
                .ok()
                .and_then(|length| rest.split_at_checked(length))
                .ok_or_else(|| damaged(spec, 0, format!("a plane needs {length} bytes, found {}", rest.len())))?;
            rest = later;
            planes.push(
                rans::decode(plane, size / width).map_err(|error| damaged(spec, 0, error.to_string()))?,
            );
        }
        if !rest.is_empty() {
            return Err(damaged(spec, 0, format!("{} bytes are left over", rest.len())));
        }
        let mut bytes = vec![0u8; size];
        for (plane, symbols) in planes.iter().enumerate() {
            for (element, &symbol) in symbols.iter().enumerate() {
                bytes[element * width + plane] = symbol;
            }
        }
        Ok(Array::new(spec.clone(), bytes)?)
    }
}
