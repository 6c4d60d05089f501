//! Arrays and second moments that are the same on every run.

use std::sync::Arc;

use lamella_math::SecondMoment;

use crate::{Array, ArrayError, ArraySpec, Dtype, Knowledge};

/// SplitMix64: one multiplication chain per number, every seed gives an independent sequence.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in [0, 1).
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }
    /// Close to a standard normal: the sum of twelve uniforms has variance one.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}

/// `count` numbers of a trained weight's kind: spread 0.05, one in 64 eight times as large.
pub(super) fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..count)
        .map(|_| 0.05 * random.normal() * if random.uniform() < 1.0 / 64.0 { 8.0 } else { 1.0 })
        .collect()
}

/// An array of the spec: floats as [`values`], integers of any size, booleans 0 or 1.
pub(super) fn array(spec: ArraySpec, seed: u64) -> Result<Array<'static>, ArrayError> {
    if spec.dtype.is_float() {
        let values = values(spec.len(), seed);
        return Array::from_f32(spec, &values);
    }
    let mut random = Random(seed);
    let mask = if spec.dtype == Dtype::Bool { 1 } else { 0xff };
    let bytes: Vec<u8> =
        (0..spec.len() * spec.dtype.size_bytes()).map(|_| random.next() as u8 & mask).collect();
    Array::new(spec, bytes)
}

/// Second moment of 96 inputs whose neighbours are correlated and whose scales differ by up to sixteen times;
/// feature 2 is always zero, as dead features of real models are.
pub(super) fn second_moment(dimension: usize, seed: u64) -> Option<SecondMoment> {
    const TOKENS: usize = 96;
    let mut random = Random(seed ^ 0x5eed);
    let mut sum = vec![0.0f32; dimension * dimension];
    for _ in 0..TOKENS {
        let mut previous = random.normal();
        let input: Vec<f32> = (0..dimension)
            .map(|i| {
                previous = 0.6 * previous + 0.8 * random.normal();
                let scale = if i == 2 { 0.0 } else { [1.0, 0.25, 4.0, 0.5][i % 4] };
                previous * scale
            })
            .collect();
        for (row, &x) in sum.chunks_exact_mut(dimension.max(1)).zip(&input) {
            for (cell, &y) in row.iter_mut().zip(&input) {
                *cell += x * y;
            }
        }
    }
    SecondMoment::from_sum(dimension, TOKENS as u64, sum)
}

/// What is known of an array in the suite: its inputs' second moment, for matrices with inputs.
pub(super) fn knowledge(spec: &ArraySpec, seed: u64) -> Knowledge {
    match spec.matrix().filter(|&(_, columns)| columns > 0).and_then(|(_, n)| second_moment(n, seed)) {
        Some(moment) => Knowledge::of_inputs(Arc::new(moment)),
        None => Knowledge::default(),
    }
}

/// `trace(E H E^T)` with `H` the mean of `x x^T`, or the sum of squares where no second moment is known.
pub(super) fn distortion(original: &[f32], decoded: &[f32], knowledge: &Knowledge) -> f64 {
    let error: Vec<f64> = original.iter().zip(decoded).map(|(&a, &b)| f64::from(a) - f64::from(b)).collect();
    let Some(moment) = &knowledge.second_moment else {
        return error.iter().map(|e| e * e).sum();
    };
    let n = moment.dimension();
    let mut total = 0.0;
    for row in error.chunks_exact(n) {
        for (&e, moments) in row.iter().zip(moment.sum().chunks_exact(n)) {
            total += e * row.iter().zip(moments).map(|(&f, &m)| f * f64::from(m)).sum::<f64>();
        }
    }
    total / moment.tokens().max(1) as f64
}
