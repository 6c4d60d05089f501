//! Attention, forwards and in reverse.
//!
//! Per head `P = softmax(scale Q K^T)` over the keys a query sees, `O = P V`. In reverse `dV = P^T dO`,
//! `dP = dO V^T`, `dS = P (dP - sum(dP P))` by row, `dQ = scale dS K`, `dK = scale dS^T Q`. Probabilities are made
//! again in reverse rather than kept: memory stays linear in the text.

use crate::elementwise::{dot, softmax};
use crate::product::{Place, multiply};

/// Queries taken at a time.
const QUERIES: usize = 64;

/// The shape of an attention module. Rows of `projected` hold all queries, then all keys, then all values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) is_causal: bool,
    pub(crate) window: Option<usize>,
}

/// Some queries of one head and the keys that any of them sees.
struct Part {
    queries: Place,
    keys: Place,
    values: Place,
    out: Place,
    /// Queries, and keys seen.
    n: usize,
    n_keys: usize,
    first_key: usize,
    first_query: usize,
}

impl Heads {
    pub(crate) fn width(&self) -> usize {
        (self.n_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Keys that a query sees.
    fn seen(&self, query: usize, tokens: usize) -> (usize, usize) {
        let end = if self.is_causal { query + 1 } else { tokens };
        (self.window.map_or(0, |window| (query + 1).saturating_sub(window)), end)
    }

    fn parts(&self, tokens: usize) -> impl Iterator<Item = Part> + '_ {
        let (d, width) = (self.head_dim, self.width());
        (0..self.n_heads).flat_map(move |head| {
            (0..tokens).step_by(QUERIES).map(move |first| {
                let n = QUERIES.min(tokens - first);
                let (start, end) = (self.seen(first, tokens).0, self.seen(first + n - 1, tokens).1);
                let kv = head / (self.n_heads / self.kv_heads);
                let (keys, values) = ((self.n_heads + kv) * d, (self.n_heads + self.kv_heads + kv) * d);
                Part {
                    queries: Place::rows(first * width + head * d, width),
                    keys: Place::rows(start * width + keys, width),
                    values: Place::rows(start * width + values, width),
                    out: Place::rows(first * self.n_heads * d + head * d, self.n_heads * d),
                    n,
                    n_keys: end - start,
                    first_key: start,
                    first_query: first,
                }
            })
        })
    }

    fn probabilities(&self, part: &Part, projected: &[f32], tokens: usize, scores: &mut Vec<f32>) {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        scores.clear();
        scores.resize(part.n * part.n_keys, 0.0);
        let out = Place::rows(0, part.n_keys);
        let shape = (part.n, part.n_keys, self.head_dim);
        multiply(
            shape,
            scale,
            (projected, part.queries),
            (projected, part.keys.transposed()),
            (scores, out),
            false,
        );
        for (query, row) in scores.chunks_exact_mut(part.n_keys).enumerate() {
            let (first, last) = self.seen(part.first_query + query, tokens);
            row[..first - part.first_key].fill(0.0);
            row[last - part.first_key..].fill(0.0);
            softmax(&mut row[first - part.first_key..last - part.first_key]);
        }
    }

    /// `[tokens, width]` to `[tokens, n_heads * head_dim]`.
    pub(crate) fn forward(&self, projected: &[f32]) -> Vec<f32> {
        let tokens = projected.len() / self.width();
        let mut out = vec![0.0; tokens * self.n_heads * self.head_dim];
        let mut scores = Vec::new();
        for part in self.parts(tokens) {
            self.probabilities(&part, projected, tokens, &mut scores);
            let left = (&scores[..], Place::rows(0, part.n_keys));
            multiply(
                (part.n, self.head_dim, part.n_keys),
                1.0,
                left,
                (projected, part.values),
                (&mut out, part.out),
                false,
            );
        }
        out
    }

    /// From the gradient of the outputs to that of `projected`.
    pub(crate) fn backward(&self, projected: &[f32], changes: &[f32]) -> Vec<f32> {
        let tokens = projected.len() / self.width();
        let (d, scale) = (self.head_dim, 1.0 / (self.head_dim as f32).sqrt());
        let mut gradient = vec![0.0; projected.len()];
        let (mut scores, mut slopes) = (Vec::new(), Vec::new());
        for part in self.parts(tokens) {
            let (n, n_keys) = (part.n, part.n_keys);
            let square = Place::rows(0, n_keys);
            self.probabilities(&part, projected, tokens, &mut scores);
            let weights = (&scores[..], square.transposed());
            multiply((n_keys, d, n), 1.0, weights, (changes, part.out), (&mut gradient, part.values), true);
            slopes.clear();
            slopes.resize(n * n_keys, 0.0);
            let values = (projected, part.values.transposed());
            multiply((n, n_keys, d), 1.0, (changes, part.out), values, (&mut slopes, square), false);
            for (slopes, weights) in slopes.chunks_exact_mut(n_keys).zip(scores.chunks_exact(n_keys)) {
                let mean = dot(slopes, weights);
                slopes.iter_mut().zip(weights).for_each(|(slope, weight)| *slope = weight * (*slope - mean));
            }
            let slopes = &slopes[..];
            multiply(
                (n, d, n_keys),
                scale,
                (slopes, square),
                (projected, part.keys),
                (&mut gradient, part.queries),
                true,
            );
            let slopes = (slopes, square.transposed());
            multiply(
                (n_keys, d, n),
                scale,
                slopes,
                (projected, part.queries),
                (&mut gradient, part.keys),
                true,
            );
        }
        gradient
    }
}
