//! What OliVe claims, measured.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use lamella_codec::{Claim, ClaimContext};
use lamella_lm::{CodedLinear, LinearSite, Observer};
use lamella_math::matrix::{Layout, multiply_add};

use super::Grid;
use crate::claims::{ClaimBench, Error, Shown, worst};
use crate::evaluate::Opened;

/// Rows of each input that are looked at, in full and in quick claims.
const MOST_ROWS: [usize; 2] = [512, 128];

/// Rows that linears multiply, by input key, up to so many.
struct Rows(BTreeMap<String, (usize, Vec<f32>)>, usize);

impl Observer for Rows {
    fn observe(&mut self, input: &str, features: usize, rows: &[f32]) {
        let (_, seen) = self.0.entry(input.to_owned()).or_insert((features, Vec::new()));
        let room = (self.1 * features).saturating_sub(seen.len()).min(rows.len());
        seen.extend_from_slice(&rows[..room]);
    }
}

/// The inputs of every linear on a text.
fn rows(bench: &ClaimBench, sequences: &[Vec<u32>]) -> Result<Rows, Error> {
    let most = MOST_ROWS[usize::from(!bench.is_full())];
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(1);
    let sequences = &sequences[..sequences.len().min(most.div_ceil(longest))];
    let (network, mut rows) = (bench.network(), Rows(BTreeMap::new(), most));
    let mut hidden = network.begin(sequences)?;
    for block in 0..network.n_blocks() {
        network.block(block, &mut hidden, Some(&mut rows))?;
    }
    Ok(rows)
}

/// A linear whose inputs are quantised at a scale calibrated before.
struct Quantized {
    weight: Vec<f32>,
    columns: usize,
    grid: Grid,
    scale: f32,
}

impl CodedLinear for Quantized {
    fn apply(&self, inputs: &[f32], tokens: usize, outputs: &mut [f32], stride: usize, column: usize) {
        let mut quantized = Vec::with_capacity(inputs.len());
        for row in inputs.chunks_exact(self.columns) {
            let codes = self.grid.codes(row, self.scale);
            quantized.extend(self.grid.values(&codes, self.scale));
        }
        let rows = self.weight.len() / self.columns;
        let out =
            Layout { rows: tokens, columns: rows, offset: column, row_stride: stride, column_stride: 1 };
        let weight = Layout::row_major(rows, self.columns).transposed();
        let left = Layout::row_major(tokens, self.columns);
        multiply_add(outputs, out, 0.0, &quantized, left, &self.weight, weight, 1.0);
    }
    fn add_row(&self, index: usize, target: &mut [f32]) {
        let row = &self.weight[index * self.columns..][..self.columns];
        target.iter_mut().zip(row).for_each(|(sum, &w)| *sum += w);
    }
    fn resident_bytes(&self) -> usize {
        self.weight.len() * 4
    }
}

/// The better of some grids with its scale, by squared error over the whole array.
fn calibrated(grids: &[Grid], values: &[f32], features: usize) -> (Grid, f32) {
    let mut best: Option<(Grid, f32, f64)> = None;
    for grid in grids {
        let (scale, error) = grid.search(values, features);
        if best.as_ref().is_none_or(|best| error < best.2) {
            best = Some((grid.clone(), scale, error));
        }
    }
    best.map_or((Grid::int4(true), 1.0), |best| (best.0, best.1))
}

