//! Uniform grids per group of inputs.
//!
//! A row of a weight is cut into groups of `group_size` inputs; each group has a scale and a zero, and
//! `w = scale * code + minimum` with `0 <= code < 2^bits`. Scale and zero are rounded to what is stored
//! *before* anything is quantised, so that encoder and decoder agree to the bit.

use half::f16;

/// How a group's zero is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// The smallest level as a 16-bit float: 16 bits per group.
    Float,
    /// The code that stands for zero: `bits` bits per group.
    Integer,
}

/// Scale and offset of one group: level `code` stands for `scale * code + minimum`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// Distance of two levels; a 16-bit float widened.
    pub scale: f32,
    /// Value of code 0.
    pub minimum: f32,
    /// The code that stands for zero, where the zero is an integer.
    pub zero_point: u32,
}

impl Group {
    /// The smallest grid of `2^bits` levels that covers zero and every value.
    ///
    /// Card convention: `lo = min(0, min)`, `hi = max(0, max)`, `scale = (hi - lo) / (2^bits - 1)`.
    pub fn covering(values: impl Iterator<Item = f32>, bits: u32, zero: Zero) -> Self {
        let (low, high) = values.fold((0.0f32, 0.0f32), |(low, high), v| (low.min(v), high.max(v)));
        Self::from_range(low, high, bits, zero)
    }

    /// The grid from `low` (at most 0) to `high` (at least 0).
    pub fn from_range(low: f32, high: f32, bits: u32, zero: Zero) -> Self {
        let levels = ((1u32 << bits) - 1) as f32;
        let scale = stored_scale((high - low) / levels);
        match zero {
            Zero::Float => Self { scale, minimum: f16::from_f32(low).to_f32(), zero_point: 0 },
            Zero::Integer => {
                let zero_point =
                    if scale > 0.0 { (-low / scale).round().clamp(0.0, levels) as u32 } else { 0 };
                Self::with_zero_point(scale, zero_point)
            }
        }
    }

    /// The grid `scale * (code - zero_point)`.
    pub fn with_zero_point(scale: f32, zero_point: u32) -> Self {
        Self { scale, minimum: -(scale * zero_point as f32), zero_point }
    }

    /// The grid `scale * code + minimum`.
    pub fn with_minimum(scale: f32, minimum: f32) -> Self {
        Self { scale, minimum, zero_point: 0 }
    }

    /// Whether scale and minimum are finite: a range too wide for 16-bit floats gives a grid that is not.
    pub fn is_finite(&self) -> bool {
        self.scale.is_finite() && self.minimum.is_finite()
    }

    /// The code of the nearest level.
    #[inline]
    pub fn quantize(&self, value: f32, bits: u32) -> u32 {
        let top = ((1u32 << bits) - 1) as f32;
        if self.scale > 0.0 {
            ((value - self.minimum) / self.scale).round().clamp(0.0, top) as u32
        } else {
            0
        }
    }

    /// The level of a code.
    #[inline]
    pub fn dequantize(&self, code: u32) -> f32 {
        self.scale * code as f32 + self.minimum
    }
}

/// The scale as stored: a 16-bit float, never rounded to zero while the range is not. Beyond 65,504 it is infinite:
/// such a grid cannot be stored, and whoever writes it refuses ([`Group::is_finite`]).
fn stored_scale(scale: f32) -> f32 {
    let stored = f16::from_f32(scale).to_f32();
    if stored == 0.0 && scale > 0.0 { f16::MIN_POSITIVE_SUBNORMAL.to_f32() } else { stored }
}

/// Number of groups in a row; the last may be shorter.
pub fn groups_per_row(columns: usize, group_size: usize) -> usize {
    columns.div_ceil(group_size.max(1))
}

/// The grids of a whole matrix, `[rows, groups_per_row]`, from its own values.
pub fn static_groups(
    weights: &[f32],
    columns: usize,
    group_size: usize,
    bits: u32,
    zero: Zero,
) -> Vec<Group> {
    if columns == 0 {
        return Vec::new();
    }
    weights
        .chunks_exact(columns)
        .flat_map(|row| row.chunks(group_size.max(1)))
        .map(|group| Group::covering(group.iter().copied(), bits, zero))
        .collect()
}

/// Codes of every weight rounded to its nearest level, row-major.
pub fn round_to_nearest(
    weights: &[f32],
    columns: usize,
    group_size: usize,
    bits: u32,
    groups: &[Group],
) -> Vec<u8> {
    let per_row = groups_per_row(columns, group_size);
    weights
        .iter()
        .enumerate()
        .map(|(index, &value)| {
            let (row, column) = (index / columns, index % columns);
            groups[row * per_row + column / group_size].quantize(value, bits) as u8
        })
        .collect()
}

/// The levels of codes, row-major.
pub fn reconstruct(codes: &[u8], columns: usize, group_size: usize, groups: &[Group]) -> Vec<f32> {
    let per_row = groups_per_row(columns, group_size);
    let level = |(index, &code): (usize, &u8)| {
        groups[index / columns * per_row + index % columns / group_size].dequantize(u32::from(code))
    };
    codes.iter().enumerate().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_bits_by_hand() {
        let group = Group::covering([-1.0, 0.0, 2.0].into_iter(), 2, Zero::Integer);
        assert_eq!((group.scale, group.zero_point), (1.0, 1));
        assert_eq!(group.quantize(0.4, 2), 1);
        assert_eq!(group.dequantize(3), 2.0);
        assert_eq!(group.quantize(99.0, 2), 3);
    }

    #[test]
    fn a_range_beyond_sixteen_bits_is_marked() {
        for zero in [Zero::Float, Zero::Integer] {
            assert!(!Group::covering([1e38, -1e38].into_iter(), 4, zero).is_finite());
            assert!(Group::covering([3e5, -6e4].into_iter(), 4, zero).is_finite());
        }
    }

    #[test]
    fn a_group_of_zeros_stays_zero() {
        let group = Group::covering([0.0; 4].into_iter(), 4, Zero::Float);
        assert_eq!(group.dequantize(group.quantize(0.0, 4)), 0.0);
    }

    proptest! {
        #[test]
        fn error_is_at_most_half_a_step(values in prop::collection::vec(-8.0f32..8.0, 1..64), bits in 2u32..=8) {
            let group = Group::covering(values.iter().copied(), bits, Zero::Float);
            for &value in &values {
                let error = (group.dequantize(group.quantize(value, bits)) - value).abs();
                // Rounding scale and minimum to 16 bits may lose another fraction of a step at the ends.
                prop_assert!(error <= group.scale * 0.5 + 8.0 * 2e-3 * 2.0, "{error} {}", group.scale);
            }
        }
    }
}
