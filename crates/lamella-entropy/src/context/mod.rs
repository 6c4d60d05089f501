//! Context coding of quantised matrices: no tables, probabilities from the neighbours.
//!
//! Static tables ([`crate::integers`]) know a code's column class. More is known: what is left of it in its row (some
//! outputs are larger than others), what is above it in its column, and how the column has gone so far. Here every
//! code is cut into binary decisions (zero or not, more than one or not, ...); six learners predict each decision from
//! different neighbours, a mixture in the logistic domain weighs them, and an adaptive range coder codes it.
//!
//! It is 50 to 100 times slower than rANS both ways (5 to 20 million codes a second) and pays where bytes are dear.
//! Measure both; `cargo run --release --example code_symbols FILE` does.
//!
//! # Definition
//! Integers only, so all machines agree. Columns in order, rows from first to last.
//! 1. *Column mean* (8 fractional bits): `(24 * class_mean + 256 * sum of |code| so far) / (24 + rows so far)`, where
//!    `class_mean` moves an eighth towards each finished column's mean (the first of a class takes the mean of all).
//! 2. *Row factor*: `(6 * 256 + S) / (6 * 256 + T)`, `S` the sum of `256 |code| * 256 / (mean + 128)` over earlier
//!    columns, `T` that of `mean * 256 / (mean + 128)`, `mean` a finished column's.
//! 3. *Expected magnitude*: their product. Where it is 8 or more its lowest bits `ilog2 - 2` are coded raw.
//! 4. *Decisions* on the magnitude that remains: is it above 0, 1, ..., 14, by mixture; the rest adaptive Golomb.
//! 5. *Sign*: a learner chosen by the signs to the left and above.
//!
//! ```
//! use lamella_entropy::context;
//! use lamella_entropy::integers::Columns;
//! let codes: Vec<i32> = (0..4000).map(|i| (i * i % 7) % 3 - 1).collect();
//! let bytes = context::encode(&Columns::new(&codes, 1000, &[0; 4])?);
//! assert_eq!(context::decode(&bytes, 1000, &[0; 4], 4000)?, codes);
//! # Ok::<(), lamella_entropy::Error>(())
//! ```
//! Source: the mixing of predictions in the logistic domain is M. Mahoney's (PAQ, 2005).

mod logistic;
mod mixing;
mod model;

use crate::error::{Error, Result, corrupt};
use crate::integers::Columns;
use crate::range::{AdaptiveGolomb, RangeDecoder, RangeEncoder};
use model::Model;

/// Where bits go to or come from.
trait Coder {
    fn bit(&mut self, bit: bool, probability_of_one: u16) -> bool;
    fn raw(&mut self, value: u32, width: u32) -> u32;
    fn golomb(&mut self, model: &mut AdaptiveGolomb, value: u32) -> u32;
}

impl Coder for RangeEncoder {
    fn bit(&mut self, bit: bool, probability_of_one: u16) -> bool {
        self.encode_bit(bit, probability_of_one);
        bit
    }

    fn raw(&mut self, value: u32, width: u32) -> u32 {
        self.encode_raw(value, width);
        value
    }

    fn golomb(&mut self, model: &mut AdaptiveGolomb, value: u32) -> u32 {
        model.encode(self, value);
        value
    }
}

impl Coder for RangeDecoder<'_> {
    fn bit(&mut self, _: bool, probability_of_one: u16) -> bool {
        self.decode_bit(probability_of_one)
    }

    fn raw(&mut self, _: u32, width: u32) -> u32 {
        self.decode_raw(width)
    }

    fn golomb(&mut self, model: &mut AdaptiveGolomb, _: u32) -> u32 {
        model.decode(self)
    }
}

/// Codes columns under adaptive contexts.
pub fn encode(columns: &Columns<'_>) -> Vec<u8> {
    let mut encoder = RangeEncoder::new();
    let mut model = Model::new(columns.column_length());
    for (class, codes) in columns.iter() {
        model.begin_column(class);
        for &code in codes {
            model.code(&mut encoder, code);
        }
        model.end_column();
    }
    encoder.finish()
}

/// Decodes the codes of `classes.len()` columns of `column_length` codes, in column order.
///
/// # Errors
/// [`Error::OutputTooLarge`] above `max_output`; [`Error::Truncated`] where the decoder runs past the end of the input
/// (checked every 1,024 codes, so time and memory are bounded by the input's length); [`Error::Corrupt`] for bytes
/// after the end.
pub fn decode(bytes: &[u8], column_length: usize, classes: &[u8], max_output: usize) -> Result<Vec<i32>> {
    let needed = column_length as u128 * classes.len() as u128;
    if needed > max_output as u128 {
        let needed = u64::try_from(needed).unwrap_or(u64::MAX);
        return Err(Error::OutputTooLarge { needed, allowed: max_output as u64 });
    }
    let mut decoder = RangeDecoder::new(bytes);
    let mut codes = Vec::new();
    let mut model = Model::new(column_length);
    for &class in classes {
        model.begin_column(class);
        for row in 0..column_length {
            codes.push(model.code(&mut decoder, 0));
            if row % 1024 == 1023 {
                check_end(&decoder, bytes)?;
            }
        }
        model.end_column();
        check_end(&decoder, bytes)?;
    }
    if decoder.unread() > 0 {
        return Err(corrupt("bytes left over"));
    }
    Ok(codes)
}

fn check_end(decoder: &RangeDecoder<'_>, bytes: &[u8]) -> Result<()> {
    if decoder.overrun() > 4 {
        return Err(Error::Truncated { needed: bytes.len() + 1, found: bytes.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
