//! BitStack (S152): a weight as a stack of one-bit blocks, so that any budget of bytes is a prefix of one file.
//!
//! # Idea
//! A sign costs one bit and carries most of what a weight says; its magnitude is nearly of low rank. Each block keeps
//! the signs of what is left and a few singular vectors of its magnitude, and leaves a smaller residual for the next
//! block. Blocks of all arrays are sorted by what they buy, and a reader loads as many as its memory allows.
//!
//! # Algorithm
//! 1. `a_j`: root mean square of input `j`, over its mean, plus 0.001. `R = W diag(a) / m`, `m` the largest weight.
//! 2. For each block: `S = sign(R)` with `sign(0) = +1`; `U, s, V` = singular value decomposition of `|R|`, `k` triplets kept:
//!    `u = U_k sqrt(s_k)`, `v = sqrt(s_k) V_k^T`, both rounded to 16-bit floats; `R -= S * (u v)` element by element.
//! 3. A block that does not lower the loss as planned is scaled by its least-squares gain under the inputs' second
//!    moment; where that does not help either, the stack ends.
//! 4. Blocks of all arrays are ordered in the file: the first of each array, then all others by gain per byte.
//!    `lamella cut` is then the paper's loading by a budget: the longest prefix that fits.
//! 5. Decoding: `W = m (sum_i S_i * (u_i v_i)) diag(1 / a)` over the blocks that are there.
//!
//! # Shapes
//! `weight [out_features, in_features]`, any float type; second moment `[in_features, in_features]`; one layer per
//! block: signs `[out_features, in_features]`, `u [out_features, k]`, `v [k, in_features]`.
//!
//! # Stored form
//! First layer: `m` (f32), `a` (f16 per input). Every layer: signs, most significant bit first, padded to a byte; `u`, `v`
//! as f16. A block takes `1 + 16 k (M + N) / (M N)` bits per weight: 1.125 at 4096 x 4096 with `k = 16`.
//!
//! # Cost
//! One singular value decomposition of `M x N` per block, in `f64`. Decoding: `k` multiply-adds per weight and block.
//!
//! # When to choose it
//! Where one file must serve readers with different budgets, down to a bit per weight. For one known size take `house`.
//!
//! # Claim
//! Perplexity falls along the stack; one block loses less than a plain low-rank pair of its size; at about 2 bits
//! perplexity is below GPTQ's in a file no smaller; sorting beats the arrays' own order at budgets between levels.
//!
//! # Differences
//! The scale of the inputs is stored with the array (`16 / M` bits per weight) instead of folded into the producer,
//! since a codec sees one array. The file is sorted by the output error that a block removes per byte; the paper's
//! order by perplexity of one raised layer is measured beside it in the claim. Residuals are those of the rounded
//! factors. Step 3 is ours: the paper's blocks may raise the loss under correlated inputs.
//!
//! # Source
//! X. Wang, P. Wang, B. Wang, D. Zhang, Y. Zhou, X. Qiu, "BitStack: Any-Size Compression of Large Language Models in
//! Variable Memory Environments", arXiv 2410.23918, sections 2 and 3; the authors' code for the order of steps.

use std::sync::Arc;

use half::f16;
use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Encoded, EncodedLayer, Knowledge, Rate, Recipe, Refusal,
    Registration, System, Wing,
};
use lamella_math::low_rank_pair;

use crate::bitstack::{Block, Form, floats, gain, measure, unscaled};
use crate::distortion::{distortion, weighted_energy};
use crate::matrix::{accepts_matrix, clamp, clamped_array, damaged, read_matrix};

/// The line of the list.
pub fn system() -> System {
    System {
        id: "S152",
        name: "BitStack",
        wing: Wing::Weights,
        compresses: "linear weights, one file for any budget",
        recipe: Some("bitstack(blocks=16, rank=16)"),
        claim: Some(
            "perplexity falls along the stack, below GPTQ's at 2 bits; signs beat plain low rank; sorting pays",
        ),
        measure: Some(measure),
    }
}

