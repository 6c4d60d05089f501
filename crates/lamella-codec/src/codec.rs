//! The one contract of every codec: array in, layers out.

use std::sync::Arc;

use lamella_math::SecondMoment;

use crate::{Array, ArrayError, ArraySpec, Recipe};

/// What is known of an array's use when it is encoded. Decoders never see it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Knowledge {
    /// Second moment of the inputs the array multiplies, `[in_features, in_features]`.
    pub second_moment: Option<Arc<SecondMoment>>,
    /// How often each row is used (an embedding's token counts), `[out_features]`; any scale.
    pub row_usage: Option<Arc<Vec<f64>>>,
    /// Rows of each of the arrays that this one stacks, none where it is no stack.
    pub stacked_rows: Vec<usize>,
    /// Change of the task's loss per unit of this array's distortion; 1 where nothing is known.
    pub sensitivity: Option<f64>,
}

impl Knowledge {
    /// Knowledge of nothing but the inputs' second moment.
    pub fn of_inputs(second_moment: Arc<SecondMoment>) -> Self {
        Self { second_moment: Some(second_moment), ..Self::default() }
    }
}

/// How much an encoder may spend.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Rate {
    /// What the recipe's own arguments say (`rtn(bits=3)`).
    Recipe,
    /// The step of a free-rate codec, relative to the array's own scale: larger is smaller and worse. Codecs
    /// define the scale so that equal steps are a sensible uniform allocation over a network's arrays.
    Step(f64),
}

/// A point an encoder can reach: bytes stored, distortion caused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// The rate that reaches it.
    pub rate: Rate,
    /// Bytes of all layers.
    pub bytes: f64,
    /// Hessian-weighted squared error `trace((W-V) H (W-V)^T)` where the second moment `H` is known, else squared
    /// error.
    pub distortion: f64,
}

/// One refinement of an array.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedLayer {
    /// Parameters and codes, in the recipe's own format.
    pub payload: Vec<u8>,
    /// Distortion once this layer is applied, in the unit of [`Point::distortion`].
    pub distortion: f64,
    /// Whether the payload wants to be memory-mapped (64-byte alignment in the file).
    pub is_mapped: bool,
}

/// What an encoder returns: at least one layer. The first makes the array decodable, the others refine it.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Refinements in the order a decoder applies them.
    pub layers: Vec<EncodedLayer>,
    /// Distortion if nothing were stored (the array read as zeros).
    pub distortion_of_zeros: f64,
}

impl Encoded {
    /// One layer that holds everything.
    pub fn single(payload: Vec<u8>, distortion: f64, distortion_of_zeros: f64) -> Self {
        Self { layers: vec![EncodedLayer { payload, distortion, is_mapped: false }], distortion_of_zeros }
    }
    /// Bytes of all layers.
    pub fn size_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.payload.len()).sum()
    }
}

/// Why a codec does not treat an array; the array then stays exact and the reason is reported.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// A sentence without subject: "has 1 axis, a weight matrix has 2".
    pub reason: String,
}

/// Why an array could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The array's numbers could not be read.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// The codec does not treat such arrays.
    #[error("`{recipe}` cannot treat array `{array}`: {refusal}")]
    Refused {
        /// Recipe text.
        recipe: String,
        /// Array.
        array: String,
        /// Why.
        refusal: Refusal,
    },
    /// An element is NaN or infinite.
    #[error("array `{array}` holds values that are not finite (first at {position:?})")]
    NonFinite {
        /// Array.
        array: String,
        /// Index of the first one, one number per axis.
        position: Vec<usize>,
    },
    /// A solver failed; the message names the numbers involved.
    #[error("array `{array}` could not be solved: {message}")]
    Solver {
        /// Array.
        array: String,
        /// What failed.
        message: String,
    },
    /// A layer's payload ends early, is too long or contradicts itself.
    #[error("layer {layer} of array `{array}` is damaged: {message}")]
    Damaged {
        /// Array.
        array: String,
        /// Ordinal of the layer within the array.
        layer: usize,
        /// What does not fit.
        message: String,
    },
    /// The recipe's arguments are out of range.
    #[error("recipe `{recipe}`: {message}")]
    BadRecipe {
        /// Recipe text.
        recipe: String,
        /// Field, value and range.
        message: String,
    },
}

