//! The contracts of Lamella: arrays, codecs, layers, recipes and the catalogue.
//!
//! Everything above this floor talks in these few types:
//!
//! * an [`Array`] is named n-dimensional numbers in some [`Dtype`];
//! * a [`Recipe`] is the text that names a composition: `gptq(bits=3, group_size=128)`;
//! * a [`Codec`] turns an array, with what is [known](Knowledge) of its use, into [layers](Encoded)
//!   and layers back into an array;
//! * a [`TensorSource`] hands out arrays by name: a checkpoint directory, an open `.lam` file, a map in memory;
//! * the [`Catalogue`] lists every system and every codec; it is built at the roof from each wing's plain
//!   list and handed down, so no floor below knows a wing.
//!
//! # Which type do I implement?
//! A new way to store a weight: [`Codec`]. A new checkpoint format: [`TensorSource`]. A published system: a
//! [`System`] value in its wing's `systems.rs`.
//!
//! ```
//! use lamella_codec::{Array, ArraySpec, Dtype};
//! let spec = ArraySpec::new("w", vec![2, 2], Dtype::BF16);
//! let array = Array::from_f32(spec, &[1.0, -2.0, 0.5, 3.0]).unwrap();
//! assert_eq!(array.bytes.len(), 8);
//! assert_eq!(array.to_f32().unwrap(), vec![1.0, -2.0, 0.5, 3.0]);
//! ```

mod array;
mod catalogue;
mod codec;
mod dtype;
mod progress;
mod recipe;
mod source;
pub mod suite;

pub use array::{Array, ArrayError, ArraySpec};
pub use catalogue::{
    Catalogue, CatalogueError, Claim, ClaimContext, ClaimSize, Measure, Registration, System, Wing,
};
pub use codec::{
    Codec, CodecError, CodedLinear, Encoded, EncodedLayer, GrowingArray, Knowledge, Point, Rate, Refusal,
};
pub use dtype::Dtype;
pub use progress::{Interrupted, Progress, Silent};
pub use recipe::{GRAMMAR_VERSION, Recipe, RecipeError, Value};
pub use source::{SourceError, TensorMap, TensorSource};
