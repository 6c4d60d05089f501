//! The one error type of this crate: small, with numbers, so that callers can add where it happened.

use thiserror::Error;

/// What can go wrong while coding or, more often, while decoding hostile bytes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The input ended before the decoder was done.
    #[error("input ends early: {needed} bytes needed, {found} found")]
    Truncated {
        /// Bytes the decoder needed at least.
        needed: usize,
        /// Bytes there were.
        found: usize,
    },
    /// The bytes contradict themselves (a final state, a padding or a length is wrong).
    #[error("corrupt {what}")]
    Corrupt {
        /// Which check failed.
        what: &'static str,
    },
    /// Frequencies that do not sum to a power of two or leave the allowed range.
    #[error("frequencies sum to {sum}, expected {expected}")]
    BadFrequencies {
        /// The sum found.
        sum: u64,
        /// The sum a table of this precision needs.
        expected: u64,
    },
    /// A parameter lies outside its range.
    #[error("{name} is {found}, allowed are {low} to {high}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// The value found.
        found: i64,
        /// Least allowed value.
        low: i64,
        /// Greatest allowed value.
        high: i64,
    },
    /// A symbol has no place in the table it is to be coded with.
    #[error("symbol {symbol} at position {position} has frequency zero in its table")]
    UncodableSymbol {
        /// The symbol.
        symbol: u32,
        /// Its position in the input.
        position: usize,
    },
    /// The output would be longer than the caller allows.
    #[error("output has {needed} elements, the caller allows {allowed}")]
    OutputTooLarge {
        /// Elements the input declares.
        needed: u64,
        /// Elements the caller allows.
        allowed: u64,
    },
    /// Lengths that must agree do not.
    #[error("{name} has length {found}, expected {expected}")]
    LengthMismatch {
        /// Which argument.
        name: &'static str,
        /// The length found.
        found: usize,
        /// The length expected.
        expected: usize,
    },
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn corrupt(what: &'static str) -> Error {
    Error::Corrupt { what }
}
