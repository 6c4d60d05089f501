//! Attention: every query reads a weighted mean of the values whose keys it resembles.
//!
//! `out[i] = sum_j softmax_j(q_i . k_j / sqrt(head_dim)) v_j`, over the tokens `j` that `i` may see: all of its
//! sequence (encoders), those up to itself (decoders), the last `window` of those (sliding window). Queries are
//! taken in blocks of fixed size, which are the unit of parallel work; a block multiplies only with the keys that
//! any of its queries sees.

use std::ops::Range;

use lamella_codec::TensorSource;
use rayon::prelude::*;

use crate::LmError;
use crate::config::{NormKind, TransformerConfig};
use crate::elementwise::{dots, softmax, weighted_sum};
use crate::hidden::Hidden;
use crate::kv_cache::Cache;
use crate::linear::{Linear, OperatorLookup};
use crate::norm::{Norm, NormPlan};
use crate::plan::AttentionPlan;
use crate::product::{Layout, multiply};
use crate::site::Watch;

/// Queries a thread takes at a time.
const QUERIES: usize = 64;

/// Heads a thread takes at a time for a single query.
const HEADS: usize = 4;
/// Key elements below which a batch stays on the calling thread: waking others costs more.
const SERIAL_ELEMENTS: usize = 1 << 14;

/// An attention module with its weights.
pub(crate) struct Attention {
    /// Their outputs side by side are all queries, then all keys, then all values.
    query_key_value: Vec<Linear>,
    output: Linear,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    n_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    is_causal: bool,
    window: Option<usize>,
}

/// Keys and values of one sequence: rows `stride` apart.
struct Memory<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    stride: usize,
}

/// Some queries of one sequence.
struct Queries<'a> {
    /// Their rows of projections.
    projected: &'a [f32],
    /// Where the first stands in the sequence.
    position: usize,
    /// Tokens of the sequence.
    tokens: usize,
    /// Number of queries.
    rows: usize,
}

/// A block of queries to be answered.
struct Task<'a> {
    sequence: usize,
    /// First query, counted from the sequence's first new token.
    first: usize,
    /// Query heads to answer for.
    heads: Range<usize>,
    out: &'a mut [f32],
}

impl Attention {
    pub(crate) fn load(
        plan: &AttentionPlan,
        config: &TransformerConfig,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let norm = |name: &Option<String>| {
            name.as_ref()
                .map(|name| {
                    let plan = NormPlan { weight: name.clone(), bias: None };
                    Norm::load(&plan, NormKind::RootMeanSquare, config.norm_epsilon, config.head_dim, source)
                })
                .transpose()
        };
        Ok(Self {
            query_key_value: plan
                .query_key_value
                .iter()
                .map(|site| Linear::load(site, source, operators))
                .collect::<Result<_, _>>()?,
            output: Linear::load(&plan.output, source, operators)?,
            query_norm: norm(&plan.query_norm)?,
            key_norm: norm(&plan.key_norm)?,
            n_heads: config.n_heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            is_causal: config.family == crate::Family::Decoder,
            window: plan.window,
        })
    }

    pub(crate) fn for_each_linear(&self, show: &mut dyn FnMut(&Linear)) {
        self.query_key_value.iter().for_each(&mut *show);
        show(&self.output);
    }

    /// From normalised rows to what is added to the residual stream. `caches` holds the state of each sequence.
    pub(crate) fn forward(
        &self,
        inputs: &[f32],
        hidden: &Hidden,
        index: usize,
        caches: Option<&mut [Cache]>,
        watch: &mut Watch<'_>,
    ) -> Vec<f32> {
        let d = self.head_dim;
        let (queries, keys) = (self.n_heads * d, self.kv_heads * d);
        let width = queries + 2 * keys;
        if let Some(first) = self.query_key_value.first() {
            watch.see(&first.site, inputs);
        }
        let mut projected = vec![0.0; hidden.n_tokens() * width];
        let mut column = 0;
        for linear in &self.query_key_value {
            linear.apply_into(inputs, &mut projected, width, column);
            column += linear.site.out_features;
        }
        self.prepare_heads(&mut projected, width, hidden);

        let mut context = vec![0.0; hidden.n_tokens() * queries];
        match caches {
            Some(caches) => {
                for (sequence, cache) in caches.iter_mut().enumerate() {
                    let state = &mut cache.blocks[index];
                    for token in hidden.sequence(sequence) {
                        let row = &projected[token * width..][..width];
                        state.keys.extend_from_slice(&row[queries..queries + keys]);
                        state.values.extend_from_slice(&row[queries + keys..]);
                    }
                }
                let caches = &*caches;
                let memory = |sequence: usize| {
                    let state = &caches[sequence].blocks[index];
                    Memory { keys: &state.keys, values: &state.values, stride: keys }
                };
                self.attend(&projected, hidden, &memory, &mut context);
            }
            None => {
                let memory = |sequence: usize| {
                    let rows = hidden.sequence(sequence);
                    let rows = &projected[rows.start * width..rows.end * width];
                    let from = |column: usize| rows.get(column..).unwrap_or(&[]);
                    Memory { keys: from(queries), values: from(queries + keys), stride: width }
                };
                self.attend(&projected, hidden, &memory, &mut context);
            }
        }
        watch.see(&self.output.site, &context);
        self.output.apply(&context)
    }

