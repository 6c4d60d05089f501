//! The progressive recipe: one stored form for every size, by bits of the whitened error.
//!
//! # Idea
//! What is left of a weight after a sweep with error feedback hangs together along the inputs; coding it again wastes
//! most of a bit. The *whitened* error does not hang together, and lies in a known cell. A decoder that knows the
//! inputs' second moment, as diagonal plus low rank, turns finer bits of it into the shaped error itself: every bit
//! quarters the loss, and any rows may have theirs first.
//!
//! # Algorithm
//! 1. `H` = mean of `x x^T`, damped; `H ~ T (I + M M^T) T` by factor analysis ([`lamella_math::low_rank`]); loadings
//!    are rounded to `sqrt(12 / rows)`. Of several numbers of directions that one is taken with which weights and
//!    structure need the fewest bits at equal loss: both are measured, on `H` itself and by coding the loadings.
//! 2. Step of column `j`: in proportion to `U_jj`, rounded to eighths of an octave, `2^depth` times the final one;
//!    `depth` such that the first layer has about `base` bits per weight. Rows of each of the `parts` begin a quarter of
//!    an octave (two parts: a half) finer than those of the part before.
//! 3. Sweep ([`lamella_quant::refine`]): each number goes to its cell, is read at the cell's centroid, and its error
//!    reaches later columns through the structure's recursion. Twice: the first sweep finds the centroids.
//! 4. First layer: steps, centroids, codes. Refinements: one bit of every `parts`-th row each, `parts` 1 to 4 by size;
//!    the first one also has the structure.
//!
//! Where all steps are uniform (`--allocate uniform`), matrices with the same inputs (query, key and value; gate and up)
//! are stacked into one, up to 2^24 weights, each with steps in proportion to its own scale: the structure is stored
//! once. With measured allocation each keeps a step of its own, which is worth more.
//!
//! # Shapes
//! `weight [out_features, in_features]`, any float type; second moment `[in_features, in_features]`.
//!
//! # Stored form
//! [`crate::progressive::form`]: 7 bytes, about 4 bits per column, about 20 bytes of offsets, the codes; then 3 bytes a
//! refinement, one bit per weight it refines, and once the structure: about 3 bits a loading, `3 rank / out_features`
//! bits per weight. From 2^20 weights on (`tables=auto`) codes and bits stand under static tables
//! ([`crate::progressive::tables`]), before that under adaptive ones.
//!
//! # Cost
//! A fit per distinct input (24 products `columns^2 * rank`) and sweeps of `2 rows * columns * rank` operations.
//! Decoding: one symbol, one bit per refinement and `2 rank` multiply-adds a weight; 80 to 300 MB/s of `f32` and core
//! with static tables, a fifth of that with adaptive ones (docs/results/progressive.md).
//!
//! # When to choose it
//! Where one file is to serve many sizes (`cut`, `run --budget`, reading on over a network). For one size `house` is
//! smaller.
//!
//! # Claim
//! Between 2 and 6 bits a prefix takes at most 0.45 bit more than a `house(trellis=0)` file made for the same loss, both
//! with uniform steps: MiniLM .19 to .43 at twelve cuts (`docs/results/progressive.md`). Where steps are measured, each
//! file for one size has steps of its own, a prefix those of the whole: .40 to .53 above 2.5 bits.
//! Where the bits go: second moments have long tails that few directions do not hold, and each stored one costs its
//! loadings (.27 to .6 bit together for MiniLM's linears; `examples/progressive_alternatives.rs` tells them apart). Four
//! parts at different depths cost .05 bit. The coarse sweep is not to blame: its feedback widens MiniLM's codes by about
//! .01 bit at 2 bits.
//! With eigenvalues that fall as `i^-1.1` the tail behind `r` of `n` directions is worth half the logarithm of its
//! arithmetic over its geometric mean: .34 bit for 128 of 4,096, .24 for 256. Measured with side information and parts:
//! .42 bit for 14336 x 4096, .48 for 4096 x 4096 (rank 256: .46), where the loadings' bytes are divided by fewer rows.
//!
//! # Differences
//! None published is followed; bit planes of a noise-shaped error under a decoder-known factor are our own.
//!
//! # Source
//! J. Chee et al., "QuIP", arXiv 2307.13304 (LDLQ); W. Equitz, T. Cover, "Successive refinement of information", 1991;
//! K. G. Joreskog, "Some contributions to maximum likelihood factor analysis", 1967.

use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Encoded, GrowingArray, Knowledge, Point, Rate, Recipe, Refusal,
    Registration,
};

