//! L-GreCo (S153): a rank for every layer of an update, the fewest bytes at the total error of one rank for all.
//!
//! # Idea
//! Layers differ in how fast their error falls with the level of a compressor. One level for all therefore pays for
//! error where it is cheap and spends bytes where they buy little. Fix the total error that the default level makes,
//! and ask for the assignment of levels with the fewest bytes that makes no more.
//!
//! # Algorithm
//! 1. Candidate ranks `floor(c0 / 2) .. 2 c0` around the default rank `c0`. A layer of `rows cols <= 2 c0 (rows + cols)`
//!    has too little to gain and stays as it is.
//! 2. `err[l][c] = |G_l - C_c(G_l)|_F` for every layer and rank, `C_c` being five power iterations `P = G Q`,
//!    orthogonalise `P`, `Q = G^T P`, from a random `Q`; `C_c(G) = P Q^T`.
//! 3. `E_max = sum_l err[l][c0]`, divided into 10,000 buckets, errors rounded up.
//! 4. `DP[l][e] = min_c DP[l-1][e - q[l][c]] + size[l][c]`, back-pointers, the least over all `e`:
//!    [`lamella_rate::ErrorBudget`].
//!
//! # Shapes
//! `update [rows, cols] f32`, one a layer; ranks `[layers]`.
//!
//! # Stored form
//! Two factors of f32 for each layer: `32 c (rows + cols)` bits (`c` = 4 and 256 x 768: 16 KB of 786 KB).
//!
//! # Cost
//! `4 iterations rank rows cols` operations a layer and rank; the programme `layers x 10,000 x ranks` steps, some
//! milliseconds. Only layers' own updates are needed.
//!
//! # When to choose it
//! Where an error is given and bytes are wanted. Where bytes are given, take the plan's allocators.
//!
//! # Claim
//! At no more total error than rank 4 for all layers, the chosen ranks take at most 1 / 1.3 of its bytes.
//!
//! # Differences
//! From the paper: the update is the whole of a fine-tuning (the difference of two models' weights) instead of the mean
//! of ten gradients, since this wing holds no training; so there is one adjustment, no error feedback and no exchange
//! between workers. Without test data the weights of the project's own model stand for the update. Where the buckets'
//! rounding leaves more bytes than the default rank takes, the default is kept, so that the result is never larger.
//! On the fine-tuning of wiki5m the ranks found take 1 / 1.17 of the bytes: the claim is not met there.
//!
//! # Source
//! M. Alimohammadi, I. Markov, E. Frantar, D. Alistarh, "L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient
//! and Accurate Deep Learning", arXiv 2210.17357; T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD", arXiv 1905.13727.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lamella_codec::{Array, Claim, ClaimContext, System, Wing};
use lamella_lm::{LinearSite, Model, Network};
use lamella_rate::{Allocation, ErrorBudget, Offer, Problem, RatePoint};
use rayon::prelude::*;

use crate::levels::{Error, Judge, Levels, Random, Subject};

const CLAIM: &str =
    "at no more total error than rank 4 for all layers, the chosen ranks take at most 1 / 1.3 of its bytes";
const DEFAULT_RANK: usize = 4;
const POWER_ITERATIONS: usize = 5;
const UNSEEN_WINDOWS: usize = 8;

/// The line of the list.
pub fn system() -> System {
    System {
        id: "S153",
        name: "L-GreCo",
        wing: Wing::Weights,
        compresses: "ranks over the layers of an update",
        recipe: Some("low rank per array, chosen by dynamic programming over the error"),
        claim: Some(CLAIM),
        measure: Some(measure),
    }
}

/// Orthonormal columns of a `[rows, rank]` matrix, by modified Gram-Schmidt.
fn orthogonalize(matrix: &mut [f64], rank: usize) {
    for column in 0..rank {
        for earlier in 0..column {
            let dot: f64 = matrix.chunks_exact(rank).map(|row| row[column] * row[earlier]).sum();
            matrix.chunks_exact_mut(rank).for_each(|row| row[column] -= dot * row[earlier]);
        }
        let norm = matrix.chunks_exact(rank).map(|row| row[column] * row[column]).sum::<f64>().sqrt();
        let scale = if norm > 1e-30 { 1.0 / norm } else { 0.0 };
        matrix.chunks_exact_mut(rank).for_each(|row| row[column] *= scale);
    }
}

