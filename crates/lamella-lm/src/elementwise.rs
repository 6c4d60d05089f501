//! Functions of single numbers and of rows, vectorised by the compiler for what the CPU has.
//!
//! Each public function here dispatches once over the machine's vector width; inside is plain Rust without fused
//! multiply-add, written with a fixed number of partial sums, so every width gives the same bits.

use pulp::{Arch, NullaryFnOnce};
use serde::{Deserialize, Serialize};

/// Partial sums of every reduction.
const LANES: usize = 16;

/// The nonlinear function of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)` with the normal distribution's `Phi`, by the error function.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`] (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// The function with this name in Hugging Face configurations, `None` where it is not known.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Self::GeluTanh,
            "relu" => Self::Relu,
            _ => return None,
        })
    }

    /// Applies the function to every element.
    pub fn apply(self, values: &mut [f32]) {
        match self {
            Self::Silu => map(values, |x| x * sigmoid(x)),
            Self::Gelu => map(values, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
            Self::GeluTanh => map(values, |x| {
                let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + tanh(inner))
            }),
            Self::Relu => map(values, |x| x.max(0.0)),
        }
    }
}

struct Map<'a, F>(&'a mut [f32], F);
impl<F: Fn(f32) -> f32> NullaryFnOnce for Map<'_, F> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        for value in self.0 {
            *value = (self.1)(*value);
        }
    }
}

/// Replaces every element by a function of it.
pub(crate) fn map<F: Fn(f32) -> f32>(values: &mut [f32], function: F) {
    Arch::new().dispatch(Map(values, function));
}

/// `e^x`, relative error below 2e-7, without library calls; 0 below -87.3, and at 88 the largest value it gives.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, so that n ln 2 is exact enough.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.0);
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (clamped - n * 0.693_145_75) - n * 1.428_606_8e-6;
    // Taylor series to r^7: the remainder is below 6e-9 for |r| <= 0.3466.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // |n| <= 127, so the cast is exact and the biased exponent valid. The low bits of `n + ROUND` are `n` itself.
    let bits = (n + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if x < -87.3 { 0.0 } else { p * f32::from_bits(bits) }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent, absolute error below 3e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The error function by formula 7.1.26 of Abramowitz and Stegun: absolute error below 2e-7.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let p = 1.061_405_4 * t - 1.453_152_1;
    let p = p * t + 1.421_413_8;
    let p = p * t - 0.284_496_72;
    let p = (p * t + 0.254_829_6) * t;
    (1.0 - p * exp(-a * a)).copysign(x)
}

/// Sums `LANES` partial sums in a fixed tree.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

struct Dot<'a>(&'a [f32], &'a [f32]);
impl NullaryFnOnce for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn call(self) -> f32 {
        let (left, left_rest) = self.0.as_chunks::<LANES>();
        let (right, right_rest) = self.1.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for (a, b) in left.iter().zip(right) {
            for i in 0..LANES {
                sums[i] += a[i] * b[i];
            }
        }
        for (i, (a, b)) in left_rest.iter().zip(right_rest).enumerate() {
            sums[i] += a * b;
        }
        fold(sums)
    }
}

/// Inner product.
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    Arch::new().dispatch(Dot(left, right))
}

struct Dots<'a>(&'a [f32], &'a [f32], usize, f32, &'a mut [f32]);
impl NullaryFnOnce for Dots<'_> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let Self(query, rows, stride, scale, out) = self;
        for (row, out) in rows.chunks(stride).zip(out) {
            *out = scale * Dot(query, &row[..query.len()]).call();
        }
    }
}

/// `out[i] = scale * query . rows[i]`, rows `stride` apart.
pub(crate) fn dots(query: &[f32], rows: &[f32], stride: usize, scale: f32, out: &mut [f32]) {
    Arch::new().dispatch(Dots(query, rows, stride, scale, out));
}

