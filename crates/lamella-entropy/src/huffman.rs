//! Canonical Huffman codes with limited lengths.
//!
//! A Huffman code gives each symbol a whole number of bits. It is within 1 % of the entropy on smooth distributions of
//! 4 bits and more, and up to a bit a symbol worse where one symbol dominates; [`crate::rans`] is smaller and, with
//! vector kernels, faster. Huffman codes remain for foreign formats, for decoders of a few lines and for streams that
//! must be entered at any symbol whose bit position is known.
//!
//! # Definition
//! Code lengths come from package-merge (optimal under the limit). Codes are canonical: shorter codes first, equal
//! lengths by symbol, counting upwards; they are written least significant bit first with the code's *first* bit
//! lowest, so the stream's bits read as in the textbook. A symbol of frequency zero has length 0 and no code; a lone
//! symbol has length 1.
//!
//! ```
//! use lamella_entropy::huffman::Code;
//! let code = Code::from_counts(&[5, 2, 1, 1], 15)?;
//! assert_eq!(code.lengths(), [1, 2, 3, 3]);
//! let bytes = code.encode(&[0, 0, 1, 3, 2])?;
//! assert_eq!(bytes.len(), 2); // 10 bits
//! assert_eq!(code.decoder()?.decode(&bytes, 5)?, [0, 0, 1, 3, 2]);
//! # Ok::<(), lamella_entropy::Error>(())
//! ```
//! Sources: D. A. Huffman 1952; L. L. Larmore and D. S. Hirschberg, "A fast algorithm for optimal length-limited
//! Huffman codes", 1990.

use crate::bits::{BitReader, BitWriter};
use crate::error::{Error, Result, corrupt};

/// Greatest code length.
pub const MAX_LENGTH: u32 = 15;

/// Lengths and codes of up to 256 symbols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    lengths: Vec<u8>,
    /// Bit-reversed codes, as they are written.
    codes: Vec<u16>,
}

impl Code {
    /// The optimal code for these counts with no length above `max_length` (at most 15).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an alphabet outside 1 to 256, no counted symbol, or a limit that is too small.
    pub fn from_counts(counts: &[u64], max_length: u32) -> Result<Self> {
        let used: Vec<usize> = (0..counts.len()).filter(|&symbol| counts[symbol] > 0).collect();
        if counts.is_empty() || counts.len() > 256 || used.is_empty() {
            return Err(Error::OutOfRange {
                name: "alphabet_size",
                found: used.len() as i64,
                low: 1,
                high: 256,
            });
        }
        let least = usize::BITS - (used.len() - 1).leading_zeros();
        if max_length > MAX_LENGTH || max_length < least.max(1) {
            return Err(Error::OutOfRange {
                name: "max_length",
                found: i64::from(max_length),
                low: i64::from(least.max(1)),
                high: i64::from(MAX_LENGTH),
            });
        }
        let mut lengths = vec![0u8; counts.len()];
        if let [only] = used[..] {
            lengths[only] = 1;
        } else {
            package_merge(counts, &used, max_length, &mut lengths);
        }
        Self::from_lengths(&lengths)
    }

    /// The canonical code with these lengths (0: no code).
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the lengths over- or under-fill the code space (a lone symbol of length 1 is allowed),
    /// exceed 15 or are more than 256.
    pub fn from_lengths(lengths: &[u8]) -> Result<Self> {
        if lengths.len() > 256 || lengths.iter().any(|&length| u32::from(length) > MAX_LENGTH) {
            return Err(corrupt("huffman length"));
        }
        let filled: u32 =
            lengths.iter().filter(|&&l| l > 0).map(|&l| 1u32 << (MAX_LENGTH - u32::from(l))).sum();
        let used = lengths.iter().filter(|&&length| length > 0).count();
        let is_lone = used == 1 && filled == 1 << (MAX_LENGTH - 1);
        if filled != 1 << MAX_LENGTH && !is_lone {
            return Err(corrupt("huffman lengths"));
        }
        let mut codes = vec![0u16; lengths.len()];
        let mut next = 0u32;
        for length in 1..=MAX_LENGTH {
            for (symbol, _) in lengths.iter().enumerate().filter(|&(_, &l)| u32::from(l) == length) {
                codes[symbol] = ((next as u16) << (16 - length)).reverse_bits();
                next += 1;
            }
            next <<= 1;
        }
        Ok(Self { lengths: lengths.to_vec(), codes })
    }

    /// The length of each symbol's code; 0 where it has none.
    pub fn lengths(&self) -> &[u8] {
        &self.lengths
    }

    /// Codes symbols to bits, the last byte filled with zeros.
    ///
    /// # Errors
    /// [`Error::UncodableSymbol`] for a symbol without a code.
    pub fn encode(&self, symbols: &[u8]) -> Result<Vec<u8>> {
        let mut writer = BitWriter::new();
        for (position, &symbol) in symbols.iter().enumerate() {
            match self.lengths.get(usize::from(symbol)) {
                Some(&length) if length > 0 => {
                    writer.write(u32::from(self.codes[usize::from(symbol)]), u32::from(length));
                }
                _ => return Err(Error::UncodableSymbol { symbol: u32::from(symbol), position }),
            }
        }
        Ok(writer.finish())
    }

    /// A decoder for this code.
    ///
    /// # Errors
    /// None for a valid code; the type leaves room.
    pub fn decoder(&self) -> Result<Decoder> {
        let width = self.lengths.iter().copied().max().map_or(1, u32::from).max(1);
        let mut table = vec![(0u8, 0u8); 1 << width];
        for (symbol, (&length, &code)) in self.lengths.iter().zip(&self.codes).enumerate() {
            if length > 0 {
                let mut slot = usize::from(code);
                while slot < table.len() {
                    table[slot] = (symbol as u8, length);
                    slot += 1 << length;
                }
            }
        }
        Ok(Decoder { width, table })
    }
}