/// Step 2: `P Q^T` of a `[rows, cols]` matrix.
fn low_rank(matrix: &[f32], cols: usize, rank: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut unit = || (random.next() >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
    let mut q: Vec<f64> = (0..cols * rank).map(|_| unit()).collect();
    let mut p = vec![0.0; matrix.len() / cols.max(1) * rank];
    for _ in 0..POWER_ITERATIONS {
        for (out, row) in p.chunks_exact_mut(rank).zip(matrix.chunks_exact(cols)) {
            out.fill(0.0);
            for (&value, q) in row.iter().zip(q.chunks_exact(rank)) {
                out.iter_mut().zip(q).for_each(|(out, q)| *out += f64::from(value) * q);
            }
        }
        orthogonalize(&mut p, rank);
        q.fill(0.0);
        for (p, row) in p.chunks_exact(rank).zip(matrix.chunks_exact(cols)) {
            for (&value, q) in row.iter().zip(q.chunks_exact_mut(rank)) {
                q.iter_mut().zip(p).for_each(|(q, p)| *q += f64::from(value) * p);
            }
        }
    }
    let entry = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(a, b)| a * b).sum::<f64>() as f32;
    p.chunks_exact(rank).flat_map(|p| q.chunks_exact(rank).map(move |q| entry(p, q))).collect()
}

/// Steps 1 and 2 for one layer: what each rank leaves, as arrays of `base + C(update)`, with bytes and errors.
fn ranks(
    site: &LinearSite,
    update: &[f32],
    base: &[f32],
    original: &Array<'_>,
) -> Result<(Vec<Option<Array<'static>>>, Vec<RatePoint>), Error> {
    let [rows, cols] = site.stored_shape();
    if rows * cols <= 2 * DEFAULT_RANK * (rows + cols) {
        let whole = RatePoint { bytes: 4 * (rows * cols) as u64, loss: 0.0 };
        return Ok((vec![None; candidates().len()], vec![whole; candidates().len()]));
    }
    let (mut arrays, mut points) = (Vec::new(), Vec::new());
    for rank in candidates() {
        let near = low_rank(update, cols, rank, 153);
        let square = |(a, b): (&f32, &f32)| f64::from(a - b) * f64::from(a - b);
        let loss = update.iter().zip(&near).map(square).sum::<f64>().sqrt();
        points.push(RatePoint { bytes: (4 * rank * (rows + cols)) as u64, loss });
        let values: Vec<f32> = base.iter().zip(&near).map(|(base, near)| base + near).collect();
        arrays.push(Some(Array::from_f32(original.spec.clone(), &values)?));
    }
    Ok((arrays, points))
}

fn candidates() -> Vec<usize> {
    (DEFAULT_RANK / 2..=2 * DEFAULT_RANK).collect()
}

/// Steps 3 and 4.
///
/// # Errors
/// None that the default level does not rule out.
fn choose(problem: &Problem, default: usize) -> Result<Allocation, Error> {
    let of = |level: usize| {
        let points = || problem.offers().iter().map(|offer| offer.points[level]);
        let choices = vec![level; problem.offers().len()];
        Allocation { choices, bytes: points().map(|p| p.bytes).sum(), loss: points().map(|p| p.loss).sum() }
    };
    let uniform = of(default);
    match ErrorBudget::default().allocate(problem, uniform.loss) {
        Ok(found) if found.bytes < uniform.bytes => Ok(found),
        _ => Ok(uniform),
    }
}

/// The fine-tuned model beside the base, where test data hold both.
fn tuned(context: &ClaimContext) -> Result<Option<(Subject, Network)>, Error> {
    let Some(data) = context.data.as_ref().filter(|data| data.join("lm/wiki5m-ft").is_dir()) else {
        return Ok(None);
    };
    let text = data.join("text");
    let texts = [text.join("wikitext2_valid.txt"), text.join("wikitext2_eval.txt")];
    let base = Subject::open("wiki5m-ft - wiki5m", &data.join("lm/wiki5m"), texts)?;
    let directory = Arc::new(lamella_io::ModelDirectory::open(data.join("lm/wiki5m-ft"))?);
    let side: BTreeMap<String, Vec<u8>> = directory.side_files()?.into_iter().collect();
    let tuned = Model::open(directory, &side)?.network.resident()?;
    Ok(Some((base, tuned)))
}

fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let started = Instant::now();
    let (subject, other) = match tuned(context)? {
        Some((base, tuned)) => (base, Some(tuned)),
        None => (Subject::of(context)?, None),
    };
    let sites = subject.sites();
    let original = other.as_ref().unwrap_or(&subject.network);
    let layers: Vec<_> = sites
        .par_iter()
        .map(|site| {
            let array = original.source().array(&site.weight)?;
            let weights = array.to_f32()?;
            let base = match &other {
                Some(_) => subject.network.source().array(&site.weight)?.to_f32()?,
                None => vec![0.0; weights.len()],
            };
            let update: Vec<f32> = weights.iter().zip(&base).map(|(weight, base)| weight - base).collect();
            ranks(site, &update, &base, &array)
        })
        .collect::<Result<_, Error>>()?;
    let mut levels = Levels { arrays: Vec::new(), bytes: Vec::new() };
    let mut offers = Vec::new();
    for (site, (arrays, points)) in sites.iter().zip(layers) {
        levels.bytes.push(points.iter().map(|point| point.bytes).collect());
        levels.arrays.push(arrays);
        offers.push(Offer::new(site.weight.clone(), points));
    }
    let problem = Problem::new(offers)?;
    let default = candidates().iter().position(|&rank| rank == DEFAULT_RANK).unwrap_or(0);
    let found = choose(&problem, default)?;
    let uniform: Vec<usize> = vec![default; sites.len()];
    let uniform_bytes = levels.total(&uniform);
    // The largest single rank in the bytes found.
    let fits = |level: &usize| levels.total(&vec![*level; sites.len()]) <= found.bytes;
    let equal = (0..candidates().len()).rev().find(fits).unwrap_or(0);
    let unseen = Judge::new(original, &subject.unseen, UNSEEN_WINDOWS)?;
    let kl = |choices: &[usize]| unseen.kl(&levels, choices);
    let ratio = uniform_bytes as f64 / found.bytes.max(1) as f64;
    let chosen = |rank: usize| found.choices.iter().filter(|&&choice| candidates()[choice] == rank).count();
    let counts: Vec<String> = candidates().iter().map(|&rank| format!("{} x {rank}", chosen(rank))).collect();
    Ok(Claim {
        id: "S153".to_owned(),
        name: "L-GreCo".to_owned(),
        wing: Wing::Weights,
        claim: CLAIM.to_owned(),
        metric: "bytes of the factors at equal total error".to_owned(),
        baseline_name: "rank 4 for all layers".to_owned(),
        baseline: uniform_bytes as f64,
        measured: found.bytes as f64,
        holds: ratio >= 1.3,
        reason: format!(
            "{} ({} layers): {ratio:.2} times smaller; layers x rank {}; KL on unseen text {:.5} against {:.5} of rank 4 \
             for all and {:.5} of rank {} for all, the largest in these bytes",
            subject.name,
            sites.len(),
            counts.join(", "),
            kl(&found.choices)?,
            kl(&uniform)?,
            kl(&vec![equal; sites.len()])?,
            candidates()[equal],
        ),
        seconds: started.elapsed().as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_of_rank_two_comes_back_and_a_smaller_rank_leaves_its_smaller_part() {
        // 3 u v^T + 1 x y^T with orthonormal factors: rank 1 leaves an error of 1.
        let (u, x) = ([0.6f32, 0.8, 0.0], [0.8f32, -0.6, 0.0]);
        let (v, y) = ([1.0f32, 0.0], [0.0f32, 1.0]);
        let matrix: Vec<f32> = (0..6).map(|at| 3.0 * u[at / 2] * v[at % 2] + x[at / 2] * y[at % 2]).collect();
        let error = |rank: usize| -> f64 {
            let near = low_rank(&matrix, 2, rank, 1);
            let square = |(a, b): (&f32, &f32)| f64::from(a - b) * f64::from(a - b);
            matrix.iter().zip(&near).map(square).sum::<f64>().sqrt()
        };
        assert!(error(2) < 1e-5, "{}", error(2));
        assert!((error(1) - 1.0).abs() < 1e-3, "{}", error(1));
    }

    #[test]
    fn never_more_bytes_or_error_than_the_default_rank() {
        let point = |rank: u64, loss: f64| RatePoint { bytes: 10 * rank, loss };
        let flat = Offer::new("flat", vec![point(2, 4.0), point(4, 3.9), point(8, 3.8)]);
        let steep = Offer::new("steep", vec![point(2, 4.0), point(4, 1.0), point(8, 0.1)]);
        let problem = Problem::new(vec![flat.clone(), steep]).unwrap();
        let found = choose(&problem, 1).unwrap();
        assert!(found.bytes <= 80 && found.loss <= 4.9);
        let alone = choose(&Problem::new(vec![flat]).unwrap(), 1).unwrap();
        assert_eq!(alone.choices, [1]);
    }
}
