//! K-sort with block floating point (S044): keys in blocks with a shared exponent, large channels sorted together.
//!
//! # Idea
//! Outliers of keys live in fixed channels. A block that holds one pays for it with the precision of all its other
//! values. Sorting channels so that large ones share blocks keeps the exponents of the other blocks small, and since the
//! order can be folded into the weights that make queries and keys, it costs nothing.
//!
//! # Algorithm
//! 1. Blocks of `n` consecutive values: `e = floor(log2 max|x|)` in 8 bits; `m = round(x 2^(p-2-e))`, clamped to
//!    `+-(2^(p-1) - 1)`; `x' = m 2^(e-p+2)`. `p = 4` is BFP12, `p = 8` BFP16. A block of zeros has the smallest exponent.
//! 2. K-sort, for each head: channels by falling norm of their rows of `W_k` ([`crate::k_sort::key_order`]). The same order
//!    moves the rows of every `W_q` that meets this head, so that `q . k` is what it was.
//! 3. Rotary pairs: cosines, sines and the index of a channel's partner move with the channel, which is exact for any order.
//! 4. Keys are rotated, then quantised token by token in blocks along channels.
//! 5. As an array codec, without weights at hand: channels by falling mean square of the array itself, the order stored.
//!
//! # Shapes
//! `keys [tokens, kv_heads * head_dim]` (any matrix of floats; `head` divides its columns into heads), order
//! `[kv_heads * head_dim]`.
//!
//! # Stored form
//! With `sort=true` the order, 16 bits per channel; an exponent byte per block, row by row; mantissas of `p` bits, packed:
//! `p + 8 / n` bits per value (4.25 for BFP12 in blocks of 32) and `16 / tokens` for the order.
//!
//! # Cost
//! One pass; sorting needs the weights alone. Decoding: one multiplication by a power of two per value.
//!
//! # When to choose it
//! For caches and activations on hardware with integer mantissas. For weights take `gptq` or `house`.
//!
//! # Claim
//! Attention's outputs are the same before and after sorting to 1e-5; with 4-bit mantissas and several blocks a head,
//! perplexity and the error of the keys are lower with K-sort; with one block a head there is no difference.
//!
//! # Differences
//! The authors' treatment of rotary pairs is not stated; ours moves the tables. Values are not sorted. The order that
//! the array codec stores comes from the array, since a codec sees no weights; the claim measures the weights' order.
//!
//! # Source
//! N. Trukhanov, I. Soloveychik, "Accurate Block Quantization in LLMs with Outliers", arXiv 2403.20137.

use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Encoded, Knowledge, Rate, Recipe, Refusal, Registration, System,
    Wing,
};
use lamella_entropy::bits::{pack, packed_bytes, unpack};
use lamella_quant::gptq::{Direction, activation_order, reorder};

use crate::distortion::{distortion, weighted_energy};
use crate::k_sort::{Blocks, measure};
use crate::matrix::{accepts_matrix, clamp, clamped_array, damaged, read_matrix, single_layer};

/// The line of the list.
pub fn system() -> System {
    System {
        id: "S044",
        name: "K-sort",
        wing: Wing::Weights,
        compresses: "keys and activations in block floating point",
        recipe: Some("bfp(bits=4, block=32, sort=true)"),
        claim: Some("sorting leaves attention as it was, and lowers perplexity and key error at 4 bits"),
        measure: Some(measure),
    }
}

/// `bfp(bits=4, block=32)`.
#[derive(Debug, Clone)]
pub struct BlockFloat {
    recipe: Recipe,
    blocks: Blocks,
    /// Channels of a head, 0 for a row that is one head.
    head: usize,
    is_sorted: bool,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "bfp",
        summary: "block floating point, channels sorted by size (S044): keys and activations",
        arguments: &[
            ("bits", "4", "bits of a mantissa with its sign, p: 2 to 12"),
            ("block", "32", "values that share an exponent, n: 1 to 65536"),
            ("head", "0", "channels of a head, which blocks and sorting stay within, 0 for the whole row"),
            ("sort", "false", "sort each head's channels by falling mean square and store the order"),
        ],
        build: |recipe| Ok(Arc::new(BlockFloat::from_recipe(recipe)?)),
    }
}

impl BlockFloat {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("bits")?;
        recipe.reject_unknown(&["bits", "block", "head", "sort"])?;
        Ok(Self {
            blocks: Blocks {
                bits: recipe.integer("bits", 2..=12u32, 4)?,
                size: recipe.integer("block", 1..=65_536u32, 32)? as usize,
            },
            head: recipe.integer("head", 0..=65_536u32, 0)? as usize,
            is_sorted: recipe.flag("sort")?,
            recipe,
        })
    }

    fn head_of(&self, columns: usize) -> usize {
        if self.head == 0 { columns } else { self.head.min(columns) }
    }

    /// Bytes of a payload's parts: order, exponents, mantissas.
    fn extents(&self, rows: usize, columns: usize) -> Option<[usize; 3]> {
        let order = if self.is_sorted { columns.checked_mul(2)? } else { 0 };
        let per_row = self.blocks.count(columns, self.head_of(columns));
        let values = rows.checked_mul(columns)?;
        values.checked_mul(16)?;
        Some([order, rows.checked_mul(per_row)?, packed_bytes(values, self.blocks.bits)])
    }

    fn check_width(&self, spec: &ArraySpec, columns: usize) -> Result<(), Refusal> {
        accepts_matrix(spec)?;
        match self.is_sorted && columns > 1 << 16 {
            true => Err(Refusal { reason: format!("has {columns} columns, an order holds 65536") }),
            false => Ok(()),
        }
    }
}

