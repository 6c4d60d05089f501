//! Integer probabilities and how to get them from counts.

use super::log2::log2_fixed;
use crate::error::{Error, Result};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Least precision of a table.
pub const MIN_PROBABILITY_BITS: u32 = 8;
/// Greatest precision of a table.
pub const MAX_PROBABILITY_BITS: u32 = 12;

/// Probabilities of up to 256 symbols in units of `1 / (1 << probability_bits)`.
///
/// They sum to `1 << probability_bits` and none is the whole sum, so that a frequency of a 12-bit table fits 12 bits:
/// an alphabet therefore has at least two symbols of frequency above zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frequencies {
    probability_bits: u32,
    frequencies: Vec<u16>,
}

impl Frequencies {
    /// Checks and keeps the frequencies of symbols 0, 1, ...
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a precision outside 8 to 12, an alphabet outside 2 to 256 or a frequency that is the
    /// whole sum; [`Error::BadFrequencies`] where the sum is not `1 << probability_bits`.
    pub fn new(frequencies: &[u16], probability_bits: u32) -> Result<Self> {
        check_precision(probability_bits)?;
        check_alphabet(frequencies.len())?;
        let sum: u64 = frequencies.iter().map(|&f| u64::from(f)).sum();
        let expected = 1u64 << probability_bits;
        if sum != expected {
            return Err(Error::BadFrequencies { sum, expected });
        }
        if let Some(&whole) = frequencies.iter().find(|&&f| u64::from(f) == expected) {
            return Err(Error::OutOfRange {
                name: "frequency",
                found: i64::from(whole),
                low: 0,
                high: expected as i64 - 1,
            });
        }
        Ok(Self { probability_bits, frequencies: frequencies.to_vec() })
    }

    /// Near-optimal frequencies for `counts`; see [`normalize`].
    ///
    /// # Errors
    /// As [`normalize`].
    pub fn from_counts(counts: &[u64], probability_bits: u32) -> Result<Self> {
        normalize(counts, probability_bits)
    }

    /// Precision: the frequencies sum to `1 << probability_bits`.
    pub fn probability_bits(&self) -> u32 {
        self.probability_bits
    }

    /// The frequency of each symbol.
    pub fn as_slice(&self) -> &[u16] {
        &self.frequencies
    }

    /// Number of symbols, those of frequency zero included.
    pub fn alphabet_size(&self) -> usize {
        self.frequencies.len()
    }

    /// Code length of a symbol in 1/65536 bit; `None` where it cannot be coded.
    pub fn code_length_fixed(&self, symbol: usize) -> Option<u32> {
        match self.frequencies.get(symbol) {
            Some(&frequency) if frequency > 0 => {
                Some((self.probability_bits << 16) - log2_fixed(u64::from(frequency)))
            }
            _ => None,
        }
    }

    /// Ideal size in 1/65536 bit of data with these counts; `None` where a counted symbol cannot be coded.
    pub fn cost_fixed(&self, counts: &[u64]) -> Option<u64> {
        let mut cost = 0u64;
        for (symbol, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
            cost = cost.saturating_add(count.saturating_mul(u64::from(self.code_length_fixed(symbol)?)));
        }
        Some(cost)
    }
}

fn check_precision(probability_bits: u32) -> Result<()> {
    if (MIN_PROBABILITY_BITS..=MAX_PROBABILITY_BITS).contains(&probability_bits) {
        return Ok(());
    }
    Err(Error::OutOfRange {
        name: "probability_bits",
        found: i64::from(probability_bits),
        low: i64::from(MIN_PROBABILITY_BITS),
        high: i64::from(MAX_PROBABILITY_BITS),
    })
}

fn check_alphabet(size: usize) -> Result<()> {
    if (2..=256).contains(&size) {
        return Ok(());
    }
    Err(Error::OutOfRange { name: "alphabet_size", found: size as i64, low: 2, high: 256 })
}

