//! Distributions named by small integers, with tables made by integer arithmetic alone.
//!
//! A learned table of 20 symbols costs about 10 bytes; on a column class of a thousand weights that is 0.08 bit each.
//! A parametric table costs two bytes and fits nearly as well. The code `v` of a uniform quantiser with step 1 gets
//! the probability mass between its thresholds `v - 1/2` and `v + 1/2`, moved outwards by the dead zone.
//!
//! # Definition
//! Positions are in 1/32. The threshold between codes `v` and `v + 1` is `32 v + 16 + z` for `v >= 0` and
//! `32 v + 16 - z` below, minus the location; `z` is the dead zone. With scale index `s` it is multiplied by
//! `2^(4 - s / 16)` (a committed 30-bit constant and shifts) and looked up in the committed survival function of the
//! shape with linear interpolation. Differences of the cumulative function, at least 1, are the weights handed to
//! [`normalize`].

use super::frequencies::{Frequencies, normalize};
use super::survival::{GRID, INVERSE_SCALE, SURVIVAL};
use crate::error::{Error, Result};

/// Scale indexes run from 0 to this, exclusive.
pub const SCALE_COUNT: u32 = 256;

/// The form of a distribution, all scaled to variance 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape {
    /// Normal distribution.
    Gaussian,
    /// Generalised Gaussian with exponent 1.5: between normal and Laplace.
    Bell,
    /// Laplace distribution.
    Laplace,
    /// Generalised Gaussian with exponent 0.75.
    Peaked,
    /// Generalised Gaussian with exponent 0.5.
    Spiked,
    /// Logistic distribution: normal in the middle, Laplace in the tails.
    Logistic,
    /// Generalised Gaussian with exponent 3: flatter than normal.
    Flat,
    /// Student t with five degrees of freedom: polynomial tails.
    StudentFive,
}

impl Shape {
    /// All shapes, in the order of their stored index.
    pub const ALL: [Self; 8] = [
        Self::Gaussian,
        Self::Bell,
        Self::Laplace,
        Self::Peaked,
        Self::Spiked,
        Self::Logistic,
        Self::Flat,
        Self::StudentFive,
    ];

    /// The stored index, 0 to 7.
    pub fn index(self) -> usize {
        Self::ALL.iter().position(|&shape| shape == self).unwrap_or(0)
    }
}

/// One distribution over integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parametric {
    /// The form.
    pub shape: Shape,
    /// Standard deviation `2^(scale_index / 16 - 4)` in codes: 1/16 to 3,922.
    pub scale_index: u8,
    /// Outward shift of the thresholds in 1/32 code: 2 stands for rounding at 0.5625.
    pub dead_zone: u8,
    /// Mean in 1/32 code.
    pub location: i32,
}

impl Parametric {
    /// A centred distribution without dead zone.
    pub fn new(shape: Shape, scale_index: u8) -> Self {
        Self { shape, scale_index, dead_zone: 0, location: 0 }
    }

    /// `round(2^32 * P(X <= threshold between code and code + 1))`.
    pub fn cumulative(&self, code: i64) -> u64 {
        let zone = i128::from(self.dead_zone);
        let edge =
            32 * i128::from(code) + 16 + if code >= 0 { zone } else { -zone } - i128::from(self.location);
        let survival = u64::from(self.survival(edge.unsigned_abs()));
        if edge >= 0 { (1 << 32) - survival } else { survival }
    }

    /// Survival at `distance / 32` codes from the mean.
    fn survival(&self, distance: u128) -> u32 {
        let (whole, fraction) = (self.scale_index / 16, self.scale_index % 16);
        // Grid position with 16 fractional bits: distance / 32 * 16 * 2^4 * 2^(-scale_index / 16).
        let product = distance.min(1 << 80) * u128::from(INVERSE_SCALE[usize::from(fraction)]);
        let position = product >> (11 + u32::from(whole));
        let last = 16 * GRID;
        let index = u64::try_from(position >> 16).unwrap_or(u64::MAX);
        if index >= last {
            return 0;
        }
        let table = &SURVIVAL[self.shape.index()];
        let (left, right) = (u64::from(table[index as usize]), u64::from(table[index as usize + 1]));
        (left - (((left - right) * (position as u64 & 0xffff)) >> 16)) as u32
    }

