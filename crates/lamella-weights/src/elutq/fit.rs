//! Levels of one group: `z + sum_j s_j b_j` with a free scale for every bit.

use half::f16;

/// Most bits of a code.
pub const MAX_BITS: usize = 6;

/// Offset and scales of a group, 16-bit floats widened; code bit `j` adds `scales[j]`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Levels {
    /// What code 0 stands for (`z`).
    pub offset: f32,
    /// What each bit adds (`s_j`); those beyond the bits in use are 0.
    pub scales: [f32; MAX_BITS],
}

impl Levels {
    /// The level of a code: offset and scales, added from the lowest bit up.
    #[inline]
    pub fn level(&self, code: usize, bits: usize) -> f32 {
        let mut level = self.offset;
        for (bit, &scale) in self.scales[..bits].iter().enumerate() {
            if code >> bit & 1 == 1 {
                level += scale;
            }
        }
        level
    }
    /// Every level.
    pub fn table(&self, bits: usize) -> Vec<f32> {
        (0..1 << bits).map(|code| self.level(code, bits)).collect()
    }
    /// Whether all numbers can be stored.
    pub fn is_finite(&self) -> bool {
        self.offset.is_finite() && self.scales.iter().all(|scale| scale.is_finite())
    }
    fn stored(self) -> Self {
        let round = |value: f32| f16::from_f32(value).to_f32();
        Self { offset: round(self.offset), scales: self.scales.map(round) }
    }
}

/// The code of the nearest level; the lower of two that are as near.
#[inline]
pub fn nearest(table: &[f32], value: f32) -> usize {
    let mut best = (0, f32::INFINITY);
    for (code, &level) in table.iter().enumerate() {
        let distance = (value - level).abs();
        if distance < best.1 {
            best = (code, distance);
        }
    }
    best.0
}

/// Sum of squared distances to the nearest levels.
pub fn squared_error(values: &[f32], levels: &Levels, bits: usize) -> f64 {
    let table = levels.table(bits);
    values.iter().map(|&value| f64::from(value - table[nearest(&table, value)]).powi(2)).sum()
}

/// The uniform grid over the values' range: `s_j = 2^j (max - min) / (2^q - 1)`, `z = min`.
pub fn uniform(values: &[f32], bits: usize) -> Levels {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let step = (high - low) / ((1u32 << bits) - 1) as f32;
    let mut levels = Levels { offset: low, scales: [0.0; MAX_BITS] };
    levels.scales[..bits]
        .iter_mut()
        .enumerate()
        .for_each(|(bit, scale)| *scale = step * (1u32 << bit) as f32);
    levels.stored()
}

/// Alternates nearest codes and least squares for the scales and the offset, `rounds` times from the uniform grid; the
/// best levels met, as they are stored.
pub fn alternate(values: &[f32], bits: usize, rounds: usize) -> Levels {
    let mut levels = uniform(values, bits);
    if !levels.is_finite() {
        return levels;
    }
    let (mut best, mut least) = (levels, squared_error(values, &levels, bits));
    for _ in 0..rounds {
        let table = levels.table(bits);
        let codes: Vec<usize> = values.iter().map(|&value| nearest(&table, value)).collect();
        let next = least_squares(values, &codes, &levels, bits);
        if next == levels || !next.is_finite() {
            break;
        }
        levels = next;
        let error = squared_error(values, &levels, bits);
        if error < least {
            (best, least) = (levels, error);
        }
    }
    best
}

/// `argmin |B theta - w|^2` for `B = [bits of the codes, 1]`; what the codes leave open stays near `before`.
fn least_squares(values: &[f32], codes: &[usize], before: &Levels, bits: usize) -> Levels {
    const N: usize = MAX_BITS + 1;
    let n = bits + 1;
    let (mut matrix, mut right) = ([[0.0f64; N]; N], [0.0f64; N]);
    for (&value, &code) in values.iter().zip(codes) {
        // The offset is the last unknown, its column all ones.
        let pattern = code | 1 << bits;
        for i in (0..n).filter(|i| pattern >> i & 1 == 1) {
            right[i] += f64::from(value);
            for j in (0..n).filter(|j| pattern >> j & 1 == 1) {
                matrix[i][j] += 1.0;
            }
        }
    }
    let ridge = 1e-6 * values.len() as f64;
    for i in 0..n {
        matrix[i][i] += ridge;
        right[i] += ridge * f64::from(if i == bits { before.offset } else { before.scales[i] });
    }
    // Gauss; the matrix is positive definite, so no pivot is near zero.
    for i in 0..n {
        for k in i + 1..n {
            let factor = matrix[k][i] / matrix[i][i];
            for j in i..n {
                matrix[k][j] -= factor * matrix[i][j];
            }
            right[k] -= factor * right[i];
        }
    }
    for i in (0..n).rev() {
        for j in i + 1..n {
            right[i] -= matrix[i][j] * right[j];
        }
        right[i] /= matrix[i][i];
    }
    let mut levels = Levels { offset: right[bits] as f32, scales: [0.0; MAX_BITS] };
    levels.scales[..bits].iter_mut().zip(right).for_each(|(scale, value)| *scale = value as f32);
    levels.stored()
}

