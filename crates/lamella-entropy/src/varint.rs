//! Lengths in headers: 7 bits a byte, least significant first, at most ten bytes.

use crate::error::{Error, Result, corrupt};

/// Appends `value` in 1 to 10 bytes.
pub fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a number from the front of `input` and advances it.
///
/// # Errors
/// [`Error::Truncated`] where the input ends inside the number, [`Error::Corrupt`] where it does not fit 64 bits.
pub fn read_varint(input: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for index in 0..10 {
        let Some((&byte, rest)) = input.split_first() else {
            return Err(Error::Truncated { needed: index + 1, found: index });
        };
        *input = rest;
        let part = u64::from(byte & 0x7f);
        if index == 9 && part > 1 {
            return Err(corrupt("number longer than 64 bits"));
        }
        value |= part << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(corrupt("number longer than 64 bits"))
}

/// Splits `count` bytes off the front of `input`.
pub(crate) fn take<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    if count > input.len() {
        return Err(Error::Truncated { needed: count, found: input.len() });
    }
    let (head, tail) = input.split_at(count);
    *input = tail;
    Ok(head)
}