    /// Weights of the cells `first_cell..` of `1 << shift` codes each, then of everything outside where asked.
    fn weights(&self, cells: CellRange, with_escape: bool) -> Vec<u64> {
        let mut weights = Vec::with_capacity(cells.count + 1);
        let edge = |cell: i64| self.cumulative((cell << cells.shift) - 1);
        let start = edge(cells.first);
        let mut last = start;
        for index in 0..cells.count as i64 {
            let next = edge(cells.first + index + 1);
            weights.push((next - last).max(1));
            last = next;
        }
        if with_escape {
            weights.push(((1u64 << 32) - last + start).max(1));
        }
        weights
    }

    /// Integer frequencies of the cells, with one symbol more for everything outside where `with_escape`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an alphabet outside 2 to 256 or a precision outside 8 to 12.
    pub fn frequencies(
        &self,
        cells: CellRange,
        with_escape: bool,
        probability_bits: u32,
    ) -> Result<Frequencies> {
        cells.check(with_escape)?;
        normalize(&self.weights(cells, with_escape), probability_bits)
    }

    /// Code lengths in 1/65536 bit before frequencies are rounded to a table: cheap, for searching parameters.
    pub(crate) fn ideal_lengths(&self, cells: CellRange, with_escape: bool) -> Vec<u32> {
        // 2^20 of 2^32 is the least frequency of a 12-bit table.
        self.weights(cells, with_escape)
            .into_iter()
            .map(|weight| (32 << 16) - super::log2_fixed(weight.max(1 << 20)))
            .collect()
    }
}

/// Consecutive cells: cell `c` holds the codes `c << shift` to `((c + 1) << shift) - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellRange {
    /// The first cell; may be negative.
    pub first: i64,
    /// How many cells.
    pub count: usize,
    /// Binary logarithm of the codes per cell, at most 31.
    pub shift: u32,
}

impl CellRange {
    fn check(&self, with_escape: bool) -> Result<()> {
        let size = self.count + usize::from(with_escape);
        if !(2..=256).contains(&size) {
            return Err(Error::OutOfRange { name: "alphabet_size", found: size as i64, low: 2, high: 256 });
        }
        if self.shift > 31 || self.first.unsigned_abs() > 1 << 31 {
            return Err(Error::OutOfRange { name: "shift", found: i64::from(self.shift), low: 0, high: 31 });
        }
        Ok(())
    }
}

/// A weighted sum of parametric distributions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mixture {
    /// Weight and distribution of each component; the weights are relative.
    pub components: Vec<(u8, Parametric)>,
}

impl Mixture {
    /// Integer frequencies as in [`Parametric::frequencies`].
    ///
    /// # Errors
    /// As there, and where all weights are zero.
    pub fn frequencies(
        &self,
        cells: CellRange,
        with_escape: bool,
        probability_bits: u32,
    ) -> Result<Frequencies> {
        cells.check(with_escape)?;
        let mut sums = vec![0u64; cells.count + usize::from(with_escape)];
        for (weight, component) in &self.components {
            for (sum, part) in sums.iter_mut().zip(component.weights(cells, with_escape)) {
                *sum = sum.saturating_add(u64::from(*weight) * part);
            }
        }
        normalize(&sums, probability_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gaussian_of_deviation_two_has_its_textbook_masses() {
        // scale_index 80: 2^(80 / 16 - 4) = 2.
        let model = Parametric::new(Shape::Gaussian, 80);
        let cells = CellRange { first: -7, count: 15, shift: 0 };
        let table = model.frequencies(cells, true, 12).unwrap();
        // The middle cell holds 0.1974 of the mass: 808.6 of 4,096.
        assert_eq!(table.as_slice(), [2, 10, 38, 114, 268, 496, 715, 809, 715, 496, 268, 114, 38, 10, 2, 1]);
    }

    proptest! {
        #[test]
        fn every_parameter_gives_a_table(shape in 0usize..8, scale in any::<u8>(), zone in 0u8..32,
                                         location in -2000i32..2000, first in -200i64..200, count in 2usize..256,
                                         shift in 0u32..24) {
            let model = Parametric { shape: Shape::ALL[shape], scale_index: scale, dead_zone: zone, location };
            let cells = CellRange { first, count, shift };
            let table = model.frequencies(cells, true, 12).unwrap();
            prop_assert_eq!(table.alphabet_size(), count + 1);
            prop_assert!(table.as_slice().iter().all(|&f| f > 0));
            let mixture = Mixture { components: vec![(3, model), (1, Parametric::new(Shape::Laplace, 70))] };
            prop_assert!(mixture.frequencies(cells, true, 12).is_ok());
        }
    }
}