use crate::distortion::weighted_energy;
use crate::matrix::{accepts_matrix, damaged, read_matrix};
use crate::progressive::form::MAX_RANK;
use crate::progressive::growing::Growing;
use crate::progressive::solver::{Sampled, Solver};

/// Relative steps that encoders accept.
const STEP_RANGE: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

/// `progressive(bits=5)`.
#[derive(Debug)]
pub struct Progressive {
    recipe: Recipe,
    bits: f64,
    solver: Solver,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "progressive",
        summary: "one file for every size: a coarse array and bits of its whitened error; any prefix decodes",
        arguments: &[
            ("bits", "5", "bits per weight of all layers where no size is given, 0.1 to 16"),
            ("base", "2", "bits per weight of the first layer, about, 1 to 8"),
            ("rank", "64", "most directions of the second moment that are stored, 0 to 256"),
            ("damping", "0.03", "fraction of the mean diagonal added to the second moment, 0.000001 to 1"),
            ("threshold", "0.55", "half the width of the cell of code 0, in steps, 0.5 to 0.99"),
            ("usage", "0.5", "how strongly steps of rows follow how seldom they are used, 0 to 1"),
            (
                "tables",
                "auto",
                "`adaptive`: least bytes; `static`: read ten times as fast; `auto`: static from 2^20 weights",
            ),
        ],
        build: |recipe| Ok(Arc::new(Progressive::from_recipe(recipe)?)),
    }
}

impl Progressive {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("bits")?;
        recipe.reject_unknown(&["bits", "base", "rank", "damping", "threshold", "usage", "tables"])?;
        let threshold = recipe.number("threshold", 0.5..=0.99, 0.55)?;
        let is_static = match recipe.word("tables", &["auto", "adaptive", "static"], "auto")? {
            "adaptive" => Some(false),
            "static" => Some(true),
            _ => None,
        };
        Ok(Self {
            bits: recipe.number("bits", 0.1..=16.0, 5.0)?,
            solver: Solver::new(
                (
                    recipe.number("damping", 1e-6..=1.0, 0.03)?,
                    recipe.number("usage", 0.0..=1.0, 0.5)?,
                    recipe.integer("rank", 0..=MAX_RANK as u32, 64)? as usize,
                ),
                (recipe.number("base", 1.0..=8.0, 2.0)?, (threshold * 128.0).round() as u8),
                is_static,
            ),
            recipe,
        })
    }

    fn relative_step(&self, rate: Rate, sampled: &Sampled<'_>) -> Result<f64, CodecError> {
        match rate {
            Rate::Step(step) if STEP_RANGE.contains(&step) => Ok(step),
            Rate::Recipe => {
                let (mut low, mut high) = (-12.0f64, 6.0f64);
                for _ in 0..12 {
                    let middle = 0.5 * (low + high);
                    let bits = sampled.point(middle.exp2())?.0 * 8.0 / sampled.elements();
                    if bits > self.bits { low = middle } else { high = middle }
                }
                Ok((0.5 * (low + high)).exp2())
            }
            other => Err(CodecError::BadRecipe {
                recipe: self.recipe.to_string(),
                message: format!("{other:?} is no rate of this codec; relative steps lie within 1e-6 to 1e6"),
            }),
        }
    }
}

impl Codec for Progressive {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn has_free_rate(&self) -> bool {
        true
    }

