//! Codes for numbers without a table: Golomb, Rice, Exp-Golomb, Elias gamma and delta.
//!
//! | numbers | code |
//! |---|---|
//! | geometric with mean near `m / ln 2` | Golomb with divisor `m`; Rice where `m` is a power of two |
//! | heavy tails, unknown scale | Exp-Golomb of order `k` (a Rice code whose groups double) |
//! | positive, no idea at all | Elias gamma (`2 log2 n`), delta for large ones |
//!
//! Unary parts are ones ended by a zero; binary parts are least significant bit first.

use super::{BitReader, BitWriter};
use crate::error::{Error, Result, corrupt};

/// Quotients above this are refused by decoders (and escape in [`write_golomb`]'s callers' hands).
const UNARY_LIMIT: u32 = 1 << 16;

/// Writes `value` as quotient (unary) and remainder (truncated binary) by `divisor`.
///
/// # Errors
/// [`Error::OutOfRange`] for a divisor of zero or a quotient above 65,536: such numbers want another code.
pub fn write_golomb(writer: &mut BitWriter, value: u32, divisor: u32) -> Result<()> {
    if divisor == 0 || value / divisor > UNARY_LIMIT {
        return Err(Error::OutOfRange {
            name: "golomb divisor",
            found: i64::from(divisor),
            low: 1,
            high: i64::from(u32::MAX),
        });
    }
    writer.write_unary(value / divisor);
    let (remainder, width) = (value % divisor, remainder_width(divisor));
    // Truncated binary: the first `short` remainders take one bit less. The top bits go first, the last bit alone.
    let short = ((1u64 << width) - u64::from(divisor)) as u32;
    if width > 0 {
        if remainder < short {
            writer.write(remainder, width - 1);
        } else {
            let shifted = u64::from(remainder) + u64::from(short);
            writer.write((shifted >> 1) as u32, width - 1);
            writer.write((shifted & 1) as u32, 1);
        }
    }
    Ok(())
}

fn remainder_width(divisor: u32) -> u32 {
    32 - (divisor - 1).leading_zeros()
}

/// Reads what [`write_golomb`] wrote.
///
/// # Errors
/// [`Error::Truncated`], or [`Error::OutOfRange`] for a divisor of zero, a long quotient or a number above 32 bits.
pub fn read_golomb(reader: &mut BitReader<'_>, divisor: u32) -> Result<u32> {
    if divisor == 0 {
        return Err(Error::OutOfRange {
            name: "golomb divisor",
            found: 0,
            low: 1,
            high: i64::from(u32::MAX),
        });
    }
    let quotient = reader.read_unary(UNARY_LIMIT)?;
    let width = remainder_width(divisor);
    let short = (1u64 << width) - u64::from(divisor);
    let mut remainder = 0u64;
    if width > 0 {
        remainder = u64::from(reader.read(width - 1)?);
        if remainder >= short {
            remainder = (remainder << 1 | u64::from(reader.read(1)?)) - short;
        }
    }
    let value = u64::from(quotient) * u64::from(divisor) + remainder;
    u32::try_from(value).map_err(|_| corrupt("golomb number above 32 bits"))
}

/// Writes `value` with a Rice code of parameter `k`: Golomb with divisor `2^k`.
///
/// # Errors
/// As [`write_golomb`].
pub fn write_rice(writer: &mut BitWriter, value: u32, k: u32) -> Result<()> {
    write_golomb(writer, value, 1 << k.min(31))
}

/// Reads what [`write_rice`] wrote.
///
/// # Errors
/// As [`read_golomb`].
pub fn read_rice(reader: &mut BitReader<'_>, k: u32) -> Result<u32> {
    read_golomb(reader, 1 << k.min(31))
}

/// The Rice parameter for numbers with this sum: `floor(log2(mean * ln 2 + 0.97))` nearly, by integers.
pub fn rice_parameter(sum: u64, count: u64) -> u32 {
    if count == 0 {
        return 0;
    }
    let mean = sum.saturating_mul(44) / count.saturating_mul(64).max(1);
    (mean + 1).ilog2().min(31)
}

/// Writes `value` with an Exp-Golomb code of order `order` (at most 31): length in unary, then the digits.
pub fn write_exp_golomb(writer: &mut BitWriter, value: u32, order: u32) {
    let order = order.min(31);
    let number = (u64::from(value) >> order) + 1;
    let length = number.ilog2();
    writer.write_unary(length);
    writer.write((number & ((1 << length) - 1)) as u32, length);
    writer.write((u64::from(value) & ((1 << order) - 1)) as u32, order);
}

