//! A progressive array between its layers, as the codec's decoder and models that read on hold it.

use lamella_codec::{Array, ArraySpec, CodecError, GrowingArray};

use super::form::shape;
use super::state::State;
use crate::matrix::{damaged, largest_finite};

/// A progressive array that takes in layers.
pub struct Growing {
    spec: ArraySpec,
    state: State,
    n_layers: usize,
}

impl Growing {
    /// From a first layer.
    ///
    /// # Errors
    /// A spec without such a form, or a damaged payload.
    pub fn begin(spec: &ArraySpec, first: &[u8]) -> Result<Self, CodecError> {
        let (rows, columns) =
            shape(spec).ok_or_else(|| damaged(spec, 0, "such an array has no progressive form"))?;
        let state = State::read(first, rows, columns).map_err(|message| damaged(spec, 0, message))?;
        Ok(Self { spec: spec.clone(), state, n_layers: 1 })
    }
}

impl GrowingArray for Growing {
    fn n_layers(&self) -> usize {
        self.n_layers
    }

    fn apply(&mut self, layer: &[u8]) -> Result<(), CodecError> {
        self.state.apply(layer).map_err(|message| damaged(&self.spec, self.n_layers, message))?;
        self.n_layers += 1;
        Ok(())
    }

    fn array(&self) -> Result<Array<'static>, CodecError> {
        let values = self.state.values(largest_finite(self.spec.dtype));
        Ok(Array::from_f32(self.spec.clone(), &values)?)
    }
}
