//! RWKV 5, 6 and 7: recurrent networks that train like transformers.
//!
//! A block is the residual block of every decoder here, with a *time mix* in the place of attention and a *channel
//! mix* in the place of the feed-forward network. Both see each row next to the one before it
//! (`x + (x_before - x) * mu`, the *token shift*, with its own `mu` for every projection). The time mix of a head
//! keeps a matrix `S [head_dim, head_dim]` instead of all keys and values:
//!
//! * versions 5 and 6: `out = r (u k^T v + S)`, then `S = diag(w) S + k^T v`. The decay `w` is a constant in version
//!   5 and depends on the row in version 6, as do the token shift's `mu`.
//! * version 7: `S = S (diag(w) - kk^T (a * kk)) + v^T k` (a delta rule: what `kk` reads is taken out before `k`
//!   writes), `out = S r^T`. Values mix with those of the first block.
//!
//! Arrays are called and stored as rwkv.cpp's converter leaves them: `blocks.0.att.key.weight [out, in]`, decays of
//! version 5 already as factors, version 7's token shifts joined in `x_rwkvag` (in this order). The configuration is
//! `{"model_type": "rwkv6", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
//! "intermediate_size"}`.
//!
//! References: Peng et al., *Eagle and Finch* (arXiv 2404.05892); *RWKV-7 "Goose"* (arXiv 2503.14456).

mod channel_mix;
mod recurrence;
mod time_mix;

pub(crate) use channel_mix::{ChannelMix, ChannelMixPlan};
pub(crate) use time_mix::{TimeMix, TimeMixPlan};

use crate::hidden::Hidden;
use crate::kv_cache::{BlockState, Cache};

/// The difference of every row to the one before it in its sequence (to zero, or to the cached one, at the start).
/// `shift` picks where a cache keeps the last row, which is brought up to date.
fn shifted(
    inputs: &[f32],
    hidden: &Hidden,
    index: usize,
    caches: Option<&mut [Cache]>,
    shift: fn(&mut BlockState) -> &mut Vec<f32>,
) -> Vec<f32> {
    let width = hidden.hidden_size;
    let mut differences = Vec::with_capacity(inputs.len());
    let mut caches = caches;
    for sequence in 0..hidden.n_sequences() {
        let rows = hidden.sequence(sequence);
        let rows = &inputs[rows.start * width..rows.end * width];
        let Some(last) = rows.len().checked_sub(width) else { continue };
        let state = caches.as_mut().map(|caches| shift(&mut caches[sequence].blocks[index]));
        match &state {
            Some(before) if !before.is_empty() => {
                differences.extend(before.iter().zip(rows).map(|(before, x)| before - x));
            }
            _ => differences.extend(rows[..width].iter().map(|x| -x)),
        }
        differences.extend(rows[..last].iter().zip(&rows[width..]).map(|(before, x)| before - x));
        if let Some(state) = state {
            state.clear();
            state.extend_from_slice(&rows[last..]);
        }
    }
    differences
}

/// `x + difference * mu` for every row.
fn mixed(inputs: &[f32], differences: &[f32], mu: &[f32]) -> Vec<f32> {
    let mut rows = inputs.to_vec();
    let width = mu.len();
    for (row, difference) in rows.chunks_exact_mut(width).zip(differences.chunks_exact(width)) {
        for ((x, d), m) in row.iter_mut().zip(difference).zip(mu) {
            *x += d * m;
        }
    }
    rows
}
