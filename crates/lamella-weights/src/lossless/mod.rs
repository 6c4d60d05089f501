//! Lossless coding: every bit of every file comes back.
//!
//! ```text
//! fields.rs   a word into symbol, head and low planes (vector loops)
//! stream.rs   one stream of bytes: raw, constant, or rANS under a table per class of rows or columns
//! choice.rs   which of these, by measured size
//! vector.rs   loops compiled for the machine's vectors
//! pages.rs    large buffers on large pages
//! planes.rs   the stored form: blocks that decode by themselves        what the recipe `exact` writes
//! delta.rs    an array as its difference to a base model's             `exact(base=…)`
//! files.rs    whole directories, byte for byte                         `compress --lossless`, `expand`
//! ```
//!
//! # What to expect
//! A bf16 checkpoint shrinks to about 66 % (the exponents have about 2.6 bits, sign and mantissa are noise), f32 to
//! about 83 %, f16 to about 85 %, 8-bit floats to about 80 to 90 %. A fine-tuned model beside its base takes about a
//! third of that again.

mod choice;
mod delta;
mod fields;
mod files;
mod pages;
mod planes;
mod stream;
mod vector;

pub use delta::{decode_delta, encode_delta};
pub use files::{LosslessError, LosslessReport, compress, expand, is_lossless};
pub use planes::{BLOCK_ELEMENTS, Planes, encode};

/// Why streams could not be read (or, hardly, written).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A coder's own complaint.
    #[error(transparent)]
    Coder(#[from] lamella_entropy::Error),
    /// The payload contradicts itself or the spec.
    #[error("{0}")]
    Damaged(String),
    /// There is not so much memory.
    #[error("{bytes} bytes of memory are not to be had")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
    },
}
