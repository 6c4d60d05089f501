//! A stream of bits, least significant first.

use crate::error::{Error, Result};

/// Appends bits to bytes.
#[derive(Debug, Clone, Default)]
pub struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    count: u32,
}

impl BitWriter {
    /// Nothing written.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the low `width` bits (at most 32) of `value`.
    pub fn write(&mut self, value: u32, width: u32) {
        let width = width.min(32);
        let value = u64::from(value) & ((1 << width) - 1);
        self.pending |= value << self.count;
        self.count += width;
        while self.count >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    /// Appends `count` ones and a zero.
    pub fn write_unary(&mut self, count: u32) {
        for _ in 0..count / 32 {
            self.write(u32::MAX, 32);
        }
        let rest = count % 32;
        self.write(((1u64 << rest) - 1) as u32, rest);
        self.write(0, 1);
    }

    /// Bits written.
    pub fn bits(&self) -> usize {
        8 * self.bytes.len() + self.count as usize
    }

    /// The bytes, the last one filled with zeros.
    pub fn finish(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.bytes.push(self.pending as u8);
        }
        self.bytes
    }
}

/// Reads what [`BitWriter`] wrote.
#[derive(Debug, Clone)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
    pending: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    /// At the first bit of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, pending: 0, count: 0 }
    }

    fn fill(&mut self) {
        while self.count <= 56 && self.position < self.bytes.len() {
            self.pending |= u64::from(self.bytes[self.position]) << self.count;
            self.position += 1;
            self.count += 8;
        }
    }

    /// Reads `width` bits, at most 32.
    ///
    /// # Errors
    /// [`Error::Truncated`] where fewer are left.
    pub fn read(&mut self, width: u32) -> Result<u32> {
        let width = width.min(32);
        if self.count < width {
            self.fill();
            if self.count < width {
                return Err(Error::Truncated { needed: self.position + 1, found: self.bytes.len() });
            }
        }
        let value = self.pending & ((1 << width) - 1);
        self.pending >>= width;
        self.count -= width;
        Ok(value as u32)
    }

    /// The next `width` bits (at most 32) without taking them; zeros beyond the end.
    pub fn peek(&mut self, width: u32) -> u32 {
        let width = width.min(32);
        if self.count < width {
            self.fill();
        }
        (self.pending & ((1 << width) - 1)) as u32
    }

    /// Reads ones up to a zero, at most `limit` of them.
    ///
    /// # Errors
    /// [`Error::Truncated`] where no zero comes, [`Error::OutOfRange`] beyond `limit`.
    pub fn read_unary(&mut self, limit: u32) -> Result<u32> {
        let mut total = 0u32;
        loop {
            if self.count == 0 {
                self.fill();
                if self.count == 0 {
                    return Err(Error::Truncated { needed: self.position + 1, found: self.bytes.len() });
                }
            }
            let ones = self.pending.trailing_ones().min(self.count);
            total = total.saturating_add(ones);
            if total > limit {
                return Err(Error::OutOfRange {
                    name: "unary length",
                    found: i64::from(total),
                    low: 0,
                    high: i64::from(limit),
                });
            }
            if ones < self.count {
                self.pending = self.pending >> ones >> 1;
                self.count -= ones + 1;
                return Ok(total);
            }
            self.pending = 0;
            self.count = 0;
        }
    }

    /// Bits not yet read, padding included.
    pub fn remaining_bits(&self) -> usize {
        8 * (self.bytes.len() - self.position) + self.count as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_return(fields in prop::collection::vec((any::<u32>(), 0u32..33, 0u32..100), 0..200)) {
            let mut writer = BitWriter::new();
            for &(value, width, unary) in &fields {
                writer.write(value, width);
                writer.write_unary(unary);
            }
            let bits = writer.bits();
            let bytes = writer.finish();
            prop_assert_eq!(bytes.len(), bits.div_ceil(8));
            let mut reader = BitReader::new(&bytes);
            for &(value, width, unary) in &fields {
                prop_assert_eq!(u64::from(reader.read(width).unwrap()), u64::from(value) & ((1u64 << width) - 1));
                prop_assert_eq!(reader.read_unary(100).unwrap(), unary);
            }
            prop_assert!(reader.remaining_bits() < 8);
            prop_assert!(reader.read(8).is_err());
        }
    }
}
