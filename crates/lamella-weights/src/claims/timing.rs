//! Timing products on one thread.

use std::time::Instant;

use lamella_math::matrix::{Layout, multiply_add};

/// The median of so many runs, in milliseconds.
pub fn median(runs: usize, mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[runs / 2]
}

/// `out = weights input` for weights held as `f32`, row-major: what coded products are compared with.
pub fn dense_product(weights: &[f32], input: &[f32], out: &mut [f32]) {
    let (rows, columns) = (out.len(), input.len());
    let (left, right) = (Layout::row_major(rows, columns), Layout::row_major(columns, 1));
    multiply_add(out, Layout::row_major(rows, 1), 0.0, weights, left, input, right, 1.0);
}

/// The same numbers on every run.
pub fn numbers() -> impl FnMut() -> u64 {
    let mut state = 1u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}
