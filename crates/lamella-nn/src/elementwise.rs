//! Nonlinear functions of single numbers and their derivatives.

/// The nonlinear function of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)` with the normal distribution's `Phi`.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`].
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

const INVERSE_SQRT_TAU: f32 = 0.398_942_3;
/// `sqrt(2 / pi)` and the cubic's coefficient of the tanh approximation.
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBIC: f32 = 0.044_715;

impl Activation {
    /// The function's value and derivative at `x`.
    #[inline(always)]
    pub(crate) fn with_derivative(self, x: f32) -> (f32, f32) {
        match self {
            Self::Silu => {
                let s = 1.0 / (1.0 + exp(-x));
                (x * s, s * (1.0 + x * (1.0 - s)))
            }
            Self::Gelu => {
                let phi = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
                (x * phi, phi + x * INVERSE_SQRT_TAU * exp(-0.5 * x * x))
            }
            Self::GeluTanh => {
                let t = tanh(TANH_SCALE * (x + TANH_CUBIC * x * x * x));
                let inner = TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * x * x);
                (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
            }
            Self::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        }
    }
}

/// `e^x` within 1e-6 of its size for moderate `x`, plain arithmetic that the compiler vectorises.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 2^t = 2^n 2^f; adding 1.5 * 2^23 leaves the integer n in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let t = (x * std::f32::consts::LOG2_E).clamp(-126.0, 126.0);
    let shifted = t + SHIFT;
    let f = t - (shifted - SHIFT);
    // Taylor series of 2^f for |f| <= 1/2, remainder below 2e-8.
    let mut sum = 1.525_273_4e-5;
    for coefficient in
        [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, std::f32::consts::LN_2, 1.0]
    {
        sum = sum * f + coefficient;
    }
    let exponent = shifted.to_bits().wrapping_sub(SHIFT.to_bits()).wrapping_add(127) << 23;
    sum * f32::from_bits(exponent)
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The error function by formula 7.1.26 of Abramowitz and Stegun: absolute error below 2e-7.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let mut sum = 1.061_405_4;
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        sum = sum * t + coefficient;
    }
    (1.0 - sum * t * exp(-a * a)).copysign(x)
}

/// Sum of products in 16 partial sums.
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (left, left_rest) = left.as_chunks::<16>();
    let (right, right_rest) = right.as_chunks::<16>();
    for (a, b) in left.iter().zip(right) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    for (i, (a, b)) in left_rest.iter().zip(right_rest).enumerate() {
        sums[i] += a * b;
    }
    sums.iter().sum()
}

/// `left += right`.
pub(crate) fn add(left: &mut [f32], right: &[f32]) {
    left.iter_mut().zip(right).for_each(|(a, b)| *a += b);
}

/// Replaces a row by its softmax and returns the logarithm of the sum it was divided by (of the exponentials of the
/// row itself).
pub(crate) fn softmax(row: &mut [f32]) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for part in row.chunks_mut(64) {
        part.iter_mut().for_each(|x| *x = exp(*x - largest));
        sum += part.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    let inverse = (1.0 / sum) as f32;
    row.iter_mut().for_each(|x| *x *= inverse);
    f64::from(largest) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_near_the_librarys() {
        for i in -8000..8000 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 1e-5, "{x}");
        }
        assert!((exp(0.3) - 0.3f32.exp()).abs() < 3e-7);
    }

    #[test]
    fn derivatives_are_those_of_the_functions() {
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            for i in -40..40 {
                let x = i as f32 / 8.0 + 0.05;
                let h = 1e-2;
                let slope =
                    (activation.with_derivative(x + h).0 - activation.with_derivative(x - h).0) / (2.0 * h);
                assert!((slope - activation.with_derivative(x).1).abs() < 2e-4, "{activation:?} at {x}");
            }
        }
    }

    #[test]
    fn softmax_knows_what_it_divided_by() {
        let mut row = vec![1.0, 2.0, 3.0];
        let log_sum = softmax(&mut row);
        let exact = (1f64.exp() + 2f64.exp() + 3f64.exp()).ln();
        assert!((log_sum - exact).abs() < 1e-6);
        assert!((f64::from(row[1]) - (2.0 - exact).exp()).abs() < 1e-6);
    }
}