/// Gradient descent on `s` and `z` (Adam, step `1e-3` of the range, at most 100 steps, at least 40, until a step gains less than
/// one part in a million), the paper's alternative to [`alternate`]; the best levels met.
pub fn descend(values: &[f32], bits: usize) -> Levels {
    let start = uniform(values, bits);
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let range = values.iter().copied().fold(f32::NEG_INFINITY, f32::max) - low;
    if !start.is_finite() || range <= 0.0 {
        return start;
    }
    let bounds = (low - 0.05 * range, low + range / ((1u32 << bits) - 1) as f32);
    let (mut levels, mut best, mut least) = (start, start, squared_error(values, &start, bits));
    let (mut mean, mut square) = ([0.0f32; MAX_BITS + 1], [0.0f32; MAX_BITS + 1]);
    let (mut decay, mut square_decay) = (1.0f32, 1.0f32);
    for step in 0..100 {
        let table = levels.table(bits);
        let mut gradient = [0.0f32; MAX_BITS + 1];
        for &value in values {
            let code = nearest(&table, value);
            let error = (table[code] - value) / (range * values.len() as f32);
            (0..=bits)
                .filter(|bit| (code | 1 << bits) >> bit & 1 == 1)
                .for_each(|bit| gradient[bit] += error);
        }
        (decay, square_decay) = (decay * 0.9, square_decay * 0.999);
        for bit in 0..=bits {
            mean[bit] = 0.9 * mean[bit] + 0.1 * gradient[bit];
            square[bit] = 0.999 * square[bit] + 0.001 * gradient[bit] * gradient[bit];
            let root = (square[bit] / (1.0 - square_decay)).sqrt() + 1e-8;
            let change = 1e-3 * range * (mean[bit] / (1.0 - decay)) / root;
            if bit == bits {
                levels.offset = (levels.offset - change).clamp(bounds.0, bounds.1);
            } else {
                levels.scales[bit] = (levels.scales[bit] - change).max(1e-8);
            }
        }
        let stored = levels.stored();
        let error = squared_error(values, &stored, bits);
        let gained = least - error;
        if error < least {
            (best, least) = (stored, error);
        }
        if step >= 40 && gained < 1e-6 * least {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_free_levels_are_found() {
        // Levels 0, 3, 10, 13 are no uniform grid, and exactly two scales; rounding to the uniform one already gives
        // them the right codes, from where one least-squares step finds them.
        let values = [0.0, 3.0, 10.0, 13.0, 0.0, 13.0];
        let levels = alternate(&values, 2, 10);
        assert!(squared_error(&values, &levels, 2) < 1e-5, "{levels:?}");
        assert!(squared_error(&values, &uniform(&values, 2), 2) > 3.0);
    }

    #[test]
    fn neither_fit_is_worse_than_the_uniform_grid() {
        let values: Vec<f32> = (0..128).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0).powi(3)).collect();
        for bits in 1..=4 {
            let uniform = squared_error(&values, &uniform(&values, bits), bits);
            let (least, descended) = (alternate(&values, bits, 10), descend(&values, bits));
            assert!(squared_error(&values, &least, bits) < 0.9 * uniform);
            assert!(squared_error(&values, &descended, bits) < uniform);
        }
    }

    #[test]
    fn constant_groups_keep_their_value() {
        let levels = alternate(&[0.5; 16], 2, 10);
        assert_eq!(squared_error(&[0.5; 16], &levels, 2), 0.0);
    }
}