    /// Normalises and rotates queries and keys in place.
    fn prepare_heads(&self, projected: &mut [f32], width: usize, hidden: &Hidden) {
        if self.query_norm.is_none() && self.key_norm.is_none() && hidden.rotations.is_empty() {
            return;
        }
        let (d, n_heads) = (self.head_dim, self.n_heads);
        for sequence in 0..hidden.n_sequences() {
            let rows = hidden.sequence(sequence);
            let rotations = hidden.rotations.get(sequence);
            let prepare = |(position, row): (usize, &mut [f32])| {
                let heads = row.chunks_exact_mut(d).take(n_heads + self.kv_heads);
                for (head, features) in heads.enumerate() {
                    let norm = if head < n_heads { &self.query_norm } else { &self.key_norm };
                    if let Some(norm) = norm {
                        norm.row(features);
                    }
                    if let Some(rotations) = rotations {
                        rotations.apply(position, features);
                    }
                }
            };
            let rows = &mut projected[rows.start * width..rows.end * width];
            if rows.len() <= 16 * width {
                rows.chunks_exact_mut(width).enumerate().for_each(prepare);
            } else {
                rows.par_chunks_exact_mut(width).enumerate().for_each(prepare);
            }
        }
    }

    fn attend<'a>(
        &self,
        projected: &[f32],
        hidden: &Hidden,
        memory: &(dyn Fn(usize) -> Memory<'a> + Sync),
        context: &mut [f32],
    ) {
        let width = (self.n_heads + 2 * self.kv_heads) * self.head_dim;
        let row = self.n_heads * self.head_dim;
        let mut tasks = Vec::new();
        let mut rest = context;
        let tokens_of = |sequence: usize| hidden.starts[sequence] + hidden.sequence(sequence).len();
        let largest = (0..hidden.n_sequences()).map(tokens_of).max().unwrap_or(0) * self.head_dim;
        for sequence in 0..hidden.n_sequences() {
            let tokens = hidden.sequence(sequence).len();
            if tokens == 1 {
                // A single query is shared out by heads: their answers lie one after the other.
                for head in (0..self.n_heads).step_by(HEADS) {
                    let heads = head..self.n_heads.min(head + HEADS);
                    let (out, others) = rest.split_at_mut(heads.len() * self.head_dim);
                    tasks.push(Task { sequence, first: 0, heads, out });
                    rest = others;
                }
                continue;
            }
            for first in (0..tokens).step_by(QUERIES) {
                let (out, others) = rest.split_at_mut(QUERIES.min(tokens - first) * row);
                tasks.push(Task { sequence, first, heads: 0..self.n_heads, out });
                rest = others;
            }
        }
        let run = |task: Task<'_>| {
            let first = (hidden.offsets[task.sequence] + task.first) * width;
            let rows = task.out.len() / (task.heads.len() * self.head_dim);
            let memory = memory(task.sequence);
            let position = hidden.starts[task.sequence] + task.first;
            let tokens = tokens_of(task.sequence);
            let queries =
                Queries { projected: &projected[first..first + rows * width], position, tokens, rows };
            self.attend_block(&queries, task.heads, &memory, task.out);
        };
        if largest * tasks.len() <= SERIAL_ELEMENTS || tasks.len() == 1 {
            tasks.into_iter().for_each(run);
        } else {
            tasks.into_par_iter().for_each(run);
        }
    }

    /// Answers some queries for some heads: `out [rows, heads, head_dim]`.
    fn attend_block(&self, queries: &Queries<'_>, heads: Range<usize>, memory: &Memory<'_>, out: &mut [f32]) {
        let d = self.head_dim;
        let (width, row) = ((self.n_heads + 2 * self.kv_heads) * d, heads.len() * d);
        let &Queries { projected, position, tokens, rows: n } = queries;
        let seen = |query: usize| {
            let end = if self.is_causal { position + query + 1 } else { tokens };
            let start = self.window.map_or(0, |window| (position + query + 1).saturating_sub(window));
            (start, end)
        };
        let (start, end) = (seen(0).0, seen(n - 1).1);
        let n_keys = end - start;
        let scale = 1.0 / (d as f32).sqrt();
        let mut scores = vec![0.0; n * n_keys];
        for (place, head) in heads.enumerate() {
            let kv = head / (self.n_heads / self.kv_heads) * d;
            if n == 1 {
                // A product of one row is not worth the packing that a matrix product begins with.
                let at = start * memory.stride + kv;
                let query = &projected[head * d..][..d];
                dots(query, memory.keys.get(at..).unwrap_or(&[]), memory.stride, scale, &mut scores);
                softmax(&mut scores);
                let values = memory.values.get(at..).unwrap_or(&[]);
                weighted_sum(&scores, values, memory.stride, &mut out[place * d..][..d]);
                continue;
            }
            let at = Layout::rows(start * memory.stride + kv, memory.stride);
            multiply(
                (n, n_keys, d),
                scale,
                (projected, Layout::rows(head * d, width)),
                (memory.keys, at.transposed()),
                (&mut scores, Layout::rows(0, n_keys)),
            );
            for (query, scores) in scores.chunks_exact_mut(n_keys).enumerate() {
                let (first, last) = seen(query);
                scores[..first - start].fill(0.0);
                scores[last - start..].fill(0.0);
                softmax(&mut scores[first - start..last - start]);
            }
            multiply(
                (n, d, n_keys),
                1.0,
                (&scores, Layout::rows(0, n_keys)),
                (memory.values, at),
                (out, Layout::rows(place * d, row)),
            );
        }
    }
}
