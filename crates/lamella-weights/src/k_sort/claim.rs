//! What K-sort claims, measured on real queries and keys.

use lamella_codec::{Claim, ClaimContext};
use lamella_lm::judge::compare_logits;
use lamella_lm::{Observer, Positions};

use super::{Blocks, key_order};
use crate::claims::{ClaimBench, Error, Shown};

/// Bits of a mantissa: BFP12.
const BITS: u32 = 4;
/// Tokens whose attention is computed twice.
const TOKENS: usize = 64;

/// The first rows that one input shows.
struct First<'a> {
    input: &'a str,
    rows: Vec<f32>,
}

impl Observer for First<'_> {
    fn observe(&mut self, input: &str, features: usize, rows: &[f32]) {
        if input == self.input {
            let room = (TOKENS * features).saturating_sub(self.rows.len()).min(rows.len());
            self.rows.extend_from_slice(&rows[..room]);
        }
    }
}

/// Runs the claim.
///
/// # Errors
/// Files that cannot be read, a model without keys.
pub fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let (bench, mut shown) = (ClaimBench::new(context)?, Shown::default());
    let head = bench.network().config().head_dim;
    let orders = orders(&bench)?;
    let difference = attention_difference(&bench, &orders)?;
    shown.line(
        difference < 1e-5,
        &format!("(1) attention before and after sorting, every block: largest relative difference {difference:.1e}"),
    );
    // Blocks of half and a quarter of a head, and one block a head as control.
    let mut headline = (0.0, 0.0);
    for size in [head / 2, head / 4, head] {
        let blocks = Blocks { bits: BITS, size };
        let (plain, plain_error) = perplexity(&bench, &blocks, None)?;
        let (sorted, sorted_error) = perplexity(&bench, &blocks, Some(&orders))?;
        let figures = format!(
            "blocks of {size} of {head}: perplexity {sorted:.4} sorted, {plain:.4} not (float {:.4}); key error {sorted_error:.5}, {plain_error:.5}",
            bench.original_perplexity
        );
        if size == head {
            // The sums of errors run in another order.
            let is_same = sorted == plain && (sorted_error - plain_error).abs() <= 1e-9 * plain_error;
            shown.line(is_same, &format!("(2) control, {figures}"));
        } else {
            shown.line(sorted < plain && sorted_error < plain_error, &format!("(2) {figures}"));
        }
        if size == head / 2 {
            headline = (sorted, plain);
        }
    }
    shown.note(&format!(
        "{}; the order comes from the weights alone: no calibration text, so no other seed",
        bench.model
    ));
    Ok(shown.claim(
        &crate::systems::k_sort(),
        "perplexity with quantised keys",
        ("unsorted blocks", headline.1),
        headline.0,
    ))
}

/// K-sort's order for each block's key channels.
fn orders(bench: &ClaimBench) -> Result<Vec<Vec<u32>>, Error> {
    let head = bench.network().config().head_dim;
    (0..bench.network().n_blocks())
        .map(|block| {
            let (weight, columns) = weight(bench, block, ".k_proj")?;
            Ok(key_order(&weight, columns, head))
        })
        .collect()
}

/// A projection's weight of a block, with its width.
fn weight(bench: &ClaimBench, block: usize, ending: &str) -> Result<(Vec<f32>, usize), Error> {
    let mut sites = bench.linears().iter().filter(|site| site.block == Some(block));
    let site = sites.find(|site| site.weight.contains(ending)).ok_or("a block has no such projection")?;
    Ok((bench.network().source().array(&site.weight)?.to_f32()?, site.in_features))
}

/// `rows W^T`, `[tokens, outputs]`.
fn project(rows: &[f32], weight: &[f32], columns: usize) -> Vec<f64> {
    let dot = |row: &[f32], w: &[f32]| row.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
    rows.chunks_exact(columns)
        .flat_map(|row| weight.chunks_exact(columns).map(move |w| dot(row, w)))
        .collect()
}

