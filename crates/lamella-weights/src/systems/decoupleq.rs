//! decoupleQ (S054): integers and grids found in turn as one constrained least-squares problem under the inputs.
//!
//! # Idea
//! GPTQ takes its grids from the weights' range and only then asks what the outputs want. At 2 bits the range is the wrong
//! question: with four levels the best scale cuts the tails off. Forgetting what scale and zero mean and fitting them to
//! the output error, in turn with the integers, removes the error that a fixed grid leaves.
//!
//! # Algorithm
//! 1. For a row `b` find integers `w` in `-2^(b-1) .. 2^(b-1)-1` and per group `(s, z)` that minimise
//!    `g = (w s + z - b) H (w s + z - b)^T`, `H` the damped mean of `x x^T`.
//! 2. Start: the range's grid; rounding, then one GPTQ sweep on it; the better of the two, row by row.
//! 3. Ranges `p min, p max` for `p = 1 - i/200`, `i = 0..shrinks`, rounded; the best `p` a row; then step 5.
//! 4. `(s, z)` fixed: a GPTQ sweep on those grids, columns by falling diagonal of `H`.
//! 5. `w` fixed: `(s, z)` in closed form, `[A H A', A H I'; I H A', I H I'] [s; z] = [A H b; I H b]`, `A` the row's integers
//!    and `I` its ones, masked to each group.
//! 6. Each half step is kept for the rows whose `g` falls; `rounds` of 4 and 5, or until no row gains.
//!
//! # Shapes
//! `weight [out_features, in_features]`, any float type; second moment `[in_features, in_features]`.
//!
//! # Stored form
//! [`crate::grouped`]: 16 bits each for scale and minimum of a group and `b` bits a code: `b + 32/g` bits per weight (2.125
//! at 2 bits for rows of 256).
//!
//! # Cost
//! Calibration, no gradients. Step 3 is `shrinks` and each round about three times `rows * columns^2` multiply-adds, so
//! about 170 sweeps of `gptq` with the default. Decoding costs what `rtn` costs.
//!
//! # When to choose it
//! At 2 bits where the reader wants plain groups or rows. From 4 bits on `gptq` is as good; for a size take `house`.
//!
//! # Claim
//! At 2 bits a row the error of every linear is below the best of six settings of `gptq` in a file no smaller, and that is
//! below rounding's; perplexity is at most half of the best gptq's; a block stage lowers it again.
//!
//! # Differences
//! Step 4 is the paper's second approximation (its first, projected gradient descent on the weights, is for small networks).
//! Scales and minima are rounded to 16 bits before `g` is compared. The block stage, gradient descent on `(s, z)` and norms
//! against each block's output, is not built, since this house's reverse passes hold matrices constant; `--tune` moves norms
//! and biases only. That line of the claim is therefore reported as not reproduced.
//!
//! # Source
//! Y. Guo et al., "decoupleQ: Towards 2-bit Post-Training Uniform Quantization via decoupling Parameters into Integer and
//! Floating Points", arXiv 2404.12759, sections 3.2 to 3.4; grid search and thresholds as in the released code.

use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Claim, ClaimContext, Codec, CodecError, Encoded, Knowledge, Rate, Recipe, Refusal,
    Registration, System, Wing,
};
use lamella_quant::gptq::Order;
use lamella_quant::grid::Zero;

use crate::claims::{ClaimBench, Error, Shown, exceptions, worst};
use crate::decoupleq::{Settings, damped, solve};
use crate::distortion::{distortion, weighted_energy};
use crate::grouped::GroupedForm;
use crate::inputs::{Factored, factored};
use crate::matrix::{accepts_matrix, clamp, clamped_array, damaged, out_of_range, read_matrix, single_layer};

const CLAIM: &str = "at 2 bits a row: error on every linear below the best gptq's, at most half its perplexity; less with a block stage";

/// The catalogue's entry.
pub fn system() -> System {
    System {
        id: "S054",
        name: "decoupleQ",
        wing: Wing::Weights,
        compresses: "weights at 2 bits in plain uniform codes",
        recipe: Some("decoupleq"),
        claim: Some(CLAIM),
        measure: Some(measure),
    }
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "decoupleq",
        summary: "plain uniform codes at 2 bits, integers and grids fitted in turn to the output error",
        arguments: &[
            ("bits", "2", "bits of a code, 2 to 8"),
            ("group_size", "65536", "inputs that share a grid, 4 to 65536; the default is a grid a row"),
            ("rounds", "4", "rounds of integers and grids in turn, 0 to 100"),
            ("shrinks", "160", "ranges tried at first, in steps of 1/200 of the whole, 1 to 199"),
            ("damping", "0.01", "fraction of the mean diagonal added to the second moment, 0.000001 to 10"),
            (
                "sequential",
                "false",
                "take each block's statistics behind the already quantised blocks before it",
            ),
        ],
        build: |recipe| Ok(Arc::new(DecoupleQ::from_recipe(recipe)?)),
    }
}

/// Parameters; the defaults are the paper's.
#[derive(Debug, Clone)]
pub struct DecoupleQ {
    recipe: Recipe,
    /// Bits of a code, group size, rounds of steps 4 and 5, ranges of step 3.
    pub settings: Settings,
    /// Fraction of the mean diagonal added to it.
    pub damping: f64,
}

