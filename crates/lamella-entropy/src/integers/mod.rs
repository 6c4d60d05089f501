//! Signed integers of quantised matrices, coded column by column with a model per column class.
//!
//! The columns of a quantised weight matrix differ in spread, and the decoder knows a *class* for each from the side
//! information (the ratio of spread to step, say). Every class gets its own model, and models cost bits, so each is the
//! cheapest of:
//!
//! * *parametric*: a shape, a scale and a dead zone, about two bytes ([`crate::models::Parametric`]);
//! * *learned*: the same plus the differences of a measured table to it, with as many digits as pay
//!   ([`crate::models::header`]);
//! * *shared* with neighbouring classes, where one table for both is cheaper than two;
//! * *zero*: a class whose codes are all zero costs one bit and no payload.
//!
//! Large codes escape: a symbol for "outside", then sign and Exp-Golomb. Very wide codes keep their lowest bits raw.
//! Symbols are coded with [`crate::rans`]; a 64 x 64 tensor at 2.4 bits pays about ten bytes for everything.
//!
//! # Use
//! ```
//! use lamella_entropy::integers::{self, Columns};
//! // Two columns of four codes; the second is of another class.
//! let codes = [0, 1, -1, 0, 5, -7, 3, 900];
//! let columns = Columns::new(&codes, 4, &[0, 1])?;
//! let bytes = integers::encode(&columns)?;
//! assert_eq!(integers::decode(&bytes, 4, &[0, 1], 8)?, codes);
//! # Ok::<(), lamella_entropy::Error>(())
//! ```
//! For rate-aware rounding [`fit`] a model to codes of a first pass and ask [`FittedModels::code_lengths`].
//!
//! # Bytes
//! Header length (varint), header (range coded: lanes, flag for raw bits, models, which class uses which), where the
//! flag is set the length of the rANS payload (varint), the payload, the raw bits. Nothing at all for no codes.

mod counts;
mod fit;
mod header;
mod stream;

pub use fit::{FittedModels, Model};
pub use stream::{decode, encode, encode_with};

use crate::error::{Error, Result};

/// Codes of a matrix, column after column, with the class of each column.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    codes: &'a [i32],
    column_length: usize,
    classes: &'a [u8],
}

impl<'a> Columns<'a> {
    /// `codes` holds `classes.len()` columns of `column_length` codes each.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where the product is not the number of codes.
    pub fn new(codes: &'a [i32], column_length: usize, classes: &'a [u8]) -> Result<Self> {
        match column_length.checked_mul(classes.len()) {
            Some(expected) if expected == codes.len() => Ok(Self { codes, column_length, classes }),
            expected => Err(Error::LengthMismatch {
                name: "codes",
                found: codes.len(),
                expected: expected.unwrap_or(usize::MAX),
            }),
        }
    }

    /// The codes, column after column.
    pub fn codes(&self) -> &'a [i32] {
        self.codes
    }

    /// Codes per column.
    pub fn column_length(&self) -> usize {
        self.column_length
    }

    /// The class of each column.
    pub fn classes(&self) -> &'a [u8] {
        self.classes
    }

    /// Class and codes of each column in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &'a [i32])> + use<'a> {
        let (codes, length) = (self.codes, self.column_length);
        self.classes
            .iter()
            .enumerate()
            .map(move |(index, &class)| (class, &codes[index * length..(index + 1) * length]))
    }
}

/// Models for these columns, chosen so that models and codes together are least.
///
/// # Errors
/// None for valid columns; the type leaves room.
pub fn fit(columns: &Columns<'_>) -> Result<FittedModels> {
    fit::fit(columns, fit::Effort::Full)
}

/// About how many bits [`encode`] takes, without building bytes: learned tables are estimated, not tried.
///
/// # Errors
/// As [`fit`].
pub fn estimate_bits(columns: &Columns<'_>) -> Result<f64> {
    Ok(fit::fit(columns, fit::Effort::Estimate)?.estimated_bits())
}

/// Bits per code under the models [`fit`] would choose with estimated tables: for rate-aware rounding inside a sweep.
///
/// # Errors
/// As [`fit`].
pub fn code_lengths(columns: &Columns<'_>) -> Result<FittedModels> {
    fit::fit(columns, fit::Effort::Estimate)
}

#[cfg(test)]
mod tests;