/// `bitstack(blocks=16, rank=16)`.
#[derive(Debug, Clone)]
pub struct BitStack {
    recipe: Recipe,
    /// Most blocks, `n`.
    blocks: usize,
    /// Singular triplets of a block, `k`.
    rank: usize,
    /// Whether inputs are scaled by their root mean square first.
    is_scaled: bool,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "bitstack",
        summary: "a stack of one-bit blocks with low-rank magnitudes (S152): one file, cut to any size",
        arguments: &[
            ("blocks", "16", "most blocks of an array, 1 to 64; each takes a little over a bit per weight"),
            ("rank", "16", "singular triplets kept of a block's magnitudes, 1 to 256"),
            ("scaled", "true", "scale inputs by their root mean square first (true) or not (false)"),
        ],
        build: |recipe| Ok(Arc::new(BitStack::from_recipe(recipe)?)),
    }
}

impl BitStack {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("blocks")?;
        recipe.reject_unknown(&["blocks", "rank", "scaled"])?;
        Ok(Self {
            blocks: recipe.integer("blocks", 1..=64u32, 16)? as usize,
            rank: recipe.integer("rank", 1..=256u32, 16)? as usize,
            is_scaled: recipe.word("scaled", &["true", "false"], "true")? == "true",
            recipe,
        })
    }

    fn form(&self, rows: usize, columns: usize) -> Form {
        Form { rows, columns, rank: self.rank.min(rows).min(columns) }
    }

    /// Step 1: a positive 16-bit scale for each input.
    fn scales(&self, columns: usize, knowledge: &Knowledge) -> Vec<f32> {
        let moment = knowledge.second_moment.as_deref().filter(|moment| moment.dimension() == columns);
        let Some(moment) = moment.filter(|_| self.is_scaled) else { return vec![1.0; columns] };
        let roots: Vec<f64> = moment.diagonal().iter().map(|&d| f64::from(d).max(0.0).sqrt()).collect();
        let mean = roots.iter().sum::<f64>() / columns.max(1) as f64;
        let relative = |root: &f64| if mean > 0.0 { root / mean } else { 1.0 };
        roots.iter().map(|root| f16::from_f64((relative(root) + 1e-3).min(6e4)).to_f32()).collect()
    }
}

