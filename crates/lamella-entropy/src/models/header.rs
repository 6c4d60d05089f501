//! Tables in few bytes: frequencies rounded to a few significant digits and range coded against a prediction.
//!
//! A table costs bits, and a table with fewer digits costs data bits: rounding each frequency to `precision + 1`
//! significant binary digits changes the code length by about `4^-precision / 20` bit a symbol. Long data therefore
//! wants exact tables, short data rough ones; [`fit`] looks for the cheapest sum.
//!
//! # Definition
//! The *level* of a frequency `f` at precision `m` is `f` itself below `2^(m+1)`; above, with `e = floor(log2 f)`, it
//! is `((e - m) << m) + (f >> (e - m))` (a small floating-point number, rounded to nearest). The decoder turns levels
//! back into weights and applies [`normalize`], as the encoder did. Levels are coded as differences: to the level of a
//! base table where both sides have one, else to the last level above zero, with a flag for zeros. The contexts are
//! the differences just coded. Everything is adaptive ([`crate::range`]).

use super::frequencies::{Frequencies, normalize};
use crate::error::{Result, corrupt};
use crate::range::{AdaptiveBit, AdaptiveGolomb, RangeDecoder, RangeEncoder};

/// Greatest precision: eight significant binary digits.
pub const MAX_PRECISION: u32 = 7;

/// What is learned while headers are coded; shared over the tables of one stream, so that later ones cost less.
#[derive(Debug, Clone)]
pub struct HeaderModel {
    size: AdaptiveGolomb,
    precision: [AdaptiveBit; 8],
    is_zero: [AdaptiveBit; 4],
    is_same: [AdaptiveBit; 5],
    is_negative: [AdaptiveBit; 5],
    magnitude: AdaptiveGolomb,
}

impl Default for HeaderModel {
    fn default() -> Self {
        Self::new()
    }
}

impl HeaderModel {
    /// A model of which nothing is known.
    pub fn new() -> Self {
        Self {
            size: AdaptiveGolomb::new(),
            precision: [AdaptiveBit::new(); 8],
            is_zero: [AdaptiveBit::new(); 4],
            is_same: [AdaptiveBit::new(); 5],
            is_negative: [AdaptiveBit::new(); 5],
            magnitude: AdaptiveGolomb::new(),
        }
    }

    /// Writes the rounded form of `frequencies`; the decoder gets [`rounded`] of it.
    ///
    /// With a base (frequencies of the same alphabet both sides know) the differences to it are coded.
    pub fn write(
        &mut self,
        encoder: &mut RangeEncoder,
        frequencies: &Frequencies,
        base: Option<&Frequencies>,
        precision: u32,
    ) {
        let precision = precision.min(MAX_PRECISION);
        let values = frequencies.as_slice();
        let size = values.iter().rposition(|&f| f > 0).map_or(0, |last| last + 1);
        self.code_precision_write(encoder, precision);
        if base.is_none() {
            self.size.encode(encoder, size as u32);
        }
        let mut state = Prediction::default();
        let count = if base.is_some() { values.len() } else { size };
        for (index, &value) in values.iter().take(count).enumerate() {
            let level = level_of(u32::from(value), precision) as i32;
            if base.is_none() {
                encoder.encode_adaptive(&mut self.is_zero[state.zeros], level == 0);
                state.see_zero(level == 0);
                if level == 0 {
                    continue;
                }
            }
            let expected = state.expected(base, index, precision);
            let difference = level - expected;
            encoder.encode_adaptive(&mut self.is_same[state.context], difference == 0);
            if difference != 0 {
                encoder.encode_adaptive(&mut self.is_negative[state.context], difference < 0);
                self.magnitude.encode(encoder, difference.unsigned_abs() - 1);
            }
            state.see(level, difference);
        }
    }

