//! A block's two halves, forwards and in reverse.

use crate::attention::Heads;
use crate::elementwise::add;
use crate::feed_forward::FeedForwardTape;
use crate::network::{Gradient, Network};
use crate::parts::{Block, Norm, Parts};

/// What the reverse pass of a block needs. Normalised rows are made again from the rows behind them.
pub(crate) struct Tape {
    /// The block's inputs.
    input: Vec<f32>,
    /// Queries, keys and values before norms and rotation (empty without head norms), and as attended to.
    raw: Vec<f32>,
    projected: Vec<f32>,
    context: Vec<f32>,
    /// Behind the attention's half, before its norm where norms stand last.
    middle: Vec<f32>,
    pub(crate) feed_forward: FeedForwardTape,
    /// Behind the feed-forward half, before its norm (empty where norms stand first).
    end: Vec<f32>,
}

impl Network {
    fn heads(&self, block: &Block) -> Heads {
        let Parts { n_heads, kv_heads, head_dim, is_causal, .. } = *self.parts();
        Heads { n_heads, kv_heads, head_dim, is_causal, window: block.window }
    }

    /// Queries and keys, head by head.
    fn each_head(&self, rows: &mut [f32], width: usize, mut visit: impl FnMut(usize, usize, &mut [f32])) {
        let heads = self.parts().n_heads + self.parts().kv_heads;
        for (position, row) in rows.chunks_exact_mut(width).enumerate() {
            for (head, features) in row.chunks_exact_mut(self.parts().head_dim).take(heads).enumerate() {
                visit(position, head, features);
            }
        }
    }

    pub(crate) fn block(&self, block: &Block, rows: &mut Vec<f32>) -> Tape {
        let parts = self.parts();
        let input = rows.clone();
        if parts.is_norm_first {
            self.norm(&block.attention_norm, rows);
        }
        let heads = self.heads(block);
        let width = heads.width();
        let mut projected = vec![0.0; rows.len() / parts.hidden_size * width];
        let mut column = 0;
        for linear in &block.query_key_value {
            let out = self.linear(linear, rows);
            let n = linear.out_features;
            for (target, row) in projected.chunks_exact_mut(width).zip(out.chunks_exact(n)) {
                target[column..column + n].copy_from_slice(row);
            }
            column += n;
        }
        let raw = if block.head_norms.is_some() { projected.clone() } else { Vec::new() };
        self.each_head(&mut projected, width, |position, head, features| {
            if let Some((queries, keys)) = &block.head_norms {
                self.norm(if head < parts.n_heads { queries } else { keys }, features);
            }
            if let Some(rotation) = &parts.rotation {
                rotation.forward(position, &mut features[..rotation.rotated()]);
            }
        });
        let context = heads.forward(&projected);
        let mut middle = self.linear(&block.output, &context);
        add(&mut middle, &input);
        rows.copy_from_slice(&middle);
        let mut state = middle.clone();
        if parts.is_norm_first {
            self.norm(&block.feed_forward_norm, rows);
        } else {
            self.norm(&block.attention_norm, rows);
            state.copy_from_slice(rows);
        }
        let (feed_forward, change) = self.feed_forward(&block.feed_forward, rows);
        add(&mut state, &change);
        let end = if parts.is_norm_first { Vec::new() } else { state.clone() };
        if !parts.is_norm_first {
            self.norm(&block.feed_forward_norm, &mut state);
        }
        *rows = state;
        Tape { input, raw, projected, context, middle, feed_forward, end }
    }

    /// Rows behind a norm, where a matrix's gradient will ask for them.
    fn normed(&self, norm: &Norm, rows: &[f32]) -> Vec<f32> {
        if !self.needs_inputs() {
            return Vec::new();
        }
        let mut rows = rows.to_vec();
        self.norm(norm, &mut rows);
        rows
    }

    /// From the gradient of a block's outputs to that of its inputs, in place. `balance` weighs the balance of
    /// experts, per token.
    pub(crate) fn block_backward(
        &self,
        block: &Block,
        tape: &Tape,
        balance: f32,
        changes: &mut [f32],
        gradient: &mut Gradient,
    ) {
        let parts = self.parts();
        if !parts.is_norm_first {
            self.norm_backward(&block.feed_forward_norm, &tape.end, changes, gradient);
        }
        // The feed-forward half.
        let norm = if parts.is_norm_first { &block.feed_forward_norm } else { &block.attention_norm };
        let rows = self.normed(norm, &tape.middle);
        let mut inner = vec![0.0; changes.len()];
        let half = (&block.feed_forward, &tape.feed_forward);
        self.feed_forward_backward(half, &rows, changes, balance, &mut inner, gradient);
        if parts.is_norm_first {
            self.norm_backward(&block.feed_forward_norm, &tape.middle, &mut inner, gradient);
            add(changes, &inner);
        } else {
            add(changes, &inner);
            self.norm_backward(&block.attention_norm, &tape.middle, changes, gradient);
        }
        // The attention's half.
        let heads = self.heads(block);
        let mut context = vec![0.0; tape.context.len()];
        self.linear_backward(&block.output, &tape.context, changes, &mut context, gradient);
        let mut projected = heads.backward(&tape.projected, &context);
        let row_width = heads.width();
        let d = parts.head_dim;
        self.each_head(&mut projected, row_width, |position, head, features| {
            if let Some(rotation) = &parts.rotation {
                rotation.backward(position, &mut features[..rotation.rotated()]);
            }
            if let Some((queries, keys)) = &block.head_norms {
                let norm = if head < parts.n_heads { queries } else { keys };
                let raw = &tape.raw[position * row_width + head * d..][..d];
                self.norm_backward(norm, raw, features, gradient);
            }
        });
        let rows = if parts.is_norm_first {
            self.normed(&block.attention_norm, &tape.input)
        } else {
            tape.input.clone()
        };
        let mut inner = vec![0.0; changes.len()];
        let mut column = 0;
        for linear in &block.query_key_value {
            let n = linear.out_features;
            let part: Vec<f32> = projected
                .chunks_exact(row_width)
                .flat_map(|row| row[column..column + n].iter().copied())
                .collect();
            self.linear_backward(linear, &rows, &part, &mut inner, gradient);
            column += n;
        }
        if parts.is_norm_first {
            self.norm_backward(&block.attention_norm, &tape.input, &mut inner, gradient);
        }
        add(changes, &inner);
    }
}
