//! What a decoder may know of a linear's inputs, and what that costs: bits a weight against knowing all of it for nothing.
//!
//! ```text
//! cargo run --release -p lamella-weights --example progressive_alternatives -- MODEL STATISTICS
//! ```
//!
//! STATISTICS is what `compress --statistics` keeps. For each role of the model's linears, and for all by weights:
//!
//! * nothing: the decoder knows the steps alone, a refinement's error is shaped by nothing;
//! * stored for each array, and stored once for arrays with the same inputs: diagonal plus low rank, loadings and ranks
//!   as `progressive` chooses them, their bytes counted;
//! * learned from the rows before: nothing is stored, and the covariance of the remaining error is what rows already
//!   refined had, drawn towards the diagonal by the best of three weights (a Gaussian's excess code length; the rows' bits
//!   before the first of them is refined are given away);
//! * rotated: the residual stream is turned into the mean eigenvectors of its linears' inputs, folded into the weights
//!   around it, and only the diagonal is known. Inputs that are no residual stream keep theirs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measuring program")]

use std::collections::BTreeMap;
use std::sync::Arc;

use lamella_codec::Knowledge;
use lamella_lm::statistics::Statistics;
use lamella_lm::{LinearSite, Role};
use lamella_math::matrix::{Layout, multiply_add};
use lamella_math::{InverseFactor, SecondMoment, low_rank_pair};
use lamella_weights::compress::Input;
use lamella_weights::matrix::Matrix;
use lamella_weights::progressive::solver::Solver;

const DAMPING: f64 = 0.03;
const MOST_DIRECTIONS: usize = 64;
/// Rows that are refined before the covariance is learned anew, as a share of all.
const STEPS_OF_LEARNING: usize = 12;

/// Bits of knowing the diagonal alone.
fn bits_of_diagonal(moment: &SecondMoment, factor: &InverseFactor) -> f64 {
    let n = moment.dimension();
    let tokens = moment.tokens().max(1) as f64;
    let damping = factor.absolute_damping();
    let logs: f64 = (0..n)
        .map(|j| {
            let variance = f64::from(moment.sum()[j * n + j]) / tokens + damping;
            0.5 * variance.log2() + f64::from(factor.upper()[j * n + j]).log2()
        })
        .sum();
    logs / n as f64
}

/// Excess bits of rows of the remaining error, `rows` in all, each block coded as those before it suggest.
fn bits_of_learning(factor: &InverseFactor, rows: usize) -> f64 {
    let n = factor.dimension();
    // A small deterministic source of Gaussian numbers.
    let mut state = 7u64;
    let mut normal = || {
        let mut sum = 0.0f32;
        for _ in 0..12 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (state >> 40) as f32 / (1 << 24) as f32;
        }
        sum - 6.0
    };
    let square = Layout::row_major(n, n);
    // In units of the error's own standard deviations, which steps tell: `E = e U`, unit variances.
    let upper = factor.upper();
    let mut variances = vec![0.0f64; n];
    for row in upper.chunks_exact(n) {
        variances.iter_mut().zip(row).for_each(|(sum, &u)| *sum += f64::from(u).powi(2));
    }
    let scaled: Vec<f32> =
        upper.iter().enumerate().map(|(at, &u)| (f64::from(u) / variances[at % n].sqrt()) as f32).collect();
    let log2_truth: f64 = (0..n).map(|j| 2.0 * f64::from(scaled[j * n + j]).log2()).sum();
    let block = rows.div_ceil(STEPS_OF_LEARNING);
    let weights = [0.25, 1.0, 4.0].map(|share| share * n as f64);
    let mut totals = [0.0; 3];
    let mut sum = vec![0.0f32; n * n];
    let mut seen = 0;
    while seen < rows {
        let height = block.min(rows - seen);
        for (total, &weight) in totals.iter_mut().zip(&weights) {
            let mut prior = sum.clone();
            (0..n).for_each(|j| prior[j * n + j] += weight as f32);
            let learned = SecondMoment::from_sum(n, (seen as f64 + weight).round() as u64, prior).unwrap();
            // Its inverse's factor `V`: `trace(C learned^-1) = |scaled V^T|^2`, `log det learned = -2 sum log V_jj`.
            let factor = InverseFactor::new(&learned, 0.0).unwrap();
            let mut product = vec![0.0f32; n * n];
            multiply_add(
                &mut product,
                square,
                0.0,
                &scaled,
                square,
                factor.upper(),
                square.transposed(),
                1.0,
            );
            let trace: f64 = product.iter().map(|&v| f64::from(v).powi(2)).sum();
            let log2_learned: f64 = factor.diagonal().iter().map(|&v| -2.0 * f64::from(v).log2()).sum();
            let excess = 0.5 * (log2_learned - log2_truth) / n as f64
                + 0.5 * (trace / n as f64 - 1.0) / std::f64::consts::LN_2;
            *total += excess * height as f64 / rows as f64;
        }
        let white: Vec<f32> = (0..height * n).map(|_| normal()).collect();
        let mut errors = vec![0.0f32; height * n];
        let shape = Layout::row_major(height, n);
        multiply_add(&mut errors, shape, 0.0, &white, shape, &scaled, square, 1.0);
        multiply_add(&mut sum, square, 1.0, &errors, shape.transposed(), &errors, shape, 1.0);
        seen += height;
    }
    totals.into_iter().fold(f64::INFINITY, f64::min)
}

