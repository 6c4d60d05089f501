//! A transformer with its weights in memory: forward, and in reverse to the gradients of its vectors.

use rayon::prelude::*;

use crate::attention::Heads;
use crate::elementwise::add;
use crate::objective::{Head, Reference, distance, divergence, pool};
use crate::parts::{Block, FeedForward, Linear, NetworkError, Norm, Parts, check};
use crate::product;

/// A network with gradients in its vectors.
#[derive(Debug, Clone)]
pub struct Network {
    parts: Parts,
}

/// What the reverse pass of a block needs.
struct Tape {
    input: Vec<f32>,
    /// Queries, keys and values before norms and rotation (empty without head norms), and as attended to.
    raw: Vec<f32>,
    projected: Vec<f32>,
    context: Vec<f32>,
    /// Behind the attention's half, before its norm where norms stand last.
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Behind the feed-forward half, before its norm (empty where norms stand first).
    end: Vec<f32>,
}

type Gradient = Vec<Vec<f32>>;

impl Network {
    /// Checks every length.
    ///
    /// # Errors
    /// [`NetworkError::Length`] with the part that does not fit.
    pub fn new(parts: Parts) -> Result<Self, NetworkError> {
        check(&parts)?;
        Ok(Self { parts })
    }

    /// Norms' weights and biases.
    pub fn vectors(&self) -> &[Vec<f32>] {
        &self.parts.vectors
    }

    /// The same, to be changed; lengths must stay.
    pub fn vectors_mut(&mut self) -> &mut [Vec<f32>] {
        &mut self.parts.vectors
    }