    /// Reads frequencies over `alphabet_size` symbols.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] where the levels make no table.
    pub fn read(
        &mut self,
        decoder: &mut RangeDecoder<'_>,
        alphabet_size: usize,
        probability_bits: u32,
        base: Option<&Frequencies>,
    ) -> Result<Frequencies> {
        let precision = self.code_precision_read(decoder);
        let size = if base.is_some() { alphabet_size } else { self.size.decode(decoder) as usize };
        if size > alphabet_size || alphabet_size > 256 {
            return Err(corrupt("table size"));
        }
        let mut weights = vec![0u64; alphabet_size];
        let mut state = Prediction::default();
        let greatest = level_of((1 << probability_bits) - 1, precision) as i32;
        for (index, weight) in weights.iter_mut().take(size).enumerate() {
            if base.is_none() {
                let is_zero = decoder.decode_adaptive(&mut self.is_zero[state.zeros]);
                state.see_zero(is_zero);
                if is_zero {
                    continue;
                }
            }
            let expected = state.expected(base, index, precision);
            let mut difference = 0i32;
            if !decoder.decode_adaptive(&mut self.is_same[state.context]) {
                let negative = decoder.decode_adaptive(&mut self.is_negative[state.context]);
                let magnitude = self.magnitude.decode(decoder).min(1 << 16) as i32 + 1;
                difference = if negative { -magnitude } else { magnitude };
            }
            let level = expected + difference;
            if level < 0 || level > greatest {
                return Err(corrupt("table level"));
            }
            state.see(level, difference);
            *weight = u64::from(frequency_of(level as u32, precision));
        }
        normalize(&weights, probability_bits).map_err(|_| corrupt("table"))
    }

    fn code_precision_write(&mut self, encoder: &mut RangeEncoder, precision: u32) {
        let mut node = 1usize;
        for index in (0..3).rev() {
            let bit = precision >> index & 1;
            encoder.encode_adaptive(&mut self.precision[node], bit == 1);
            node = node << 1 | bit as usize;
        }
    }

    fn code_precision_read(&mut self, decoder: &mut RangeDecoder<'_>) -> u32 {
        let mut node = 1usize;
        for _ in 0..3 {
            node = node << 1 | usize::from(decoder.decode_adaptive(&mut self.precision[node]));
        }
        node as u32 & 7
    }
}

/// What the next level is expected to be, and in which context its difference is coded.
#[derive(Default)]
struct Prediction {
    last: i32,
    context: usize,
    zeros: usize,
}

impl Prediction {
    fn expected(&self, base: Option<&Frequencies>, index: usize, precision: u32) -> i32 {
        match base {
            Some(base) => level_of(base.as_slice().get(index).map_or(0, |&f| u32::from(f)), precision) as i32,
            None => self.last,
        }
    }

    fn see(&mut self, level: i32, difference: i32) {
        self.last = level;
        self.context = match difference {
            i32::MIN..=-2 => 1,
            -1 => 2,
            0 => 0,
            1 => 3,
            2..=i32::MAX => 4,
        };
    }

    fn see_zero(&mut self, is_zero: bool) {
        self.zeros = (self.zeros << 1 | usize::from(is_zero)) & 3;
    }
}

fn level_of(frequency: u32, precision: u32) -> u32 {
    if frequency < 2 << precision {
        return frequency;
    }
    let shift = frequency.ilog2() - precision;
    // Rounding up may reach the next power of two, which the same formula names correctly.
    let mantissa = (frequency + (1 << (shift - 1))) >> shift;
    (shift << precision) + mantissa
}

fn frequency_of(level: u32, precision: u32) -> u32 {
    if level < 2 << precision {
        return level;
    }
    let shift = (level >> precision) - 1;
    ((level & ((1 << precision) - 1)) + (1 << precision)) << shift
}

/// The table a decoder gets when `frequencies` are written at this precision.
///
/// # Errors
/// As [`normalize`]; never for a valid table.
pub fn rounded(frequencies: &Frequencies, precision: u32) -> Result<Frequencies> {
    let weights: Vec<u64> = frequencies
        .as_slice()
        .iter()
        .map(|&f| {
            u64::from(frequency_of(
                level_of(u32::from(f), precision.min(MAX_PRECISION)),
                precision.min(MAX_PRECISION),
            ))
        })
        .collect();
    normalize(&weights, frequencies.probability_bits())
}

/// A table chosen for its data, with what both cost.
#[derive(Debug, Clone)]
pub struct FittedTable {
    /// The table as a decoder will see it.
    pub frequencies: Frequencies,
    /// The table to hand to [`HeaderModel::write`].
    pub exact: Frequencies,
    /// The precision to hand to it.
    pub precision: u32,
    /// Bits of the header alone, about.
    pub header_bits: f64,
    /// Bits of header and data together, about.
    pub total_bits: f64,
}

