//! How fast the allocators are: `cargo run --release -p lamella -p lamella-rate --example allocators`.
//!
//! 2,000 arrays of 16 points whose loss falls by about 2.5 with each half bit, a budget a third of the way from the
//! smallest to the largest allocation, the median of five runs.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints what it measured")]

use std::time::Instant;

use lamella_rate::{Allocator, ErrorBudget, Greedy, Knapsack, Lagrangian, Offer, Problem, RatePoint};

const ARRAYS: u64 = 2000;
const POINTS: u64 = 16;

fn main() {
    let mut state = 7u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1u64 << 31) as f64
    };
    let offers = (0..ARRAYS).map(|array| {
        let (weight, elements) = (10f64.powf(3.0 * unit()), 1000 + (2000.0 * unit()) as u64);
        let point = |k: u64| RatePoint {
            bytes: elements * (k + 1) / 16 + (9.0 * unit()) as u64,
            loss: weight * 0.4f64.powi(k as i32) * (0.7 + 0.6 * unit()),
        };
        Offer::new(array.to_string(), (0..POINTS).map(point).collect())
    });
    let problem = Problem::new(offers.collect()).unwrap();
    let (low, high) = (problem.smallest_bytes(), problem.largest_bytes());
    let budget = low + (high - low) / 3;
    println!("| allocator | seconds | loss | bytes of {budget} |\n|---|---:|---:|---:|");
    let row = |name: &str, run: &dyn Fn() -> lamella_rate::Allocation| {
        let mut seconds: Vec<f64> = Vec::new();
        let mut found = run();
        for _ in 0..5 {
            let started = Instant::now();
            found = run();
            seconds.push(started.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        println!("| {name} | {:.4} | {:.3} | {} |", seconds[2], found.loss, found.bytes);
        found.loss
    };
    let allocators: [&dyn Allocator; 3] = [&Knapsack::default(), &Lagrangian, &Greedy];
    let mut loss = 0.0;
    for allocator in allocators {
        loss = row(allocator.name(), &|| allocator.allocate(&problem, budget).unwrap());
    }
    row("error budget", &|| ErrorBudget::default().allocate(&problem, loss).unwrap());
}
