//! The grids of OliVe ([`crate::systems`]): normal levels, outliers, pairs, and the search for a scale.

mod claim;

use half::f16;

pub use claim::measure;

/// Normal levels and outliers, in units of a scale. Codes are bytes of which 4 or 8 bits are used.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    id: u8,
    bits: u32,
    /// Magnitudes of normal codes; 0 first.
    normal: Vec<f32>,
    /// Magnitudes of outliers; the first is left out of use. Empty where there are none.
    outliers: Vec<f32>,
}

/// A value's code and what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A normal level: index of its magnitude, and whether it is negative.
    Normal(u8, bool),
    /// An outlier, likewise.
    Outlier(u8, bool),
    /// A value given up for its neighbour.
    Victim,
}

/// The 89 scales tried, relative to three standard deviations.
const TRIED: std::ops::Range<u32> = 0..89;

impl Grid {
    /// `{0, +-1 .. +-7} * 4`.
    pub fn int4(has_outliers: bool) -> Self {
        Self::four_bits(0, (0..8).map(|level| 4.0 * level as f32).collect(), has_outliers)
    }
    /// `{0, +-1, 2, 3, 4, 6, 8, 16} * 2`.
    pub fn flint4(has_outliers: bool) -> Self {
        let levels = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0];
        Self::four_bits(1, levels.map(|level| 2.0 * level).into(), has_outliers)
    }
    fn four_bits(id: u8, normal: Vec<f32>, has_outliers: bool) -> Self {
        let outlier = |code: u32| (1u32 << (5 + code / 2)) as f32 * if code % 2 == 1 { 1.5 } else { 1.0 };
        let outliers = if has_outliers { (0..8).map(outlier).collect() } else { Vec::new() };
        Self { id, bits: 4, normal, outliers }
    }
    /// -127 to 127, outliers from 144 to `2^22 * 15/8`.
    pub fn int8(has_outliers: bool) -> Self {
        let outlier = |code: u32| (1u32 << (7 + code / 8)) as f32 * (1.0 + (code % 8) as f32 / 8.0);
        let outliers = if has_outliers { (0..128).map(outlier).collect() } else { Vec::new() };
        Self { id: 2, bits: 8, normal: (0..128).map(|level| level as f32).collect(), outliers }
    }

    /// What files call it.
    pub fn id(&self) -> u8 {
        self.id
    }

    fn largest(&self) -> f32 {
        self.normal[self.normal.len() - 1]
    }

    /// The stored scale at which `alpha` is the largest normal level.
    pub fn scale(&self, alpha: f64) -> f32 {
        f16::from_f64(alpha / f64::from(self.largest())).to_f32()
    }

    /// The nearest magnitude's index in a rising list, from `first` on.
    fn nearest(levels: &[f32], first: usize, magnitude: f32) -> usize {
        let above = first + levels[first..].partition_point(|&level| level < magnitude);
        if above == first {
            return first;
        }
        if above == levels.len() || magnitude - levels[above - 1] <= levels[above] - magnitude {
            above - 1
        } else {
            above
        }
    }

    /// The nearest level of one value, normal or outlier; `value` is in units of the scale.
    fn code(&self, value: f32) -> Code {
        let magnitude = value.abs();
        let normal = Self::nearest(&self.normal, 0, magnitude);
        if magnitude > self.largest() && !self.outliers.is_empty() {
            let outlier = Self::nearest(&self.outliers, 1, magnitude);
            if (self.outliers[outlier] - magnitude).abs() < magnitude - self.normal[normal] {
                return Code::Outlier(outlier as u8, value < 0.0);
            }
        }
        Code::Normal(normal as u8, value < 0.0 && normal > 0)
    }

    fn value(&self, code: Code) -> f32 {
        let signed = |magnitude: f32, is_negative: bool| if is_negative { -magnitude } else { magnitude };
        match code {
            Code::Normal(index, is_negative) => signed(self.normal[usize::from(index)], is_negative),
            Code::Outlier(index, is_negative) => {
                signed(self.outliers.get(usize::from(index)).copied().unwrap_or(0.0), is_negative)
            }
            Code::Victim => 0.0,
        }
    }

    /// Codes of a row, pairs resolved.
    pub fn codes(&self, row: &[f32], scale: f32) -> Vec<Code> {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut codes: Vec<Code> =
            row.iter().map(|&value| self.code((value * inverse).clamp(-1e30, 1e30))).collect();
        let n = codes.len();
        if n % 2 == 1 && matches!(codes[n - 1], Code::Outlier(..)) {
            codes[n - 1] = Code::Normal((self.normal.len() - 1) as u8, row[n - 1] < 0.0);
        }
        for (pair, values) in codes.chunks_exact_mut(2).zip(row.chunks_exact(2)) {
            match (pair[0], pair[1]) {
                (Code::Outlier(..), Code::Outlier(..)) if values[1].abs() > values[0].abs() => {
                    pair[0] = Code::Victim
                }
                (Code::Outlier(..), _) => pair[1] = Code::Victim,
                (_, Code::Outlier(..)) => pair[0] = Code::Victim,
                _ => {}
            }
        }
        codes
    }

    /// What codes stand for.
    pub fn values<'a>(&'a self, codes: &'a [Code], scale: f32) -> impl Iterator<Item = f32> + 'a {
        codes.iter().map(move |&code| self.value(code) * scale)
    }

    /// Squared error of rows of `columns` values at one scale, victims counted.
    pub fn squared_error(&self, values: &[f32], columns: usize, scale: f32) -> f64 {
        let error = |row: &[f32]| -> f64 {
            let codes = self.codes(row, scale);
            row.iter().zip(self.values(&codes, scale)).map(|(&w, v)| f64::from(w - v).powi(2)).sum()
        };
        values.chunks(columns.max(1)).map(error).sum()
    }

    /// The scale of least squared error among those tried, and that error.
    pub fn search(&self, values: &[f32], columns: usize) -> (f32, f64) {
        let n = values.len().max(1) as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let deviations = 3.0 * variance.sqrt();
        let start = (mean + deviations).abs().max((mean - deviations).abs());
        let mut best = (0.0f32, f64::INFINITY);
        for step in TRIED {
            let scale = self.scale(start * (0.75 + 0.02 * f64::from(step)));
            let error = self.squared_error(values, columns, scale);
            if error < best.1 || best.1.is_infinite() {
                best = (scale, error);
            }
        }
        best
    }

    /// Share of pairs in which both values would be outliers.
    pub fn doubles(&self, row: &[f32], scale: f32) -> usize {
        let is_outlier =
            |value: f32| matches!(self.code(value / scale.max(f32::MIN_POSITIVE)), Code::Outlier(..));
        row.chunks_exact(2).filter(|pair| is_outlier(pair[0]) && is_outlier(pair[1])).count()
    }

    fn sign_bit(&self) -> u8 {
        1 << (self.bits - 1)
    }

    fn raw(&self, code: Code) -> u8 {
        match code {
            Code::Normal(index, is_negative) | Code::Outlier(index, is_negative) => {
                index | if is_negative { self.sign_bit() } else { 0 }
            }
            Code::Victim => self.sign_bit(),
        }
    }

    /// Codes of a row as bytes: two a byte with 4 bits, the first in the low half.
    pub fn pack(&self, codes: &[Code]) -> Vec<u8> {
        let raw = codes.iter().map(|&code| self.raw(code));
        if self.bits == 8 {
            return raw.collect();
        }
        let raw: Vec<u8> = raw.collect();
        raw.chunks(2).map(|pair| pair[0] | pair.get(1).copied().unwrap_or(0) << 4).collect()
    }

    /// Codes of a row of `columns` values. Any bytes have a meaning: a pair of two marks is two zeros.
    pub fn unpack(&self, bytes: &[u8], columns: usize) -> Vec<Code> {
        let raw = |index: usize| match self.bits {
            8 => bytes[index],
            _ => bytes[index / 2] >> (4 * (index % 2)) & 15,
        };
        let mark = self.sign_bit();
        let meaning = |index: usize| {
            let own = raw(index);
            let partner = if index ^ 1 < columns { Some(raw(index ^ 1)) } else { None };
            let (magnitude, is_negative) = (own & (mark - 1), own & mark != 0);
            match (own == mark, partner == Some(mark)) {
                (true, _) => Code::Victim,
                (false, true) => Code::Outlier(magnitude, is_negative),
                (false, false) => Code::Normal(magnitude, is_negative),
            }
        };
        (0..columns).map(meaning).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_codes_comes_back() {
        for grid in [Grid::int4(true), Grid::flint4(true), Grid::int8(true)] {
            let row: Vec<f32> = (0..401).map(|i| ((i * 7919) % 1009) as f32 - 504.0).collect();
            for scale in [0.5f32, 1.0, 8.0, 64.0] {
                let codes = grid.codes(&row, scale);
                assert_eq!(grid.unpack(&grid.pack(&codes), row.len()), codes, "{} at {scale}", grid.id());
            }
        }
    }

    #[test]
    fn levels_are_the_papers() {
        assert_eq!(Grid::int4(true).outliers, [32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0]);
        assert_eq!(Grid::flint4(true).normal, [0.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0]);
        // 30 lies nearest to 28, 33 to 28 too (48 is farther), 40 to 48.
        let code = |value: f32| Grid::int4(true).value(Grid::int4(true).code(value));
        assert_eq!([30.0, 33.0, 40.0, -1000.0, 1.0].map(code), [28.0, 28.0, 48.0, -384.0, 0.0]);
    }
}
