//! One codec on one array.

use std::sync::Arc;

use lamella::codec::{self, Knowledge, Rate, Recipe};
use lamella::math::SecondMoment;
use numpy::{IntoPyArray, PyArray1};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{raise, usage};
use crate::file::{array_of, spec_of};

/// What a recipe names.
#[pyclass(frozen, module = "lamella._lamella")]
pub(crate) struct Codec {
    codec: Arc<dyn codec::Codec>,
}

/// A layer: payload and the distortion once it is applied.
type Layer<'py> = (Bound<'py, PyBytes>, f64);

#[pymethods]
impl Codec {
    #[new]
    fn new(recipe: &str) -> PyResult<Self> {
        let recipe: Recipe = recipe.parse().map_err(|error: codec::RecipeError| raise(&error))?;
        let codec = lamella::catalogue().codec(&recipe).map_err(|error| raise(&error))?;
        Ok(Self { codec })
    }

    /// The recipe with every argument that a decoder needs.
    fn recipe(&self) -> String {
        self.codec.recipe().to_string()
    }

    /// Whether a step chooses the rate.
    fn has_free_rate(&self) -> bool {
        self.codec.has_free_rate()
    }

    /// Layers of an array, and the distortion of storing nothing. `second_moment` is the mean of `x x^T` over the
    /// inputs, `[in_features, in_features]` row-major.
    #[pyo3(signature = (name, shape, dtype, bytes, second_moment, step))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        shape: Vec<usize>,
        dtype: &str,
        bytes: PyBuffer<u8>,
        second_moment: Option<PyBuffer<f32>>,
        step: Option<f64>,
    ) -> PyResult<(Vec<Layer<'py>>, f64)> {
        let array = array_of(spec_of(name, shape, dtype)?, bytes.to_vec(py)?)?;
        let knowledge = match second_moment {
            Some(moment) => {
                let moment = moment.to_vec(py)?;
                let dimension = moment.len().isqrt();
                let moment = SecondMoment::from_sum(dimension, 1, moment)
                    .ok_or_else(|| usage("`second_moment` is not a square matrix"))?;
                Knowledge::of_inputs(Arc::new(moment))
            }
            None => Knowledge::default(),
        };
        let rate = match step {
            Some(step) if step > 0.0 && step.is_finite() => Rate::Step(step),
            Some(step) => return Err(usage(format!("`step` is {step}; it takes a number above 0"))),
            None => Rate::Recipe,
        };
        let encoded = py
            .detach(|| {
                self.codec.accepts(&array.spec).map_err(|refusal| codec::CodecError::Refused {
                    recipe: self.codec.recipe().to_string(),
                    array: array.spec.name.clone(),
                    refusal,
                })?;
                self.codec.encode(&array, &knowledge, rate)
            })
            .map_err(|error| raise(&error))?;
        let layers = encoded.layers.iter();
        let layers = layers.map(|layer| (PyBytes::new(py, &layer.payload), layer.distortion)).collect();
        Ok((layers, encoded.distortion_of_zeros))
    }

    /// The little-endian bytes of an array from a prefix of its layers.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        shape: Vec<usize>,
        dtype: &str,
        layers: Vec<Vec<u8>>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let spec = spec_of(name, shape, dtype)?;
        let decoded = py.detach(|| {
            let layers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
            self.codec.decode(&spec, &layers)
        });
        Ok(decoded.map_err(|error| raise(&error))?.bytes.into_owned().into_pyarray(py))
    }
}
