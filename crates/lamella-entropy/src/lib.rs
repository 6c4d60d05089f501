//! Entropy models and coders: rANS, range coding, Huffman, Golomb-Rice, bit packing.

pub mod bits;
pub mod context;
pub mod cpu;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod huffman;
pub mod integers;
pub mod models;
pub mod range;
pub mod rans;
pub mod varint;

pub use error::{Error, Result};