struct WeightedSum<'a>(&'a [f32], &'a [f32], usize, &'a mut [f32]);
impl NullaryFnOnce for WeightedSum<'_> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let Self(weights, rows, stride, out) = self;
        out.fill(0.0);
        for (row, &weight) in rows.chunks(stride).zip(weights) {
            for (out, x) in out.iter_mut().zip(row) {
                *out += weight * x;
            }
        }
    }
}

/// `out = sum_i weights[i] * rows[i]`, rows `stride` apart, in their order.
pub(crate) fn weighted_sum(weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    Arch::new().dispatch(WeightedSum(weights, rows, stride, out));
}

struct Moments<'a>(&'a [f32]);
impl NullaryFnOnce for Moments<'_> {
    type Output = (f32, f32);
    #[inline(always)]
    fn call(self) -> (f32, f32) {
        let n = self.0.len() as f32;
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for chunk in chunks {
            for i in 0..LANES {
                sums[i] += chunk[i];
            }
        }
        for (i, x) in rest.iter().enumerate() {
            sums[i] += x;
        }
        let mean = fold(sums) / n;
        let mut squares = [0.0; LANES];
        for chunk in chunks {
            for i in 0..LANES {
                let d = chunk[i] - mean;
                squares[i] += d * d;
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let d = x - mean;
            squares[i] += d * d;
        }
        (mean, fold(squares) / n)
    }
}

/// Mean and variance (divided by the count) of a row.
pub(crate) fn moments(row: &[f32]) -> (f32, f32) {
    Arch::new().dispatch(Moments(row))
}

struct Softmax<'a>(&'a mut [f32]);
impl NullaryFnOnce for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let mut largest = f32::NEG_INFINITY;
        for &x in self.0.iter() {
            largest = if x > largest { x } else { largest };
        }
        let (chunks, rest) = self.0.as_chunks_mut::<LANES>();
        let mut sums = [0.0; LANES];
        for chunk in chunks {
            for i in 0..LANES {
                chunk[i] = exp(chunk[i] - largest);
                sums[i] += chunk[i];
            }
        }
        for (i, x) in rest.iter_mut().enumerate() {
            *x = exp(*x - largest);
            sums[i] += *x;
        }
        let inverse = 1.0 / fold(sums);
        for x in self.0.iter_mut() {
            *x *= inverse;
        }
    }
}

/// Replaces a row by its softmax.
pub(crate) fn softmax(row: &mut [f32]) {
    if !row.is_empty() {
        Arch::new().dispatch(Softmax(row));
    }
}

struct Add<'a>(&'a mut [f32], &'a [f32]);
impl NullaryFnOnce for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        for (a, b) in self.0.iter_mut().zip(self.1) {
            *a += b;
        }
    }
}

/// `left += right`.
pub(crate) fn add(left: &mut [f32], right: &[f32]) {
    Arch::new().dispatch(Add(left, right));
}

struct Multiply<'a>(&'a mut [f32], &'a [f32]);
impl NullaryFnOnce for Multiply<'_> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        for (a, b) in self.0.iter_mut().zip(self.1) {
            *a *= b;
        }
    }
}

/// `left *= right`, element by element.
pub(crate) fn multiply(left: &mut [f32], right: &[f32]) {
    Arch::new().dispatch(Multiply(left, right));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_units_of_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "{x}");
        }
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn error_function_and_tangent_match_known_values() {
        for (x, exact) in [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (-2.0, -0.995_322_3)] {
            assert!((erf(x) - exact).abs() < 3e-7, "{x}");
        }
        for i in -100..100 {
            let x = i as f32 / 10.0;
            assert!((tanh(x) - x.tanh()).abs() < 4e-7, "{x}");
        }
    }

    #[test]
    fn softmax_sums_to_one_and_keeps_order() {
        let mut row: Vec<f32> = (0..37).map(|i| i as f32 * 0.3).collect();
        softmax(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(row.windows(2).all(|pair| pair[0] < pair[1]));
        softmax(&mut []);
    }
}
