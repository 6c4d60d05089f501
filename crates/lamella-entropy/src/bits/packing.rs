//! Arrays of integers of one width, without gaps.
//!
//! Element `i` of width `w` occupies the bits `i * w` to `i * w + w - 1`, least significant first within each byte.

use crate::error::{Error, Result};

/// Bytes that `count` elements of `width` bits take.
pub fn packed_bytes(count: usize, width: u32) -> usize {
    (count as u128 * u128::from(width)).div_ceil(8) as usize
}

fn check_width(width: u32) -> Result<()> {
    if (1..=16).contains(&width) {
        return Ok(());
    }
    Err(Error::OutOfRange { name: "width", found: i64::from(width), low: 1, high: 16 })
}

/// Packs values of `width` bits (1 to 16).
///
/// # Errors
/// [`Error::OutOfRange`] for a width outside 1 to 16 or a value that does not fit.
pub fn pack(values: &[u16], width: u32) -> Result<Vec<u8>> {
    check_width(width)?;
    if let Some(&large) = values.iter().find(|&&value| u32::from(value) >> width != 0) {
        return Err(Error::OutOfRange {
            name: "value",
            found: i64::from(large),
            low: 0,
            high: (1 << width) - 1,
        });
    }
    let mut bytes = Vec::with_capacity(packed_bytes(values.len(), width) + 8);
    // Eight elements fill exactly `width` bytes, so blocks of eight are independent.
    for block in values.chunks(8) {
        let mut bits = 0u128;
        for (index, &value) in block.iter().enumerate() {
            bits |= u128::from(value) << (index as u32 * width);
        }
        let count = packed_bytes(block.len(), width);
        bytes.extend_from_slice(&bits.to_le_bytes()[..count]);
    }
    Ok(bytes)
}

/// Unpacks `count` values from the whole of `bytes`.
///
/// # Errors
/// [`Error::OutOfRange`] for a width outside 1 to 16, [`Error::LengthMismatch`] where `bytes` is not exactly as long as
/// `count` values need (checked before anything is allocated).
pub fn unpack(bytes: &[u8], width: u32, count: usize) -> Result<Vec<u16>> {
    check_width(width)?;
    let expected = packed_bytes(count, width);
    if bytes.len() != expected {
        return Err(Error::LengthMismatch { name: "packed bytes", found: bytes.len(), expected });
    }
    let mut values = vec![0u16; count];
    let mask = (1u32 << width) - 1;
    for (block, out) in bytes.chunks(width as usize).zip(values.chunks_mut(8)) {
        let mut raw = [0u8; 16];
        raw[..block.len()].copy_from_slice(block);
        let bits = u128::from_le_bytes(raw);
        for (index, value) in out.iter_mut().enumerate() {
            *value = ((bits >> (index as u32 * width)) as u32 & mask) as u16;
        }
    }
    Ok(values)
}

/// Element `index` alone; `None` beyond the bytes or for a width outside 1 to 16.
pub fn unpack_at(bytes: &[u8], width: u32, index: usize) -> Option<u16> {
    check_width(width).ok()?;
    let first = index.checked_mul(width as usize)?;
    let mut value = 0u32;
    let last_byte = (first + width as usize - 1) / 8;
    for (shift, position) in (first / 8..=last_byte).enumerate() {
        value |= u32::from(*bytes.get(position)?) << (8 * shift);
    }
    Some((value >> (first % 8) & ((1 << width) - 1)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn three_bit_values_lie_where_the_definition_says() {
        assert_eq!(pack(&[1, 2, 3], 3).unwrap(), [0b1101_0001, 0]);
        assert_eq!(unpack(&[0b1101_0001, 0], 3, 3).unwrap(), [1, 2, 3]);
        assert!(pack(&[8], 3).is_err());
        assert!(unpack(&[0], 3, 3).is_err());
    }

    proptest! {
        #[test]
        fn every_width_returns(values in prop::collection::vec(any::<u16>(), 0..100), width in 1u32..17) {
            let values: Vec<u16> = values.iter().map(|&v| (u32::from(v) & ((1u32 << width) - 1)) as u16).collect();
            let bytes = pack(&values, width).unwrap();
            prop_assert_eq!(bytes.len(), packed_bytes(values.len(), width));
            prop_assert_eq!(&unpack(&bytes, width, values.len()).unwrap(), &values);
            for (index, &value) in values.iter().enumerate() {
                prop_assert_eq!(unpack_at(&bytes, width, index), Some(value));
            }
        }
    }
}
