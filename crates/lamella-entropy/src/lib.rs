//! Entropy models and coders: what turns small integers into few bytes, and back at the speed of memory.
//!
//! # Which should I use?
//! | you have | use | why |
//! |---|---|---|
//! | bytes with a skewed histogram | [`rans::encode`] | chooses table, precision and lanes; within about 0.1 % of the entropy |
//! | codes of a quantised matrix | [`integers::encode`] | a table per column class, parametric or learned, whichever is less in all |
//! | the same where every byte counts | [`context::encode`] | learns from neighbours; 50 to 100 times slower; gains nothing on i.i.d. codes |
//! | symbols and your own tables | [`rans::encode_payload`] | one table, a table per run, or one per symbol |
//! | probabilities that change with every symbol | [`range`] | adaptive bits and symbols, headers of a few bytes |
//! | a distribution known by name | [`models::Parametric`] | integer tables from committed constants, equal on every machine |
//! | fixed-width codes, random access | [`bits::pack`] | no model at all |
//! | geometric numbers, no room for a table | [`bits::golomb`] | |
//! | a foreign format, bits by hand | [`huffman`] | canonical, limited lengths |
//!
//! # What all of it keeps
//! * *Same input, same bytes*, on every machine, at every thread count, with every instruction set: the plain version
//!   of each coder defines the bytes, tables are made by integer arithmetic, and vector kernels are tested to agree.
//! * *Hostile bytes*: decoders never panic, and allocate only what the caller's limit or the input's length allows.
//!   They notice most damage, not all: checksums are the container's task.
//! * [`cpu::cpu_level`] finds the instruction set at run time; `LAMELLA_CPU=plain|avx2` lowers it.
//!
//! # Example
//! ```
//! use lamella_entropy::integers::{self, Columns};
//! // A matrix of 2 columns and 6 rows; the second column's codes are wider, and its class says so.
//! let codes = [0, 1, 0, -1, 0, 0, 4, -9, 2, 7, -3, 0];
//! let columns = Columns::new(&codes, 6, &[0, 1])?;
//! let models = integers::fit(&columns)?;
//! assert!(models.bits(0, 0) < models.bits(0, 1)); // rate-aware rounding asks this
//! let bytes = integers::encode_with(&columns, &models)?;
//! assert_eq!(integers::decode(&bytes, 6, &[0, 1], codes.len())?, codes);
//! # Ok::<(), lamella_entropy::Error>(())
//! ```

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
