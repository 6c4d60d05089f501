//! Probabilities that logits stand for, in `f64`: what every loss is made of, millions of times a second.
//!
//! Vectorised as [`crate::elementwise`] is, with a fixed number of partial sums and no library calls: every machine
//! finds the same bits.

use pulp::{Arch, NullaryFnOnce};

/// Partial sums of every reduction.
const LANES: usize = 8;

/// `e^x`, relative error below 1e-15; 0 below -708, and at 709 the largest value it gives.
#[inline(always)]
fn exp(x: f64) -> f64 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first short enough that n times it is exact.
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: adding it rounds to an integer
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let clamped = x.clamp(-708.0, 709.0);
    let shifted = clamped * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor series to r^13: the remainder is below 5e-18 for |r| <= 0.3466.
    let mut p = 1.0 / 6_227_020_800.0;
    for inverse in [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + inverse;
    }
    // |n| <= 1023: the biased exponent is valid. The low bits of `shifted` are `n` itself.
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(1023) << 52;
    if x < -708.0 { 0.0 } else { p * f64::from_bits(bits) }
}

fn fold(lanes: [f64; LANES]) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

struct Largest<'a>(&'a [f32]);
impl NullaryFnOnce for Largest<'_> {
    type Output = f32;
    #[inline(always)]
    fn call(self) -> f32 {
        let (chunks, rest) = self.0.as_chunks::<{ 2 * LANES }>();
        let mut peaks = [f32::NEG_INFINITY; 2 * LANES];
        for chunk in chunks {
            for i in 0..2 * LANES {
                peaks[i] = if chunk[i] > peaks[i] { chunk[i] } else { peaks[i] };
            }
        }
        peaks.iter().chain(rest).fold(f32::NEG_INFINITY, |peak, &x| peak.max(x))
    }
}

/// The largest logit; a NaN counts for nothing.
pub(super) fn largest(logits: &[f32]) -> f32 {
    Arch::new().dispatch(Largest(logits))
}

struct LogSumExp<'a>(&'a [f32]);
impl NullaryFnOnce for LogSumExp<'_> {
    type Output = f64;
    #[inline(always)]
    fn call(self) -> f64 {
        let peak = f64::from(Largest(self.0).call());
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for chunk in chunks {
            for i in 0..LANES {
                sums[i] += exp(f64::from(chunk[i]) - peak);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum += exp(f64::from(x) - peak);
        }
        peak + fold(sums).ln()
    }
}

/// `ln sum exp` of logits; not finite exactly where a logit is NaN or `+inf`, or all are `-inf`.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    Arch::new().dispatch(LogSumExp(logits))
}

struct Divergence<'a> {
    reference: &'a [f32],
    candidate: &'a [f32],
    own: f64,
    other: f64,
}

impl Divergence<'_> {
    /// `p ln(p / q)` of one outcome; one that the reference rules out adds nothing.
    #[inline(always)]
    fn term(&self, reference: f32, candidate: f32) -> f64 {
        let log_p = f64::from(reference) - self.own;
        let p = exp(log_p);
        if p > 0.0 { p * (log_p - (f64::from(candidate) - self.other)) } else { 0.0 }
    }
}

impl NullaryFnOnce for Divergence<'_> {
    type Output = f64;
    #[inline(always)]
    fn call(self) -> f64 {
        let (left, left_rest) = self.reference.as_chunks::<LANES>();
        let (right, right_rest) = self.candidate.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for (r, c) in left.iter().zip(right) {
            for i in 0..LANES {
                sums[i] += self.term(r[i], c[i]);
            }
        }
        for (sum, (&r, &c)) in sums.iter_mut().zip(left_rest.iter().zip(right_rest)) {
            *sum += self.term(r, c);
        }
        fold(sums)
    }
}

/// `sum p ln(p / q)` in nats of two rows of logits with their [`log_sum_exp`]; never below zero, as rounding would have
/// it for equal distributions.
pub(super) fn divergence(reference: &[f32], candidate: &[f32], own: f64, other: f64) -> f64 {
    Arch::new().dispatch(Divergence { reference, candidate, own, other }).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library() {
        for i in -70_700..70_900 {
            let x = f64::from(i) / 100.0 + 0.001_7;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-15, "{x}: {} {}", exp(x), x.exp());
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-800.0), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn sums_are_those_of_plain_loops() {
        for length in [1, 7, 8, 9, 100] {
            let row: Vec<f32> = (0..length).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.3).collect();
            let plain: f64 = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&row) - plain).abs() < 1e-13, "{length}");
        }
    }
}