impl DecoupleQ {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("bits")?;
        let names = registration().arguments;
        recipe.reject_unknown(&names.iter().map(|argument| argument.0).collect::<Vec<_>>())?;
        recipe.flag("sequential")?;
        Ok(Self {
            settings: Settings {
                bits: recipe.integer("bits", 2..=8, 2)?,
                group_size: recipe.integer("group_size", 4..=65536u32, 65536)? as usize,
                rounds: recipe.integer("rounds", 0..=100u32, 4)? as usize,
                shrinks: recipe.integer("shrinks", 1..=199u32, 160)? as usize,
            },
            damping: recipe.number("damping", 1e-6..=10.0, 0.01)?,
            recipe,
        })
    }

    fn form(&self, rows: usize, columns: usize) -> GroupedForm {
        GroupedForm {
            rows,
            columns,
            bits: self.settings.bits,
            group_size: self.settings.group_size,
            zero: Zero::Float,
            has_order: false,
            groups_follow_order: false,
        }
    }

    /// The factor at the least damping it exists for: step 4 of the released code.
    fn factor(
        &self,
        spec: &ArraySpec,
        columns: usize,
        known: &Knowledge,
    ) -> Result<(Factored, f64), CodecError> {
        let mut damping = self.damping;
        loop {
            match factored(spec, columns, known, Order::Activation, damping) {
                Err(_) if damping < 100.0 => damping *= 10.0,
                Err(error) => return Err(error),
                Ok(factor) => return Ok((factor, damping)),
            }
        }
    }
}

impl Codec for DecoupleQ {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn uses_second_moment(&self) -> bool {
        true
    }

    fn stored_bytes(&self, spec: &ArraySpec) -> Option<u64> {
        let (rows, columns) = spec.matrix()?;
        Some(self.form(rows, columns).stored_bytes()? as u64)
    }

    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        accepts_matrix(spec)
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, _rate: Rate) -> Result<Encoded, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let columns = matrix.columns;
        // 1.
        let (factor, damping) = self.factor(&array.spec, columns, knowledge)?;
        let moment = damped(knowledge.second_moment.as_deref(), damping);
        // 2. to 6.
        let solution = solve(&matrix.values, columns, moment.as_deref(), &factor, self.settings);
        let payload = self.form(matrix.rows, columns).encode(&solution.groups, &[], &solution.codes);
        let payload = payload.map_err(|message| out_of_range(&array.spec, &matrix, &message))?;
        let mut reconstruction = solution.values;
        clamp(&mut reconstruction, array.spec.dtype);
        Ok(Encoded::single(
            payload,
            distortion(&matrix.values, &reconstruction, columns, knowledge),
            weighted_energy(&matrix.values, columns, knowledge),
        ))
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (rows, columns) = spec.matrix().ok_or_else(|| damaged(spec, 0, "the array has not 2 axes"))?;
        let payload = single_layer(spec, layers)?;
        let values = self.form(rows, columns).decode(payload).map_err(|message| damaged(spec, 0, message))?;
        clamped_array(spec, values)
    }
}

/// Runs the system and its baselines. The claim's test and `lamella reproduce S054` call this.
fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let (bench, mut shown) = (ClaimBench::new(context)?, Shown::default());
    let n = bench.linears().len();
    let (mut below, mut ordered, mut misses) = (n, n, String::new());
    let (mut errors, mut perplexities) = (vec![], vec![]);
    let mut headline = (0.0, 0.0, f64::NEG_INFINITY);
    for seed in bench.seeds() {
        let system = bench.measure(seed, "decoupleq")?;
        let gptq = bench.gptq(seed, &system)?;
        let rtn = bench.measure(seed, &bench.next_form("rtn", "zero=float", system.linear_bytes)?)?;
        let (best, least) = (gptq.by_error(), gptq.by_kl());
        if seed == 0 {
            shown.note(&format!(
                "{}: {:.3} bits; gptq {:.3} bits (least error {}; least KL {})",
                bench.scope(),
                system.linear_bits,
                best.linear_bits,
                best.recipe,
                least.recipe
            ));
        }
        if system.n_better(best) <= below {
            below = system.n_better(best);
            misses = exceptions(&bench, &system, best);
        }
        ordered = ordered.min(best.n_better(&rtn));
        errors.push(system.mean_error() / best.mean_error());
        perplexities.push(system.perplexity / least.perplexity);
        if system.kl / least.kl > headline.2 {
            headline = (system.kl, least.kl, system.kl / least.kl);
        }
    }
    let ratio = worst(&errors).1;
    shown.line(
        below == n,
        &format!("error below gptq's on {below} of {n} linears, mean ratio {ratio} {misses}"),
    );
    shown.line(ordered == n, &format!("gptq's error below rounding's on {ordered} of {n} linears"));
    let (most, text) = worst(&perplexities);
    shown.line(most <= 0.5, &format!("perplexity over the best gptq's, at most 0.5: {text}"));
    shown.line(false, "perplexity with the block stage lower again: the block stage is not built");
    Ok(shown.claim(&system(), "KL divergence, nats per token", ("best of six gptq", headline.1), headline.0))
}