/// The precision with the least sum of header and data for symbols counted by `counts`.
///
/// # Errors
/// As [`normalize`].
pub fn fit(counts: &[u64], probability_bits: u32, base: Option<&Frequencies>) -> Result<FittedTable> {
    let exact = normalize(counts, probability_bits)?;
    let at = |precision: u32| -> Result<Option<FittedTable>> {
        let frequencies = rounded(&exact, precision)?;
        let mut encoder = RangeEncoder::new();
        HeaderModel::new().write(&mut encoder, &exact, base, precision);
        let header_bits = 8.0 * encoder.finish().len() as f64;
        let Some(data) = frequencies.cost_fixed(counts) else { return Ok(None) };
        let total_bits = header_bits + data as f64 / 65536.0;
        Ok(Some(FittedTable { frequencies, exact: exact.clone(), precision, header_bits, total_bits }))
    };
    // The sum falls and then rises with the precision but for chance, so it is followed from where it should be least:
    // there a symbol's digit and the data's quarter of its rounding error are worth the same.
    let n: u64 = counts.iter().sum();
    let coded = counts.iter().filter(|&&count| count > 0).count() as u64;
    let start = (n / (8 * coded.max(1))).checked_ilog2().map_or(0, |log| (log / 2).min(MAX_PRECISION));
    let mut best = at(start)?;
    for precisions in [(start + 1..=MAX_PRECISION).collect::<Vec<_>>(), (0..start).rev().collect()] {
        let mut misses = 0;
        for precision in precisions {
            let Some(found) = at(precision)? else { continue };
            if best.as_ref().is_none_or(|best| found.total_bits < best.total_bits) {
                (best, misses) = (Some(found), 0);
            } else {
                misses += 1;
            }
            if misses == 2 {
                break;
            }
        }
    }
    best.ok_or(corrupt("table"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels_grow_and_return() {
        for precision in 0..=MAX_PRECISION {
            let mut last = 0;
            for frequency in 1..4096 {
                let level = level_of(frequency, precision);
                assert!(level == last || level == last + 1, "{frequency} at {precision}");
                last = level;
                let back = frequency_of(level, precision);
                assert_eq!(level_of(back, precision), level);
                assert!(
                    back.abs_diff(frequency) <= frequency >> (precision + 1),
                    "{frequency} {back} {precision}"
                );
            }
        }
    }

    #[test]
    fn a_gaussian_table_is_small() {
        let counts: Vec<u64> =
            (-60i32..=60).map(|v| (65536.0 * (-f64::from(v * v) / 60.0).exp()) as u64).collect();
        let fitted = fit(&counts, 12, None).unwrap();
        assert!(fitted.header_bits < 60.0 * 8.0, "{}", fitted.header_bits);
    }

    proptest! {
        #[test]
        fn tables_return(counts in prop::collection::vec(prop_oneof![Just(0u64), 0u64..100_000], 2..257),
                         precision in 0u32..8, with_base in any::<bool>()) {
            prop_assume!(counts.iter().any(|&c| c > 0));
            let exact = normalize(&counts, 12).unwrap();
            let base = with_base.then(|| normalize(&vec![3; counts.len()], 12).unwrap());
            let mut encoder = RangeEncoder::new();
            let mut model = HeaderModel::new();
            model.write(&mut encoder, &exact, base.as_ref(), precision);
            model.write(&mut encoder, &exact, base.as_ref(), precision);
            let bytes = encoder.finish();
            let mut decoder = RangeDecoder::new(&bytes);
            let mut model = HeaderModel::new();
            for _ in 0..2 {
                let back = model.read(&mut decoder, counts.len(), 12, base.as_ref()).unwrap();
                prop_assert_eq!(&back, &rounded(&exact, precision).unwrap());
            }
        }

        #[test]
        fn garbage_gives_a_table_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..60), size in 2usize..257) {
            let mut decoder = RangeDecoder::new(&bytes);
            let _ = HeaderModel::new().read(&mut decoder, size, 12, None);
        }
    }
}