/// Attention of one block over its first tokens, the channels of queries and keys in the given order of each key head.
fn attention(bench: &ClaimBench, block: usize, rows: &[f32], order: &[u32]) -> Result<Vec<f64>, Error> {
    let config = bench.network().config();
    let (head, n_heads, kv_heads) = (config.head_dim, config.n_heads, config.kv_heads);
    let Positions::Rotary(rope) = &config.positions else {
        return Err("the model has no rotary positions".into());
    };
    let (frequencies, _) = rope.frequencies(TOKENS);
    let planes = frequencies.len();
    let (query, columns) = weight(bench, block, ".q_proj")?;
    let (key, _) = weight(bench, block, ".k_proj")?;
    let (value, _) = weight(bench, block, ".v_proj")?;
    let within = |kv: usize| -> Vec<usize> {
        order[kv * head..(kv + 1) * head].iter().map(|&channel| channel as usize - kv * head).collect()
    };
    // The weights' rows move.
    let moved = |weight: &[f32], heads: usize| -> Vec<f32> {
        let row = |h: usize, channel: usize| &weight[(h * head + channel) * columns..][..columns];
        (0..heads)
            .flat_map(|h| within(h * kv_heads / heads).into_iter().map(move |channel| (h, channel)))
            .flat_map(|(h, channel)| row(h, channel).to_vec())
            .collect()
    };
    // The tables of the rotation, and the index of each channel's partner, move with them.
    let rotate = |features: &mut [f64], position: usize, kv: usize| {
        let (before, inside) = (features.to_vec(), within(kv));
        for (place, &channel) in inside.iter().enumerate().filter(|(_, channel)| **channel < 2 * planes) {
            let plane = channel % planes;
            let partner = if channel < planes { channel + planes } else { channel - planes };
            let other = before[inside.iter().position(|&c| c == partner).unwrap_or(place)];
            let angle = f64::from(position as f32 * frequencies[plane]);
            let sine = if channel < planes { -angle.sin() } else { angle.sin() };
            features[place] = before[place] * angle.cos() + other * sine;
        }
    };
    let (mut queries, mut keys) =
        (project(rows, &moved(&query, n_heads), columns), project(rows, &moved(&key, kv_heads), columns));
    let values = project(rows, &value, columns);
    for (features, heads) in [(&mut queries, n_heads), (&mut keys, kv_heads)] {
        for (index, features) in features.chunks_exact_mut(head).enumerate() {
            rotate(features, index / heads, index % heads * kv_heads / heads);
        }
    }
    let tokens = rows.len() / columns;
    let mut out = Vec::with_capacity(tokens * n_heads * head);
    for token in 0..tokens {
        for h in 0..n_heads {
            let kv = h * kv_heads / n_heads;
            let q = &queries[(token * n_heads + h) * head..][..head];
            let at = |other: usize| (other * kv_heads + kv) * head;
            let score = |other: usize| -> f64 {
                q.iter().zip(&keys[at(other)..][..head]).map(|(a, b)| a * b).sum::<f64>()
                    / (head as f64).sqrt()
            };
            let scores: Vec<f64> = (0..=token).map(score).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..head).map(|channel| {
                weights.iter().enumerate().map(|(other, w)| w * values[at(other) + channel]).sum::<f64>()
                    / sum
            }));
        }
    }
    Ok(out)
}

/// The largest difference of any block's attention with and without sorting, relative to its largest value.
fn attention_difference(bench: &ClaimBench, orders: &[Vec<u32>]) -> Result<f64, Error> {
    let mut most = 0.0f64;
    for (block, order) in orders.iter().enumerate() {
        let site =
            bench.linears().iter().find(|site| site.block == Some(block)).ok_or("a block has no linear")?;
        let mut first = First { input: &site.input, rows: Vec::new() };
        let mut hidden = bench.network().begin(&bench.unseen()[..1])?;
        for index in 0..=block {
            bench.network().block(index, &mut hidden, Some(&mut first))?;
        }
        let natural: Vec<u32> = (0..order.len() as u32).collect();
        let plain = attention(bench, block, &first.rows, &natural)?;
        let sorted = attention(bench, block, &first.rows, order)?;
        let largest = plain.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        let difference = plain.iter().zip(&sorted).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
        most = most.max(difference / largest);
    }
    Ok(most)
}

/// Perplexity on the unseen text with every key quantised once it is in the cache, and the keys' relative squared error.
///
/// Sorting weights and tables leaves rotated keys permuted and nothing else, so that quantising in the sorted order
/// and moving back is what the sorted network does.
fn perplexity(bench: &ClaimBench, blocks: &Blocks, orders: Option<&[Vec<u32>]>) -> Result<(f64, f64), Error> {
    let network = bench.network();
    let (head, width) = (network.config().head_dim, network.config().head_dim * network.config().kv_heads);
    let (mut error, mut energy, mut sum, mut count) = (0.0f64, 0.0f64, 0.0f64, 0usize);
    let length = bench.unseen().iter().map(Vec::len).max().unwrap_or(0);
    let windows: Vec<&Vec<u32>> = bench.unseen().iter().filter(|window| window.len() == length).collect();
    let mut caches: Vec<_> = windows.iter().map(|_| network.cache()).collect();
    for token in 0..length.saturating_sub(1) {
        let step: Vec<Vec<u32>> = windows.iter().map(|window| vec![window[token]]).collect();
        let targets: Vec<u32> = windows.iter().map(|window| window[token + 1]).collect();
        let logits = network.logits(&network.extend(&step, &mut caches)?, None)?;
        let compared = compare_logits(&logits, &logits, &targets)
            .map_err(|(_, row)| format!("the logits of window {row} are not finite"))?;
        sum += compared.iter().map(|row| row.candidate.negative_log_likelihood).sum::<f64>();
        count += compared.len();
        for cache in &mut caches {
            for block in 0..network.n_blocks() {
                let keys = cache.keys_mut(block);
                let start = keys.len() - width;
                let row = &mut keys[start..];
                let place =
                    |position: usize| orders.map_or(position, |orders| orders[block][position] as usize);
                let sorted: Vec<f32> = (0..width).map(|position| row[place(position)]).collect();
                let (mut exponents, mut mantissas) = (Vec::new(), Vec::new());
                blocks.quantize(&sorted, head, &mut exponents, &mut mantissas);
                let values = blocks.dequantize(&exponents, &mantissas, width, head);
                for (position, value) in values.into_iter().enumerate() {
                    let own = &mut row[place(position)];
                    error += f64::from(*own - value).powi(2);
                    energy += f64::from(*own).powi(2);
                    *own = value;
                }
            }
        }
    }
    Ok(((sum / count.max(1) as f64).exp(), error / energy.max(f64::MIN_POSITIVE)))
}