    fn head_of(&self) -> Option<Head<'_>> {
        let head = self.parts.head.as_ref()?;
        Some(Head { weight: &head.weight, bias: head.bias.map(|bias| &self.parts.vectors[bias][..]) })
    }

    fn heads(&self, block: &Block) -> Heads {
        let Parts { n_heads, kv_heads, head_dim, is_causal, .. } = self.parts;
        Heads { n_heads, kv_heads, head_dim, is_causal, window: block.window }
    }

    fn norm(&self, norm: &Norm, rows: &mut [f32]) {
        let weight = &self.parts.vectors[norm.weight];
        let bias = norm.bias.map(|bias| &self.parts.vectors[bias][..]);
        for row in rows.chunks_exact_mut(weight.len()) {
            self.parts.norm.forward(row, self.parts.norm_epsilon, weight, bias);
        }
    }

    fn norm_backward(&self, norm: &Norm, inputs: &[f32], changes: &mut [f32], gradient: &mut Gradient) {
        let weight = &self.parts.vectors[norm.weight];
        let mut weight_gradient = std::mem::take(&mut gradient[norm.weight]);
        let mut bias_gradient = norm.bias.map(|bias| std::mem::take(&mut gradient[bias]));
        let width = weight.len();
        for (row, changes) in inputs.chunks_exact(width).zip(changes.chunks_exact_mut(width)) {
            self.parts.norm.backward(
                row,
                changes,
                self.parts.norm_epsilon,
                weight,
                &mut weight_gradient,
                bias_gradient.as_deref_mut(),
            );
        }
        gradient[norm.weight] = weight_gradient;
        if let (Some(bias), Some(found)) = (norm.bias, bias_gradient) {
            gradient[bias] = found;
        }
    }

    fn linear(&self, linear: &Linear, rows: &[f32]) -> Vec<f32> {
        let mut out = product::forward(rows, &linear.weight, linear.in_features, linear.out_features);
        if let Some(bias) = linear.bias {
            out.chunks_exact_mut(linear.out_features).for_each(|row| add(row, &self.parts.vectors[bias]));
        }
        out
    }

    /// Adds the gradient of a linear's inputs to `out` and that of its bias to `gradient`.
    fn linear_backward(linear: &Linear, changes: &[f32], out: &mut [f32], gradient: &mut Gradient) {
        product::backward(changes, &linear.weight, linear.in_features, linear.out_features, out);
        if let Some(bias) = linear.bias {
            changes.chunks_exact(linear.out_features).for_each(|row| add(&mut gradient[bias], row));
        }
    }

    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, NetworkError> {
        let width = self.parts.hidden_size;
        let tables = &self.parts.tables;
        let mut rows = Vec::with_capacity(tokens.len() * width);
        for (position, &token) in tokens.iter().enumerate() {
            let missing = NetworkError::Token { token, position };
            let from = rows.len();
            let row = |table: &[f32], index: usize| {
                index.checked_mul(width).and_then(|at| table.get(at..)?.get(..width).map(<[f32]>::to_vec))
            };
            rows.extend(row(&tables.tokens, token as usize).ok_or(missing)?);
            if let Some((table, offset)) = &tables.positions {
                let missing = NetworkError::Token { token, position };
                add(&mut rows[from..], &row(table, position + offset).ok_or(missing)?);
            }
            if let Some(constant) = &tables.constant {
                add(&mut rows[from..], constant);
            }
        }
        Ok(rows)
    }

    /// Queries and keys normalised and turned, or the same in reverse.
    fn each_head(&self, rows: &mut [f32], width: usize, mut visit: impl FnMut(usize, usize, &mut [f32])) {
        let heads = self.parts.n_heads + self.parts.kv_heads;
        for (position, row) in rows.chunks_exact_mut(width).enumerate() {
            for (head, features) in row.chunks_exact_mut(self.parts.head_dim).take(heads).enumerate() {
                visit(position, head, features);
            }
        }
    }

    fn block(&self, block: &Block, rows: &mut Vec<f32>) -> Tape {
        let input = rows.clone();
        if self.parts.is_norm_first {
            self.norm(&block.attention_norm, rows);
        }
        let heads = self.heads(block);
        let width = heads.width();
        let mut projected = vec![0.0; rows.len() / self.parts.hidden_size * width];
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
                self.norm(if head < self.parts.n_heads { queries } else { keys }, features);
            }
            if let Some(rotation) = &self.parts.rotation {
                rotation.forward(position, &mut features[..rotation.rotated()]);
            }
        });
        let context = heads.forward(&projected);
        let mut middle = self.linear(&block.output, &context);
        add(&mut middle, &input);
        rows.copy_from_slice(&middle);
        let mut state = middle.clone();
        if self.parts.is_norm_first {
            self.norm(&block.feed_forward_norm, rows);
        } else {
            self.norm(&block.attention_norm, rows);
            state.copy_from_slice(rows);
        }
        let gate = block.feed_forward.gate.as_ref().map_or_else(Vec::new, |gate| self.linear(gate, rows));
        let up = self.linear(&block.feed_forward.up, rows);
        let product = self.activated(&gate, &up);
        let change = self.linear(&block.feed_forward.down, &product);
        add(&mut state, &change);
        let end = if self.parts.is_norm_first { Vec::new() } else { state.clone() };
        if !self.parts.is_norm_first {
            self.norm(&block.feed_forward_norm, &mut state);
        }
        *rows = state;
        Tape { input, raw, projected, context, middle, gate, up, end }
    }

    fn activated(&self, gate: &[f32], up: &[f32]) -> Vec<f32> {
        let activation = self.parts.activation;
        if gate.is_empty() {
            return up.iter().map(|&x| activation.with_derivative(x).0).collect();
        }
        gate.iter().zip(up).map(|(&g, &x)| activation.with_derivative(g).0 * x).collect()
    }

    /// From the gradient of a block's outputs to that of its inputs, in place.
    fn block_backward(&self, block: &Block, tape: &Tape, changes: &mut [f32], gradient: &mut Gradient) {
        let width = self.parts.hidden_size;
        let tokens = changes.len() / width;
        if !self.parts.is_norm_first {
            self.norm_backward(&block.feed_forward_norm, &tape.end, changes, gradient);
        }
        // The feed-forward half.
        let FeedForward { gate, up, down } = &block.feed_forward;
        let mut wide = vec![0.0; tokens * down.in_features];
        Self::linear_backward(down, changes, &mut wide, gradient);
        let activation = self.parts.activation;
        let mut inner = vec![0.0; changes.len()];
        if let Some(gate) = gate {
            let mut gate_changes = vec![0.0; wide.len()];
            for (((w, g), &x), &y) in wide.iter_mut().zip(&mut gate_changes).zip(&tape.gate).zip(&tape.up) {
                let (value, slope) = activation.with_derivative(x);
                *g = *w * y * slope;
                *w *= value;
            }
            Self::linear_backward(gate, &gate_changes, &mut inner, gradient);
        } else {
            wide.iter_mut().zip(&tape.up).for_each(|(w, &x)| *w *= activation.with_derivative(x).1);
        }
        Self::linear_backward(up, &wide, &mut inner, gradient);
        if self.parts.is_norm_first {
            self.norm_backward(&block.feed_forward_norm, &tape.middle, &mut inner, gradient);
            add(changes, &inner);
        } else {
            add(changes, &inner);
            self.norm_backward(&block.attention_norm, &tape.middle, changes, gradient);
        }
        // The attention's half.
        let heads = self.heads(block);
        let mut context = vec![0.0; tape.context.len()];
        Self::linear_backward(&block.output, changes, &mut context, gradient);
        let mut projected = heads.backward(&tape.projected, &context);
        let row_width = heads.width();
        let d = self.parts.head_dim;
        self.each_head(&mut projected, row_width, |position, head, features| {
            if let Some(rotation) = &self.parts.rotation {
                rotation.backward(position, &mut features[..rotation.rotated()]);
            }
            if let Some((queries, keys)) = &block.head_norms {
                let norm = if head < self.parts.n_heads { queries } else { keys };
                self.norm_backward(
                    norm,
                    &tape.raw[position * row_width + head * d..][..d],
                    features,
                    gradient,
                );
            }
        });
        let mut inner = vec![0.0; changes.len()];
        let mut column = 0;
        for linear in &block.query_key_value {
            let n = linear.out_features;
            let part: Vec<f32> = projected
                .chunks_exact(row_width)
                .flat_map(|row| row[column..column + n].iter().copied())
                .collect();
            Self::linear_backward(linear, &part, &mut inner, gradient);
            column += n;
        }
        if self.parts.is_norm_first {
            self.norm_backward(&block.attention_norm, &tape.input, &mut inner, gradient);
        }
        add(changes, &inner);
    }

    /// Rows behind all blocks and the last norm.
    fn forward(
        &self,
        tokens: &[u32],
        mut tapes: Option<&mut Vec<Tape>>,
    ) -> Result<(Vec<f32>, [Vec<f32>; 2]), NetworkError> {
        let embedded = self.embed(tokens)?;
        let mut rows = embedded.clone();
        if let Some(norm) = &self.parts.embedding_norm {
            self.norm(norm, &mut rows);
        }
        for block in &self.parts.blocks {
            let tape = self.block(block, &mut rows);
            if let Some(tapes) = &mut tapes {
                tapes.push(tape);
            }
        }
        let last = rows.clone();
        if let Some(norm) = &self.parts.final_norm {
            self.norm(norm, &mut rows);
        }
        Ok((rows, [embedded, last]))
    }

    /// What this network makes of a sequence, for others to be near to.
    ///
    /// # Errors
    /// Tokens or positions outside the tables.
    pub fn reference(&self, tokens: &[u32]) -> Result<Reference, NetworkError> {
        let (rows, _) = self.forward(tokens, None)?;
        Ok(match self.parts.head {
            Some(_) => Reference::Rows(rows),
            None => Reference::Embedding(pool(&rows, self.parts.hidden_size, self.parts.pooling).0),
        })
    }

    /// Logits after every token, `[tokens, vocab_size]`; `None` in encoders.
    ///
    /// # Errors
    /// Tokens or positions outside the tables.
    pub fn logits(&self, tokens: &[u32]) -> Result<Option<Vec<f32>>, NetworkError> {
        let (rows, _) = self.forward(tokens, None)?;
        Ok(self.parts.head.as_ref().map(|head| self.linear(head, &rows)))
    }

    /// Mean distance from what `original` made of the sequences: nats per token, or squared distance per sequence.
    ///
    /// # Errors
    /// Tokens outside the tables; references that do not fit.
    pub fn loss(&self, original: &Network, batch: &[(&[u32], &Reference)]) -> Result<f64, NetworkError> {
        let losses: Vec<f64> = batch
            .par_iter()
            .map(|&(tokens, reference)| self.one(original, tokens, reference, 0.0, None))
            .collect::<Result<_, NetworkError>>()?;
        Ok(losses.iter().sum::<f64>() / count(batch))
    }

    /// [`Network::loss`] and its gradient in every vector.
    ///
    /// # Errors
    /// As [`Network::loss`].
    pub fn gradient(
        &self,
        original: &Network,
        batch: &[(&[u32], &Reference)],
    ) -> Result<(f64, Vec<Vec<f32>>), NetworkError> {
        let scale = (1.0 / count(batch)) as f32;
        let zeros = || self.parts.vectors.iter().map(|vector| vec![0.0; vector.len()]).collect::<Gradient>();
        let found: Vec<(f64, Gradient)> = batch
            .par_iter()
            .map(|&(tokens, reference)| {
                let mut gradient = zeros();
                let loss = self.one(original, tokens, reference, scale, Some(&mut gradient))?;
                Ok((loss, gradient))
            })
            .collect::<Result<_, NetworkError>>()?;
        let (mut loss, mut total) = (0.0, zeros());
        for (part, gradient) in &found {
            loss += part;
            total.iter_mut().zip(gradient).for_each(|(total, part)| add(total, part));
        }
        Ok((loss / count(batch), total))
    }

    /// Summed distance over one sequence; the gradient of `scale` times it.
    fn one(
        &self,
        original: &Network,
        tokens: &[u32],
        reference: &Reference,
        scale: f32,
        gradient: Option<&mut Gradient>,
    ) -> Result<f64, NetworkError> {
        let width = self.parts.hidden_size;
        let Some(gradient) = gradient else {
            let (rows, _) = self.forward(tokens, None)?;
            return self.compare(original, &rows, reference, scale, None, None);
        };
        let mut tapes = Vec::with_capacity(self.parts.blocks.len());
        let (rows, [embedded, last]) = self.forward(tokens, Some(&mut tapes))?;
        let mut changes = vec![0.0; tokens.len() * width];
        let head_bias = self.parts.head.as_ref().and_then(|head| head.bias);
        let mut bias = head_bias.map(|bias| std::mem::take(&mut gradient[bias]));
        let loss =
            self.compare(original, &rows, reference, scale, Some(&mut changes), bias.as_deref_mut())?;
        if let (Some(index), Some(bias)) = (head_bias, bias) {
            gradient[index] = bias;
        }
        if let Some(norm) = &self.parts.final_norm {
            self.norm_backward(norm, &last, &mut changes, gradient);
        }
        for (block, tape) in self.parts.blocks.iter().zip(&tapes).rev() {
            self.block_backward(block, tape, &mut changes, gradient);
        }
        if let Some(norm) = &self.parts.embedding_norm {
            self.norm_backward(norm, &embedded, &mut changes, gradient);
        }
        Ok(loss)
    }

    fn compare(
        &self,
        original: &Network,
        rows: &[f32],
        reference: &Reference,
        scale: f32,
        changes: Option<&mut [f32]>,
        bias: Option<&mut [f32]>,
    ) -> Result<f64, NetworkError> {
        let width = self.parts.hidden_size;
        match (reference, self.head_of(), original.head_of()) {
            (Reference::Rows(theirs), Some(own), Some(head))
                if theirs.len() == rows.len() && head.weight.len() == own.weight.len() =>
            {
                let gradient = changes.map(|changes| (changes, bias));
                Ok(divergence((theirs, head), (rows, own), width, scale, gradient))
            }
            (Reference::Embedding(target), None, None) if target.len() == width => {
                Ok(distance(target, rows, self.parts.pooling, scale, changes))
            }
            _ => Err(NetworkError::Reference),
        }
    }
}

/// Tokens of decoders, sequences of encoders; at least 1.
fn count(batch: &[(&[u32], &Reference)]) -> f64 {
    let counted: usize = batch
        .iter()
        .map(|(tokens, reference)| if matches!(reference, Reference::Rows(_)) { tokens.len() } else { 1 })
        .sum();
    counted.max(1) as f64
}