    fn stacks(&self) -> bool {
        self.solver.rank > 0
    }

    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        accepts_matrix(spec)
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, rate: Rate) -> Result<Encoded, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let shaping = self.solver.shaping(&array.spec.name, &matrix, knowledge)?;
        let relative = match rate {
            Rate::Step(step) if STEP_RANGE.contains(&step) => step,
            _ => {
                let sampled = Sampled::new(&self.solver, &array.spec, &matrix, &shaping, knowledge);
                self.relative_step(rate, &sampled)?
            }
        };
        Ok(Encoded {
            layers: self.solver.encode(&array.spec, &matrix, &shaping, knowledge, relative)?,
            distortion_of_zeros: weighted_energy(&matrix.values, matrix.columns, knowledge),
        })
    }

    fn estimate(
        &self,
        array: &Array<'_>,
        knowledge: &Knowledge,
        rates: &[Rate],
    ) -> Result<Vec<Point>, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let shaping = self.solver.shaping(&array.spec.name, &matrix, knowledge)?;
        let sampled = Sampled::new(&self.solver, &array.spec, &matrix, &shaping, knowledge);
        rates
            .iter()
            .map(|&rate| {
                let (bytes, distortion) = sampled.point(self.relative_step(rate, &sampled)?)?;
                Ok(Point { rate, bytes, distortion })
            })
            .collect()
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (first, refinements) =
            layers.split_first().ok_or_else(|| damaged(spec, 0, "there is no first layer"))?;
        let mut growing = Growing::begin(spec, first)?;
        refinements.iter().try_for_each(|layer| growing.apply(layer))?;
        growing.array()
    }

    fn begin(&self, spec: &ArraySpec, first: &[u8]) -> Result<Option<Box<dyn GrowingArray>>, CodecError> {
        Ok(Some(Box::new(Growing::begin(spec, first)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progressive::state::State;
    use lamella_codec::Dtype;
    use lamella_math::SecondMoment;

    fn correlated(rows: usize, columns: usize) -> (Array<'static>, Knowledge) {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let weights: Vec<f32> = (0..rows * columns).map(|_| 0.1 * (next() + next() + next())).collect();
        let common: Vec<f32> = (0..4 * columns).map(|_| next()).collect();
        let mut moment = SecondMoment::new(columns);
        let inputs: Vec<f32> = (0..600)
            .flat_map(|_| {
                let f: Vec<f32> = (0..4).map(|_| 2.0 * next()).collect();
                (0..columns)
                    .map(|j| (0..4).map(|k| f[k] * common[k * columns + j]).sum::<f32>() + 0.3 * next())
                    .collect::<Vec<_>>()
            })
            .collect();
        moment.accumulate(&inputs);
        let spec = ArraySpec::new("w", vec![rows, columns], Dtype::F32);
        (Array::from_f32(spec, &weights).unwrap(), Knowledge::of_inputs(Arc::new(moment)))
    }

    #[test]
    fn every_bit_quarters_the_loss_at_about_one_bit() {
        let (array, knowledge) = correlated(256, 128);
        let codec = Progressive::from_recipe(&"progressive(base=2)".parse().unwrap()).unwrap();
        let encoded = codec.encode(&array, &knowledge, Rate::Step(0.05)).unwrap();
        let parts = crate::progressive::form::parts(256, 128);
        let whole: Vec<&_> = encoded.layers.iter().step_by(parts).collect();
        assert!(whole.len() >= 4, "{} layers", encoded.layers.len());
        for pair in whole.windows(2).skip(1) {
            let fall = pair[0].distortion / pair[1].distortion;
            assert!((3.4..4.4).contains(&fall), "a bit made the loss {fall} times smaller");
        }
        // The structure hides most of the error: without it the same bytes are worth far less.
        let plain = Progressive::from_recipe(&"progressive(base=2, rank=0)".parse().unwrap()).unwrap();
        let without = plain.encode(&array, &knowledge, Rate::Step(0.05)).unwrap();
        let at_bits = |encoded: &Encoded| {
            let last = encoded.layers.last().unwrap().distortion;
            last * 4.0f64.powf(encoded.size_bytes() as f64 * 8.0 / (256.0 * 128.0))
        };
        assert!(at_bits(&encoded) < 0.5 * at_bits(&without), "{} {}", at_bits(&encoded), at_bits(&without));
    }

    #[test]
    fn an_upgrade_equals_a_fresh_load_bit_for_bit() {
        let (array, knowledge) = correlated(70, 60);
        let mut all = Vec::new();
        for tables in ["adaptive", "static"] {
            let codec = Progressive::from_recipe(&format!("progressive(tables={tables})").parse().unwrap());
            let codec = codec.unwrap();
            let encoded = codec.encode(&array, &knowledge, Rate::Step(0.02)).unwrap();
            let mut growing = State::read(&encoded.layers[0].payload, 70, 60).unwrap();
            for n in 1..=encoded.layers.len() {
                let layers: Vec<&[u8]> = encoded.layers[..n].iter().map(|layer| &layer.payload[..]).collect();
                let fresh = codec.decode(&array.spec, &layers).unwrap().to_f32().unwrap();
                if n > 1 {
                    growing.apply(layers[n - 1]).unwrap();
                }
                let upgraded = growing.values(f32::MAX);
                assert!(fresh.iter().zip(&upgraded).all(|(a, b)| a.to_bits() == b.to_bits()), "{n} layers");
                all.push(fresh);
            }
        }
        // Tables change how numbers are written, not the numbers.
        let (adaptive, by_table) = all.split_at(all.len() / 2);
        assert!(adaptive == by_table);
    }
}