/// Inputs of the residual stream: what attention and feed-forward networks read.
fn is_of_stream(role: Role) -> bool {
    matches!(role, Role::Query | Role::Key | Role::Value | Role::Gate | Role::Up)
}

/// The mean of moments of the same width, each scaled to the same trace, and its eigenvectors as rows.
fn common_rotation(moments: &[Arc<SecondMoment>]) -> Vec<f32> {
    let n = moments[0].dimension();
    let mut mean = vec![0.0f64; n * n];
    for moment in moments {
        let trace = moment.mean_diagonal() * n as f64;
        mean.iter_mut().zip(moment.sum()).for_each(|(cell, &v)| *cell += f64::from(v) / trace);
    }
    let pair = low_rank_pair(&mean, n, n, n).unwrap();
    let unit = |row: &[f64]| -> Vec<f32> {
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-300);
        row.iter().map(|&v| (v / norm) as f32).collect()
    };
    pair.right.chunks_exact(n).flat_map(unit).collect()
}

fn rotated(moment: &SecondMoment, rotation: &[f32]) -> SecondMoment {
    let n = moment.dimension();
    let square = Layout::row_major(n, n);
    let (mut half, mut whole) = (vec![0.0f32; n * n], vec![0.0f32; n * n]);
    multiply_add(&mut half, square, 0.0, rotation, square, moment.sum(), square, 1.0);
    multiply_add(&mut whole, square, 0.0, &half, square, rotation, square.transposed(), 1.0);
    SecondMoment::from_sum(n, moment.tokens(), whole).unwrap()
}

/// Bits over full knowledge of what is stored for so many rows, and of those bits what the bytes are.
fn bits_of_stored(moment: &Arc<SecondMoment>, factor: &InverseFactor, rows: usize) -> f64 {
    let columns = moment.dimension();
    let solver = Solver::new((DAMPING, 0.0, MOST_DIRECTIONS), (2.0, 70), None);
    let matrix = Matrix { rows, columns, values: vec![1.0; rows * columns] };
    let knowledge = Knowledge::of_inputs(Arc::clone(moment));
    let (against_diagonal, bytes) = solver.shaping("array", &matrix, &knowledge).unwrap().cost();
    bits_of_diagonal(moment, factor) + against_diagonal + 8.0 * bytes / (rows * columns) as f64
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let input = Input::open(&arguments[0]).unwrap();
    let statistics = Statistics::open(arguments[1].as_ref()).unwrap();
    let network = &input.model.as_ref().unwrap().network;
    let mut inputs: BTreeMap<&str, Vec<&LinearSite>> = BTreeMap::new();
    for site in network.linears().iter().filter(|site| site.block.is_some() && !site.is_transposed) {
        inputs.entry(&site.input).or_default().push(site);
    }
    let moment_of = |key: &str| statistics.second_moment(key).unwrap();
    let stream: Vec<Arc<SecondMoment>> = inputs
        .iter()
        .filter(|(_, sites)| is_of_stream(sites[0].role))
        .filter_map(|(key, _)| moment_of(key))
        .collect();
    let rotation = common_rotation(&stream);
    // By role: weights, and weights times bits of each way.
    let mut rows_of: BTreeMap<String, (f64, [f64; 5])> = BTreeMap::new();
    for (key, sites) in &inputs {
        let Some(moment) = moment_of(key) else { continue };
        let factor = InverseFactor::new(&moment, DAMPING).unwrap();
        let nothing = bits_of_diagonal(&moment, &factor);
        let all_rows: usize = sites.iter().map(|site| site.out_features).sum();
        let together = bits_of_stored(&moment, &factor, all_rows);
        let learned = bits_of_learning(&factor, all_rows).min(nothing);
        let turned = match is_of_stream(sites[0].role) {
            true => {
                let turned = rotated(&moment, &rotation);
                bits_of_diagonal(&turned, &InverseFactor::new(&turned, DAMPING).unwrap())
            }
            false => nothing,
        };
        for site in sites {
            let alone = bits_of_stored(&moment, &factor, site.out_features);
            let weights = (site.in_features * site.out_features) as f64;
            for name in [format!("{:?}", site.role), "all".to_owned()] {
                let (total, sums) = rows_of.entry(name).or_default();
                *total += weights;
                let ways = [nothing, alone, together, learned, turned];
                sums.iter_mut().zip(ways).for_each(|(sum, bits)| *sum += weights * bits);
            }
        }
    }
    println!(
        "| linears | weights | nothing | stored for each | stored once | learned from rows before | rotated |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (name, (weights, sums)) in &rows_of {
        let cells: Vec<String> = sums.iter().map(|sum| format!("{:.3}", sum / weights)).collect();
        println!("| {} | {weights:.0} | {} |", name.to_lowercase(), cells.join(" | "));
    }
}