/// Reads what [`write_exp_golomb`] wrote.
///
/// # Errors
/// [`Error::Truncated`], or [`Error::OutOfRange`] and [`Error::Corrupt`] for numbers above 32 bits.
pub fn read_exp_golomb(reader: &mut BitReader<'_>, order: u32) -> Result<u32> {
    let order = order.min(31);
    let length = reader.read_unary(32)?;
    let number = (1u64 << length | u64::from(reader.read(length)?)) - 1;
    let low = u64::from(reader.read(order)?);
    let value = u128::from(number) << order | u128::from(low);
    u32::try_from(value).map_err(|_| corrupt("exp-golomb number above 32 bits"))
}

/// Bits that [`write_exp_golomb`] takes.
pub fn exp_golomb_bits(value: u32, order: u32) -> u32 {
    let order = order.min(31);
    2 * ((u64::from(value) >> order) + 1).ilog2() + 1 + order
}

/// Writes `value + 1` with the Elias gamma code.
pub fn write_gamma(writer: &mut BitWriter, value: u32) {
    write_exp_golomb(writer, value, 0);
}

/// Reads what [`write_gamma`] wrote.
///
/// # Errors
/// As [`read_exp_golomb`].
pub fn read_gamma(reader: &mut BitReader<'_>) -> Result<u32> {
    read_exp_golomb(reader, 0)
}

/// Writes `value + 1` with the Elias delta code: the length in gamma, then the digits.
pub fn write_delta(writer: &mut BitWriter, value: u32) {
    let number = u64::from(value) + 1;
    let length = number.ilog2();
    write_gamma(writer, length);
    writer.write((number & ((1 << length) - 1)) as u32, length);
}

/// Reads what [`write_delta`] wrote.
///
/// # Errors
/// As [`read_exp_golomb`].
pub fn read_delta(reader: &mut BitReader<'_>) -> Result<u32> {
    let length = read_gamma(reader)?;
    if length > 32 {
        return Err(Error::OutOfRange { name: "delta length", found: i64::from(length), low: 0, high: 32 });
    }
    let number = (1u64 << length | u64::from(reader.read(length)?)) - 1;
    u32::try_from(number).map_err(|_| corrupt("delta number above 32 bits"))
}

/// Folds signed numbers into unsigned ones: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
pub fn zigzag(value: i32) -> u32 {
    ((value as u32) << 1) ^ (value >> 31) as u32
}

/// Undoes [`zigzag`].
pub fn unzigzag(value: u32) -> i32 {
    (value >> 1) as i32 ^ -((value & 1) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_lengths() {
        assert_eq!(exp_golomb_bits(0, 0), 1);
        assert_eq!(exp_golomb_bits(1, 0), 3);
        assert_eq!(exp_golomb_bits(u32::MAX, 0), 65);
        assert_eq!(rice_parameter(0, 10), 0);
        assert_eq!(rice_parameter(1000, 10), 6);
        assert_eq!([0, -1, 1, i32::MIN, i32::MAX].map(zigzag), [0, 1, 2, u32::MAX, u32::MAX - 1]);
    }

    proptest! {
        #[test]
        fn every_code_returns(values in prop::collection::vec(any::<u32>().prop_flat_map(|v| (0u32..32).prop_map(move |s| v >> s)), 0..50),
                              order in 0u32..32, divisor in 1u32..) {
            let mut writer = BitWriter::new();
            let mut bits = 0;
            for &value in &values {
                write_exp_golomb(&mut writer, value, order);
                bits += exp_golomb_bits(value, order) as usize;
                prop_assert_eq!(writer.bits(), bits);
                write_gamma(&mut writer, value);
                write_delta(&mut writer, value);
                write_golomb(&mut writer, value % 60_000, divisor).unwrap();
                write_rice(&mut writer, value % 60_000, order).unwrap();
                prop_assert_eq!(unzigzag(zigzag(value as i32)), value as i32);
                bits = writer.bits();
            }
            let bytes = writer.finish();
            let mut reader = BitReader::new(&bytes);
            for &value in &values {
                prop_assert_eq!(read_exp_golomb(&mut reader, order).unwrap(), value);
                prop_assert_eq!(read_gamma(&mut reader).unwrap(), value);
                prop_assert_eq!(read_delta(&mut reader).unwrap(), value);
                prop_assert_eq!(read_golomb(&mut reader, divisor).unwrap(), value % 60_000);
                prop_assert_eq!(read_rice(&mut reader, order).unwrap(), value % 60_000);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40), parameter in any::<u32>()) {
            let mut reader = BitReader::new(&bytes);
            for _ in 0..20 {
                let _ = read_golomb(&mut reader, parameter);
                let _ = read_rice(&mut reader, parameter);
                let _ = read_exp_golomb(&mut reader, parameter);
                let _ = read_delta(&mut reader);
            }
        }
    }
}