/// Runs the claim.
///
/// # Errors
/// Files that cannot be read or written.
pub fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let (bench, mut shown) = (ClaimBench::new(context)?, Shown::default());
    let paired = bench.measure(0, "olive")?;
    let olive = bench.file();
    let kept = bench.scratch("olive.lam");
    fs_err::rename(&olive, &kept)?;
    let clipped = bench.measure(0, "olive(grid=int, outliers=false)")?;
    let plain = bench.scratch("clipped.lam");
    fs_err::rename(bench.file(), &plain)?;
    let n = bench.linears().len();
    let smaller =
        |other: &[f64]| paired.squared_errors.iter().zip(other).filter(|(own, other)| own < other).count();
    let below = smaller(&clipped.squared_errors);
    let pairs = paired.squared_errors.iter().zip(&clipped.squared_errors);
    let equal = pairs.filter(|(own, other)| own == other).count();
    shown.note(&format!(
        "{}: {:.2} bits, perplexity {:.3} (original {:.3}); clipped rounding {:.3}",
        bench.scope(),
        paired.linear_bits,
        paired.perplexity,
        bench.original_perplexity,
        clipped.perplexity,
    ));
    if bench.is_full() {
        let flint = bench.measure(0, "olive(grid=flint, outliers=false)")?;
        let gptq = bench.gptq(0, &paired)?;
        let (recipe, found) = (&gptq.by_kl().recipe, gptq.by_kl().perplexity);
        shown.note(&format!("clipped flint {:.3}; {recipe} {found:.3}", flint.perplexity));
    }
    shown.line(
        below == n,
        &format!(
            "(1) weights: squared error below clipped rounding's on {below} of {n} linears, equal on {equal}"
        ),
    );
    let ratio = paired.perplexity / clipped.perplexity;
    shown.line(
        ratio < 1.0,
        &format!("(1) weights: perplexity over clipped rounding's {ratio:.4}, at equal bytes"),
    );
    let (mut errors, mut both, mut doubles) = (Vec::new(), Vec::new(), (0usize, 0usize));
    let mut headline = (0.0, 0.0, f64::NEG_INFINITY);
    for seed in bench.seeds() {
        let (seen, unseen) = (rows(&bench, &bench.sequences(seed)?)?, rows(&bench, bench.unseen())?);
        let mut scales: [BTreeMap<String, (Grid, f32)>; 2] = Default::default();
        let mut least = 0;
        for (key, (features, values)) in &seen.0 {
            let own = calibrated(&[Grid::int4(true), Grid::flint4(true)], values, *features);
            let other = calibrated(&[Grid::int4(false)], values, *features);
            if let Some((_, held_out)) = unseen.0.get(key) {
                let error = |chosen: &(Grid, f32)| chosen.0.squared_error(held_out, *features, chosen.1);
                least += usize::from(error(&own) < error(&other));
                doubles.0 += held_out.chunks(*features).map(|row| own.0.doubles(row, own.1)).sum::<usize>();
                doubles.1 += held_out.len() / 2;
            }
            scales[0].insert(key.clone(), own);
            scales[1].insert(key.clone(), other);
        }
        errors.push((least, seen.0.len()));
        let perplexity = |path: &PathBuf, scales: &BTreeMap<String, (Grid, f32)>| -> Result<f64, Error> {
            let network = Opened::open_lazy(&path.to_string_lossy(), &bench.catalogue)?.model.network;
            let source = Arc::clone(network.source());
            let operator = |site: &LinearSite| -> Option<Arc<dyn CodedLinear>> {
                let (grid, scale) = scales.get(&site.input).filter(|_| site.block.is_some())?.clone();
                let weight = source.array(&site.weight).ok()?.to_f32().ok()?;
                Some(Arc::new(Quantized { weight, columns: site.in_features, grid, scale }))
            };
            Ok(bench.judge(&network.resident_with(&operator)?)?.1)
        };
        let (own, other) = (perplexity(&kept, &scales[0])?, perplexity(&plain, &scales[1])?);
        both.push(own / other);
        if own / other > headline.2 {
            headline = (own, other, own / other);
        }
    }
    let all = errors.iter().all(|error| error.0 == error.1);
    shown.line(
        all,
        &format!("(1) activations: squared error on unseen text below on (inputs, of) {errors:?}"),
    );
    let (most, text) = worst(&both);
    shown
        .line(most < 1.0, &format!("(1) weights and activations: perplexity over clipped rounding's {text}"));
    let share = doubles.0 as f64 / doubles.1.max(1) as f64;
    shown
        .line(share < 1e-3, &format!("(2) {:.4} % of pairs of activations hold two outliers", 100.0 * share));
    Ok(shown.claim(
        &crate::systems::olive(),
        "perplexity, 4-bit weights and activations",
        ("clipped 4-bit rounding", headline.1),
        headline.0,
    ))
}