/// Frequencies close to the least code length for `counts` (or weights of any scale), the same on every machine.
///
/// Each counted symbol gets at least 1, each uncounted one 0. Start: the rounded share. Then single units move, each
/// time where the code length `count * log2(frequency)` gains most or loses least (the first of equals), until the sum is right. One lone
/// counted symbol shares with its neighbour (frequency 1), because no frequency may be the whole sum.
///
/// # Errors
/// [`Error::OutOfRange`] where the alphabet has not 2 to 256 symbols, the precision is not 8 to 12, no symbol is
/// counted, or more symbols are counted than there are units.
pub fn normalize(counts: &[u64], probability_bits: u32) -> Result<Frequencies> {
    check_precision(probability_bits)?;
    check_alphabet(counts.len())?;
    let used = counts.iter().filter(|&&count| count > 0).count();
    let units = 1u64 << probability_bits;
    if used == 0 || used as u64 > units {
        return Err(Error::OutOfRange {
            name: "used symbols",
            found: used as i64,
            low: 1,
            high: units as i64,
        });
    }
    // Scaled so that products below fit 64 bits; a count never falls to zero.
    let largest = counts.iter().copied().max().unwrap_or(1);
    let shift = (64 - largest.leading_zeros()).saturating_sub(36);
    let mut scaled: Vec<u64> = counts.iter().map(|&c| if c == 0 { 0 } else { (c >> shift).max(1) }).collect();
    if used == 1 {
        let only = scaled.iter().position(|&c| c > 0).unwrap_or(0);
        scaled[only] = units - 1;
        scaled[if only + 1 < counts.len() { only + 1 } else { only - 1 }] = 1;
    }
    let total: u64 = scaled.iter().sum();
    let mut frequencies: Vec<u64> = scaled
        .iter()
        .map(|&c| if c == 0 { 0 } else { ((c * units + total / 2) / total).clamp(1, units - 1) })
        .collect();
    let mut sum: u64 = frequencies.iter().sum();
    let gain_up = |index: usize, f: u64| scaled[index] * u64::from(log2_fixed(f + 1) - log2_fixed(f));
    if sum < units {
        let mut heap: BinaryHeap<(u64, Reverse<usize>)> = used_symbols(&scaled)
            .filter(|&index| frequencies[index] < units - 1)
            .map(|index| (gain_up(index, frequencies[index]), Reverse(index)))
            .collect();
        while let (true, Some((_, Reverse(index)))) = (sum < units, heap.pop()) {
            frequencies[index] += 1;
            sum += 1;
            if frequencies[index] < units - 1 {
                heap.push((gain_up(index, frequencies[index]), Reverse(index)));
            }
        }
    } else if sum > units {
        let mut heap: BinaryHeap<Reverse<(u64, usize)>> = used_symbols(&scaled)
            .filter(|&index| frequencies[index] > 1)
            .map(|index| Reverse((gain_up(index, frequencies[index] - 1), index)))
            .collect();
        while let (true, Some(Reverse((_, index)))) = (sum > units, heap.pop()) {
            frequencies[index] -= 1;
            sum -= 1;
            if frequencies[index] > 1 {
                heap.push(Reverse((gain_up(index, frequencies[index] - 1), index)));
            }
        }
    }
    let frequencies = frequencies.into_iter().map(|f| f as u16).collect();
    Ok(Frequencies { probability_bits, frequencies })
}

fn used_symbols(counts: &[u64]) -> impl Iterator<Item = usize> + '_ {
    counts.iter().enumerate().filter(|&(_, &count)| count > 0).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lone_symbol_leaves_one_unit_to_its_neighbour() {
        let table = normalize(&[0, 9, 0], 12).unwrap();
        assert_eq!(table.as_slice(), [0, 4095, 1]);
        let table = normalize(&[0, 0, 9], 8).unwrap();
        assert_eq!(table.as_slice(), [0, 1, 255]);
    }

    #[test]
    fn wrong_frequencies_are_refused() {
        assert!(matches!(
            Frequencies::new(&[128, 127], 8),
            Err(Error::BadFrequencies { sum: 255, expected: 256 })
        ));
        assert!(Frequencies::new(&[256, 0], 8).is_err());
        assert!(Frequencies::new(&[256], 8).is_err());
        assert!(Frequencies::new(&[4096, 4096], 13).is_err());
        assert!(normalize(&[0, 0], 10).is_err());
    }

    proptest! {
        #[test]
        fn close_to_the_entropy(counts in prop::collection::vec(0u64..1_000_000, 2..257), bits in 8u32..13) {
            prop_assume!(counts.iter().any(|&c| c > 0));
            let table = normalize(&counts, bits).unwrap();
            let sum: u64 = table.as_slice().iter().map(|&f| u64::from(f)).sum();
            prop_assert_eq!(sum, 1 << bits);
            for (&count, &frequency) in counts.iter().zip(table.as_slice()) {
                prop_assert!(count == 0 || frequency > 0);
            }
            Frequencies::new(table.as_slice(), bits).unwrap();
        }

        #[test]
        fn any_counts_end(counts in prop::collection::vec(prop_oneof![Just(0u64), Just(1), Just(u64::MAX), any::<u64>()], 2..257)) {
            prop_assume!(counts.iter().any(|&c| c > 0));
            let table = normalize(&counts, 8).unwrap();
            prop_assert!(Frequencies::new(table.as_slice(), 8).is_ok());
        }
    }
}
