//! Frequencies laid out for coding: one packed 32-bit entry per slot to decode, one reciprocal per symbol to encode.

use super::search::SearchTable;
use crate::error::{Error, Result};
use crate::models::Frequencies;

/// Decoding tables of one stream, all of one precision, back to back: table `t` starts at entry `t << bits`.
///
/// The entry of a slot holds the symbol in bits 0 to 7, its frequency in bits 8 to 19 and the slot's distance from the
/// start of the symbol's interval in bits 20 to 31. A 12-bit table is 16 KiB and fits the first-level cache.
#[derive(Debug, Clone)]
pub struct DecodeTables {
    pub(super) entries: Vec<u32>,
    pub(super) probability_bits: u32,
    count: usize,
    searched: Vec<SearchTable>,
}

impl DecodeTables {
    /// Lays out `tables`.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where there is none or their precisions differ.
    pub fn new(tables: &[Frequencies]) -> Result<Self> {
        let probability_bits = common_precision(tables)?;
        let mut entries = Vec::with_capacity(tables.len() << probability_bits);
        for table in tables {
            for (symbol, &frequency) in table.as_slice().iter().enumerate() {
                let base = symbol as u32 | u32::from(frequency) << 8;
                entries.extend((0..u32::from(frequency)).map(|offset| base | offset << 20));
            }
        }
        let searched = tables.iter().map(SearchTable::new).collect::<Option<_>>().unwrap_or_default();
        Ok(Self { entries, probability_bits, count: tables.len(), searched })
    }

    /// Number of tables.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The tables laid out for search; none where one of them has too many symbols.
    pub(super) fn searched(&self) -> &[SearchTable] {
        &self.searched
    }
}

/// What the encoder needs of one symbol.
///
/// `x / frequency` is `(x * reciprocal + (x << 32)) >> (32 + shift)` in 64 bits: with `shift = ceil(log2 f)` and
/// `reciprocal = ceil(2^(32 + shift) / f) - 2^32` the quotient is exact for all 32-bit `x`, and the sum cannot overflow
/// because a renormalised state is below `f << (32 - bits)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct EncodeEntry {
    /// Frequency in bits 0 to 11, cumulative frequency in bits 12 to 23, `shift` in bits 24 to 27.
    pub(super) packed: u32,
    pub(super) reciprocal: u32,
}

impl EncodeEntry {
    fn new(frequency: u32, cumulative: u32) -> Self {
        if frequency == 0 {
            return Self::default();
        }
        let shift = 32 - (frequency - 1).leading_zeros();
        let full = (1u64 << (32 + shift)).div_ceil(u64::from(frequency));
        Self { packed: frequency | cumulative << 12 | shift << 24, reciprocal: (full - (1 << 32)) as u32 }
    }

    pub(super) fn frequency(self) -> u32 {
        self.packed & 0xfff
    }

    pub(super) fn cumulative(self) -> u32 {
        self.packed >> 12 & 0xfff
    }

    pub(super) fn divide(self, x: u32) -> u32 {
        let shift = 32 + (self.packed >> 24);
        ((u64::from(x) * u64::from(self.reciprocal)).wrapping_add(u64::from(x) << 32) >> shift) as u32
    }
}

/// Encoding tables of one stream: 256 entries each, back to back.
#[derive(Debug, Clone)]
pub struct EncodeTables {
    pub(super) entries: Vec<EncodeEntry>,
    /// First and last symbol that each table can code.
    pub(super) spans: Vec<(u8, u8)>,
    pub(super) probability_bits: u32,
    count: usize,
}

impl EncodeTables {
    /// Lays out `tables`.
    ///
    /// # Errors
    /// As [`DecodeTables::new`].
    pub fn new(tables: &[Frequencies]) -> Result<Self> {
        let probability_bits = common_precision(tables)?;
        let mut entries = vec![EncodeEntry::default(); tables.len() * 256];
        for (table, chunk) in tables.iter().zip(entries.chunks_mut(256)) {
            let mut cumulative = 0;
            for (&frequency, entry) in table.as_slice().iter().zip(chunk) {
                *entry = EncodeEntry::new(u32::from(frequency), cumulative);
                cumulative += u32::from(frequency);
            }
        }
        let spans = entries
            .chunks(256)
            .map(|entries| {
                let is_coded = |entry: &EncodeEntry| entry.frequency() > 0;
                let first = entries.iter().position(is_coded).unwrap_or(0);
                let last = entries.iter().rposition(is_coded).unwrap_or(0);
                (first as u8, last as u8)
            })
            .collect();
        Ok(Self { entries, spans, probability_bits, count: tables.len() })
    }

    /// Number of tables.
    pub fn count(&self) -> usize {
        self.count
    }
}

fn common_precision(tables: &[Frequencies]) -> Result<u32> {
    let first = tables.first().ok_or(Error::LengthMismatch { name: "tables", found: 0, expected: 1 })?;
    let bits = first.probability_bits();
    match tables.iter().find(|table| table.probability_bits() != bits) {
        None => Ok(bits),
        Some(other) => Err(Error::OutOfRange {
            name: "probability_bits",
            found: i64::from(other.probability_bits()),
            low: i64::from(bits),
            high: i64::from(bits),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_reciprocal_is_exact() {
        for frequency in 1..4096u32 {
            let entry = EncodeEntry::new(frequency, 0);
            // The greatest state before a step, at the least precision that has this frequency.
            let bits = (32 - frequency.leading_zeros()).max(8);
            let greatest = ((u64::from(frequency) << (32 - bits)) - 1) as u32;
            for x in [
                0,
                1,
                frequency - 1,
                frequency,
                frequency + 1,
                65_535,
                65_536,
                greatest / 2,
                greatest - 1,
                greatest,
            ] {
                assert_eq!(entry.divide(x), x / frequency, "{x} / {frequency}");
            }
            for multiple in (1..16).map(|i| (greatest / frequency / i) * frequency) {
                assert_eq!(entry.divide(multiple), multiple / frequency);
                assert_eq!(entry.divide(multiple.saturating_sub(1)), multiple.saturating_sub(1) / frequency);
            }
        }
    }
}
