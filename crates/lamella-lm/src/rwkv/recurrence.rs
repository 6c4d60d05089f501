//! The matrix state of a head, token by token.

use rayon::prelude::*;

use crate::elementwise::dot;
use crate::hidden::Hidden;
use crate::kv_cache::Cache;

/// Rows of one head that enter the recurrence at one token.
pub(super) struct Step<'a> {
    pub(super) receptance: &'a [f32],
    pub(super) key: &'a [f32],
    pub(super) value: &'a [f32],
    pub(super) decay: &'a [f32],
}

/// `(head, token, state, out)`: reads and updates a head's state, fills its output.
pub(super) type StepFunction<'a> = dyn Fn(usize, usize, &mut [f32], &mut [f32]) + Sync + 'a;

/// Runs `step` over the tokens of every head of every sequence, heads side by side. States are
/// `[head_dim, head_dim]`, zero at first or from a cache. Returns `[tokens, heads * head_dim]`.
pub(super) fn run(
    hidden: &Hidden,
    index: usize,
    caches: Option<&mut [Cache]>,
    (heads, head_dim): (usize, usize),
    step: &StepFunction<'_>,
) -> Vec<f32> {
    let mut caches = caches;
    let width = heads * head_dim;
    let mut outputs = vec![0.0; hidden.n_tokens() * width];
    for sequence in 0..hidden.n_sequences() {
        let tokens = hidden.sequence(sequence);
        let mut fresh = Vec::new();
        let states = match caches.as_mut() {
            Some(caches) => &mut caches[sequence].blocks[index].matrix,
            None => &mut fresh,
        };
        if states.is_empty() {
            states.resize(width * head_dim, 0.0);
        }
        let results: Vec<Vec<f32>> = states
            .par_chunks_mut(head_dim * head_dim)
            .enumerate()
            .map(|(head, state)| {
                let mut out = vec![0.0; tokens.len() * head_dim];
                for (token, out) in tokens.clone().zip(out.chunks_exact_mut(head_dim)) {
                    step(head, token, state, out);
                }
                out
            })
            .collect();
        for (head, result) in results.iter().enumerate() {
            for (token, row) in tokens.clone().zip(result.chunks_exact(head_dim)) {
                outputs[token * width + head * head_dim..][..head_dim].copy_from_slice(row);
            }
        }
    }
    outputs
}

/// Versions 5 and 6: `out_j = sum_i r_i (u_i k_i v_j + S_ij)`, then `S_ij = w_i S_ij + k_i v_j`.
pub(super) fn additive(step: &Step<'_>, bonus: &[f32], state: &mut [f32], out: &mut [f32]) {
    let d = out.len();
    for (i, row) in state.chunks_exact_mut(d).enumerate() {
        let (r, k, w, u) = (step.receptance[i], step.key[i], step.decay[i], bonus[i]);
        for j in 0..d {
            let written = k * step.value[j];
            out[j] += r * (u * written + row[j]);
            row[j] = w * row[j] + written;
        }
    }
}

/// Version 7: `S_ij = S_ij w_j + v_i k_j + (sum_l S_il a_l) b_j`, then `out_i = sum_j S_ij r_j`.
pub(super) fn delta(step: &Step<'_>, (read, write): (&[f32], &[f32]), state: &mut [f32], out: &mut [f32]) {
    let d = out.len();
    for (i, row) in state.chunks_exact_mut(d).enumerate() {
        let found = dot(row, read);
        let value = step.value[i];
        for j in 0..d {
            row[j] = row[j] * step.decay[j] + value * step.key[j] + found * write[j];
        }
        out[i] = dot(row, step.receptance);
    }
}