impl Codec for BitStack {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn uses_second_moment(&self) -> bool {
        true
    }

    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        accepts_matrix(spec)
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, _rate: Rate) -> Result<Encoded, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let (rows, columns) = (matrix.rows, matrix.columns);
        let form = self.form(rows, columns);
        let unit = matrix.largest().0.abs();
        let unit = if unit > 0.0 { unit } else { 1.0 };
        let scales = self.scales(columns, knowledge);
        // Step 1.
        let scaled = |(index, &w): (usize, &f32)| w / unit * scales[index % columns];
        let mut residual: Vec<f32> = matrix.values.iter().enumerate().map(scaled).collect();
        let mut sum = vec![0.0f32; residual.len()];
        let loss_of = |sum: &[f32]| -> Result<f64, CodecError> {
            let mut values = unscaled(sum, unit, &scales);
            clamp(&mut values, array.spec.dtype);
            let rounded = Array::from_f32(array.spec.clone(), &values)?.to_f32()?;
            Ok(distortion(&matrix.values, &rounded, columns, knowledge))
        };
        let zeros = weighted_energy(&matrix.values, columns, knowledge);
        let mut payload = unit.to_le_bytes().to_vec();
        scales.iter().for_each(|&scale| payload.extend_from_slice(&f16::from_f32(scale).to_le_bytes()));
        let (mut layers, mut loss) = (Vec::<EncodedLayer>::new(), zeros);
        while layers.len() < self.blocks {
            // Step 2.
            let magnitudes: Vec<f64> = residual.iter().map(|&r| f64::from(r.abs())).collect();
            let pair =
                low_rank_pair(&magnitudes, rows, columns, form.rank).ok_or_else(|| CodecError::Solver {
                    array: array.spec.name.clone(),
                    message: format!("block {} has no singular value decomposition", layers.len()),
                })?;
            let round = |numbers: &[f64], gain: f64| -> Vec<f32> {
                numbers.iter().map(|&number| f16::from_f64(number * gain).to_f32()).collect()
            };
            let block_at =
                |gain: f64| Block { left: round(&pair.left, gain), right: round(&pair.right, 1.0) };
            let (mut block, mut next) = (block_at(1.0), sum.clone());
            form.add(&mut next, &block, |index| residual[index] < 0.0);
            let mut next_loss = loss_of(&next)?;
            if next_loss >= loss {
                // Step 3.
                let added: Vec<f32> = next.iter().zip(&sum).map(|(after, before)| after - before).collect();
                let gain = gain(&added, &residual, unit, &scales, knowledge);
                (block, next) = (block_at(gain), sum.clone());
                form.add(&mut next, &block, |index| residual[index] < 0.0);
                next_loss = loss_of(&next)?;
            }
            if next_loss >= loss && !layers.is_empty() {
                break;
            }
            if next_loss > loss {
                (block, next) = (block_at(0.0), sum.clone());
                next_loss = loss_of(&next)?;
            }
            form.write(&mut payload, &block, &residual);
            layers.push(EncodedLayer {
                payload: std::mem::take(&mut payload),
                distortion: next_loss,
                is_mapped: false,
            });
            let moved = residual.iter_mut().zip(next.iter().zip(&sum));
            moved.for_each(|(residual, (after, before))| *residual -= after - before);
            (sum, loss) = (next, next_loss);
        }
        Ok(Encoded { layers, distortion_of_zeros: zeros })
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (rows, columns) = spec.matrix().ok_or_else(|| damaged(spec, 0, "the array has not 2 axes"))?;
        let form = self.form(rows, columns);
        if layers.is_empty() || layers.len() > self.blocks {
            return Err(damaged(
                spec,
                0,
                format!("1 to {} layers are read, found {}", self.blocks, layers.len()),
            ));
        }
        for (index, payload) in layers.iter().enumerate() {
            match form.layer_bytes(index == 0) {
                Some(needed) if needed == payload.len() => {}
                Some(needed) => {
                    return Err(damaged(
                        spec,
                        index,
                        format!("needs {needed} bytes, found {}", payload.len()),
                    ));
                }
                None => return Err(damaged(spec, index, format!("{rows} x {columns} weights are too many"))),
            }
        }
        let (head, _) = layers[0].split_at(4 + 2 * columns);
        let unit = f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let scales = floats(&head[4..]).map_err(|message| damaged(spec, 0, message))?;
        if !unit.is_finite() || scales.iter().any(|&scale| scale <= 0.0) {
            return Err(damaged(spec, 0, "its scales are not positive numbers"));
        }
        let mut sum = vec![0.0f32; rows * columns];
        for (index, payload) in layers.iter().enumerate() {
            let payload = if index == 0 { &payload[head.len()..] } else { payload };
            let (signs, factors) = payload.split_at((rows * columns).div_ceil(8));
            let numbers = floats(factors).map_err(|message| damaged(spec, index, message))?;
            let (left, right) = numbers.split_at(rows * form.rank);
            let block = Block { left: left.to_vec(), right: right.to_vec() };
            form.add(&mut sum, &block, |index| signs[index / 8] & (0x80 >> (index % 8)) != 0);
        }
        clamped_array(spec, unscaled(&sum, unit, &scales))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_codec::Dtype;

    #[test]
    fn magnitudes_of_rank_one_come_back_from_one_block() {
        let (left, right) = ([1.0f32, 2.0, 0.5], [1.0f32, 0.25, 4.0, 2.0]);
        let sign = |i: usize| if i * 7 % 3 == 1 { -1.0 } else { 1.0 };
        let values: Vec<f32> = (0..12).map(|i| sign(i) * left[i / 4] * right[i % 4]).collect();
        let array = Array::from_f32(ArraySpec::new("w", vec![3, 4], Dtype::F32), &values).unwrap();
        let codec = BitStack::from_recipe(&"bitstack(blocks=1, rank=1)".parse().unwrap()).unwrap();
        let encoded = codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap();
        // 12 signs in 2 bytes, 3 + 4 factors, one largest weight, 4 scales.
        assert_eq!(encoded.size_bytes(), 2 + 14 + 4 + 8);
        let decoded = codec.decode(&array.spec, &[&encoded.layers[0].payload]).unwrap().to_f32().unwrap();
        for (value, found) in values.iter().zip(&decoded) {
            assert!((value - found).abs() < 0.01, "{value} {found}");
        }
    }
}