/// Channels of each head by falling mean square.
fn own_order(values: &[f32], columns: usize, head: usize) -> Vec<u32> {
    let mut squares = vec![0.0f64; columns];
    for row in values.chunks_exact(columns) {
        squares.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
    }
    let squares: Vec<f32> = squares.into_iter().map(|sum| sum as f32).collect();
    squares
        .chunks(head)
        .enumerate()
        .flat_map(|(index, squares)| {
            activation_order(squares).into_iter().map(move |c| c + (index * head) as u32)
        })
        .collect()
}

impl Codec for BlockFloat {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn stored_bytes(&self, spec: &ArraySpec) -> Option<u64> {
        let (rows, columns) = spec.matrix()?;
        Some(self.extents(rows, columns)?.iter().map(|&part| part as u64).sum())
    }

    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        self.check_width(spec, spec.matrix().map_or(0, |(_, columns)| columns))
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, _rate: Rate) -> Result<Encoded, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let (columns, head) = (matrix.columns, self.head_of(matrix.columns));
        self.check_width(&array.spec, columns).map_err(|refusal| CodecError::Refused {
            recipe: self.recipe.to_string(),
            array: array.spec.name.clone(),
            refusal,
        })?;
        // Step 5.
        let order = match self.is_sorted {
            true => own_order(&matrix.values, columns, head),
            false => (0..columns as u32).collect(),
        };
        let sorted = reorder(&matrix.values, columns, &order, Direction::ToSweep);
        // Step 1.
        let (mut exponents, mut mantissas) = (Vec::new(), Vec::with_capacity(sorted.len()));
        for row in sorted.chunks_exact(columns) {
            self.blocks.quantize(row, head, &mut exponents, &mut mantissas);
        }
        let mut payload = Vec::new();
        if self.is_sorted {
            order.iter().for_each(|&channel| payload.extend_from_slice(&(channel as u16).to_le_bytes()));
        }
        payload.extend_from_slice(&exponents);
        let packed = pack(&mantissas, self.blocks.bits).map_err(|error| CodecError::Solver {
            array: array.spec.name.clone(),
            message: error.to_string(),
        })?;
        payload.extend(packed);
        let values = self.blocks.dequantize(&exponents, &mantissas, columns, head);
        let mut reconstruction = reorder(&values, columns, &order, Direction::ToOriginal);
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
        let extents = self.extents(rows, columns);
        let needed =
            extents.and_then(|parts| parts.iter().try_fold(0usize, |sum, &part| sum.checked_add(part)));
        let (Some([order, exponents, _]), true) = (extents, needed == Some(payload.len())) else {
            return Err(damaged(spec, 0, format!("needs {needed:?} bytes, found {}", payload.len())));
        };
        if rows == 0 || columns == 0 {
            return clamped_array(spec, Vec::new());
        }
        let (order, rest) = payload.split_at(order);
        let (exponents, mantissas) = rest.split_at(exponents);
        let mantissas = unpack(mantissas, self.blocks.bits, rows * columns)
            .map_err(|error| damaged(spec, 0, error.to_string()))?;
        let values = self.blocks.dequantize(exponents, &mantissas, columns, self.head_of(columns));
        if !self.is_sorted {
            return clamped_array(spec, values);
        }
        let mut seen = vec![false; columns];
        let order: Vec<u32> =
            order.as_chunks::<2>().0.iter().map(|&pair| u32::from(u16::from_le_bytes(pair))).collect();
        for &channel in &order {
            match seen.get_mut(channel as usize) {
                Some(slot) if !*slot => *slot = true,
                _ => return Err(damaged(spec, 0, format!("channel {channel} stands twice in the order"))),
            }
        }
        clamped_array(spec, reorder(&values, columns, &order, Direction::ToOriginal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_codec::Dtype;

    #[test]
    fn sorting_helps_small_channels_beside_large_ones_and_one_block_a_row_is_a_control() {
        let values: Vec<f32> = (0..40 * 16)
            .map(|i| ((i * 37) % 19) as f32 / 9.5 - 1.0)
            .enumerate()
            .map(|(i, v)| if i % 4 == 1 { 8.0 * v } else { v })
            .collect();
        let array = Array::from_f32(ArraySpec::new("keys", vec![40, 16], Dtype::F32), &values).unwrap();
        let loss = |text: &str| {
            let codec = BlockFloat::from_recipe(&text.parse().unwrap()).unwrap();
            codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap().layers[0].distortion
        };
        assert!(loss("bfp(block=4, sort)") < 0.7 * loss("bfp(block=4)"));
        assert_eq!(loss("bfp(block=16, sort)"), loss("bfp(block=16)"));
    }
}