/// A linear module (or a table of embeddings) on its coded form: multiplies without expanding the weight.
///
/// Implementations give the same bits at any thread count.
pub trait CodedLinear: Send + Sync {
    /// `outputs[t, column + o] = sum_i inputs[t, i] * weight[o, i]`, rows of `outputs` `stride` apart.
    fn apply(&self, inputs: &[f32], tokens: usize, outputs: &mut [f32], stride: usize, column: usize);
    /// Adds row `index` of the weight to `target`: what an embedding table does, and a tied head's weight with it.
    fn add_row(&self, index: usize, target: &mut [f32]);
    /// Bytes the linear keeps in memory.
    fn resident_bytes(&self) -> usize;
}

/// An array that grows in memory: layers are added, and what is there can be read at any time.
///
/// Equal layers give equal bits, in whatever steps they came. Between steps it is kept in a form (integers) in which
/// adding a layer costs what the layer holds, not what all before it hold.
pub trait GrowingArray: Send + Sync {
    /// Layers applied so far, at least one.
    fn n_layers(&self) -> usize;
    /// Applies the next layer.
    ///
    /// # Errors
    /// A damaged payload; the array is then of no more use.
    fn apply(&mut self, layer: &[u8]) -> Result<(), CodecError>;
    /// The array as [`Codec::decode`] gives it for the layers so far.
    ///
    /// # Errors
    /// None for layers that were applied; the type leaves room.
    fn array(&self) -> Result<Array<'static>, CodecError>;
}

/// Turns an array into layers and layers into an array.
///
/// Encoding is deterministic: same array, knowledge and rate, same bytes at any thread count. Decoding needs
/// nothing but the spec and the layers, allocates no more than the spec's own size plus a multiple of the
/// payload, and never panics on hostile bytes.
pub trait Codec: Send + Sync {
    /// The recipe this codec was built from, with every argument that the decoder needs.
    fn recipe(&self) -> &Recipe;

    /// Whether [`Rate::Step`] chooses this codec's rate.
    fn has_free_rate(&self) -> bool {
        false
    }

    /// Whether [`Knowledge::second_moment`] changes what this codec writes: a pipeline then takes statistics first.
    fn uses_second_moment(&self) -> bool {
        self.has_free_rate()
    }

    /// Whether matrices with the same inputs are to be stacked into one: what is stored of the inputs is then stored
    /// once.
    fn stacks(&self) -> bool {
        false
    }

    /// Bytes of all layers of such an array, where they follow from its shape alone.
    fn stored_bytes(&self, _spec: &ArraySpec) -> Option<u64> {
        None
    }

    /// Whether this codec treats such an array.
    ///
    /// # Errors
    /// The reason why not.
    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal>;

    /// Encodes at one rate.
    ///
    /// # Errors
    /// Non-finite numbers, a refused shape, a solver that fails.
    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, rate: Rate) -> Result<Encoded, CodecError>;

    /// Predicts bytes and distortion at each of `rates` without coding the whole array (a fixed sample of rows
    /// may do). The default encodes.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    fn estimate(
        &self,
        array: &Array<'_>,
        knowledge: &Knowledge,
        rates: &[Rate],
    ) -> Result<Vec<Point>, CodecError> {
        rates
            .iter()
            .map(|&rate| {
                let encoded = self.encode(array, knowledge, rate)?;
                let distortion =
                    encoded.layers.last().map_or(encoded.distortion_of_zeros, |layer| layer.distortion);
                Ok(Point { rate, bytes: encoded.size_bytes() as f64, distortion })
            })
            .collect()
    }

    /// Decodes a prefix of an array's layers (at least the first).
    ///
    /// # Errors
    /// Damaged payloads.
    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError>;

    /// Begins an array that further layers can be added to; `None` (the default) where each prefix is decoded anew.
    ///
    /// # Errors
    /// A damaged payload.
    fn begin(&self, _spec: &ArraySpec, _first: &[u8]) -> Result<Option<Box<dyn GrowingArray>>, CodecError> {
        Ok(None)
    }

    /// The array as a linear that multiplies on its coded form, where the recipe says so; `None` (the default) where
    /// it is to be decoded. Never holds the whole array in floats.
    ///
    /// # Errors
    /// Damaged payloads.
    fn execute(
        &self,
        _spec: &ArraySpec,
        _layers: &[&[u8]],
    ) -> Result<Option<Arc<dyn CodedLinear>>, CodecError> {
        Ok(None)
    }
}