/// Package-merge: `max_length` times, pair up the cheapest packages of the level below and merge them with the
/// symbols; a symbol's length is how often it occurs in the cheapest `2 n - 2` packages of the top level.
fn package_merge(counts: &[u64], used: &[usize], max_length: u32, lengths: &mut [u8]) {
    // At most 255 symbols fit a package's 256-entry count vector; weights may sum to more than 64 bits.
    let mut leaves: Vec<(u128, usize)> =
        used.iter().map(|&symbol| (u128::from(counts[symbol]), symbol)).collect();
    leaves.sort_unstable();
    // Each package remembers which nodes of the level below it holds, so levels stay linear in size.
    let mut levels: Vec<Vec<(u128, Option<usize>)>> = Vec::new();
    for _ in 0..max_length {
        let below = levels.last();
        let pairs = below.map_or(0, |level| level.len() / 2);
        let mut level = Vec::with_capacity(leaves.len() + pairs);
        let (mut leaf, mut pair) = (0, 0);
        while leaf < leaves.len() || pair < pairs {
            let pair_weight =
                below.filter(|_| pair < pairs).map(|level| level[2 * pair].0 + level[2 * pair + 1].0);
            match (leaves.get(leaf), pair_weight) {
                (Some(&(weight, symbol)), other) if other.is_none_or(|other| weight <= other) => {
                    level.push((weight, Some(symbol)));
                    leaf += 1;
                }
                (_, Some(weight)) => {
                    level.push((weight, None));
                    pair += 1;
                }
                _ => break,
            }
        }
        levels.push(level);
    }
    let mut take = 2 * used.len() - 2;
    for level in levels.iter().rev() {
        let taken = &level[..take.min(level.len())];
        let packages = taken.iter().filter(|(_, symbol)| symbol.is_none()).count();
        for symbol in taken.iter().filter_map(|&(_, symbol)| symbol) {
            lengths[symbol] += 1;
        }
        take = 2 * packages;
    }
}

/// Decodes with one look-up per symbol.
#[derive(Debug, Clone)]
pub struct Decoder {
    width: u32,
    /// Symbol and length for each next `width` bits; length 0 where no code starts so.
    table: Vec<(u8, u8)>,
}

impl Decoder {
    /// Decodes `count` symbols, which the caller has found acceptable; no more than the bits allow are allocated.
    ///
    /// # Errors
    /// [`Error::Truncated`] where the bits end, [`Error::Corrupt`] for bits that are no code.
    pub fn decode(&self, bytes: &[u8], count: usize) -> Result<Vec<u8>> {
        if count > bytes.len().saturating_mul(8) {
            return Err(Error::Truncated { needed: count.div_ceil(8), found: bytes.len() });
        }
        let mut reader = BitReader::new(bytes);
        let mut symbols = Vec::with_capacity(count);
        for _ in 0..count {
            let (symbol, length) = self.table[reader.peek(self.width) as usize];
            if length == 0 {
                return Err(corrupt("huffman code"));
            }
            reader.read(u32::from(length))?;
            symbols.push(symbol);
        }
        Ok(symbols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn limits_hold_and_extremes_work() {
        // Fibonacci counts make the deepest trees.
        let mut counts = vec![1u64, 1];
        for index in 2..40 {
            counts.push(counts[index - 1] + counts[index - 2]);
        }
        for limit in 6..=15 {
            let code = Code::from_counts(&counts, limit).unwrap();
            assert!(code.lengths().iter().all(|&l| l > 0 && u32::from(l) <= limit));
        }
        assert!(Code::from_counts(&counts, 5).is_err());
        assert_eq!(Code::from_counts(&[0, 7], 15).unwrap().lengths(), [0, 1]);
        assert!(Code::from_counts(&[0, 0], 15).is_err());
        assert_eq!(Code::from_counts(&[u64::MAX; 256], 15).unwrap().lengths(), [8; 256]);
        assert!(Code::from_lengths(&[1, 1, 1]).is_err());
        assert!(Code::from_lengths(&[2, 2]).is_err());
    }

    #[test]
    fn unlimited_codes_have_the_textbook_cost() {
        let code = Code::from_counts(&[45, 13, 12, 16, 9, 5], 15).unwrap();
        assert_eq!(code.lengths(), [1, 3, 3, 3, 4, 4]);
    }

    proptest! {
        #[test]
        fn symbols_return(symbols in prop::collection::vec(any::<u8>(), 1..500), mask in any::<u8>(), limit in 8u32..16) {
            let symbols: Vec<u8> = symbols.iter().map(|s| s & mask).collect();
            let mut counts = vec![0u64; 256];
            symbols.iter().for_each(|&s| counts[usize::from(s)] += 1);
            let code = Code::from_counts(&counts, limit).unwrap();
            let bytes = code.encode(&symbols).unwrap();
            let decoder = Code::from_lengths(code.lengths()).unwrap().decoder().unwrap();
            prop_assert_eq!(decoder.decode(&bytes, symbols.len()).unwrap(), symbols);
            prop_assert!(decoder.decode(&bytes, 8 * bytes.len() + 1).is_err());
        }

        #[test]
        fn garbage_never_panics(lengths in prop::collection::vec(0u8..20, 0..20), bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            if let Ok(code) = Code::from_lengths(&lengths) {
                let _ = code.decoder().unwrap().decode(&bytes, 100);
            }
        }
    }
}
