//! What a network shall be near to, and the gradient of the distance in its last rows.

use crate::elementwise::{add, dot, softmax};
use crate::product;

/// Rows whose logits exist at a time.
const ROWS: usize = 64;

/// How an encoder's rows become one vector, which is then scaled to unit length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// Mean over all rows.
    Mean,
    /// The first row.
    First,
}

/// What the original makes of one sequence.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Reference {
    /// A decoder's rows before its head, `[tokens, hidden_size]`: the distance is the mean Kullback-Leibler
    /// divergence of predictions, in nats.
    Rows(Vec<f32>),
    /// An encoder's vector of unit length: the distance is the squared one.
    Embedding(Vec<f32>),
}

/// A projection to the vocabulary: `[vocab_size, hidden_size]`, and what is added.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
}

impl Head<'_> {
    fn logits(&self, rows: &[f32], width: usize) -> Vec<f32> {
        let vocab = self.weight.len() / width;
        let mut logits = product::forward(rows, self.weight, width, vocab);
        if let Some(bias) = self.bias {
            logits.chunks_exact_mut(vocab).for_each(|row| add(row, bias));
        }
        logits
    }
}

/// Where the gradient of a head goes: to its inputs, its bias, its weight (those that are wanted).
pub(crate) struct HeadGradient<'a> {
    pub(crate) rows: &'a mut [f32],
    pub(crate) bias: Option<&'a mut [f32]>,
    pub(crate) weight: Option<&'a mut [f32]>,
}

impl HeadGradient<'_> {
    /// Adds what `changes`, the gradient of logits of the rows from `first` on, means for all of them.
    fn add(&mut self, head: Head<'_>, first: usize, rows: &[f32], changes: &[f32], width: usize) {
        let vocab = head.weight.len() / width;
        let target = &mut self.rows[first * width..][..rows.len()];
        product::backward(changes, head.weight, width, vocab, target);
        if let Some(weight) = &mut self.weight {
            product::outer(changes, rows, width, vocab, weight);
        }
        if let Some(bias) = &mut self.bias {
            changes.chunks_exact(vocab).for_each(|row| add(bias, row));
        }
    }
}

/// Sum over rows of `KL(original || own)`, and the gradient of `scale` times it added to `gradient` (where there is
/// one): logits move by `scale * (own - original)`.
pub(crate) fn divergence(
    original: (&[f32], Head<'_>),
    own: (&[f32], Head<'_>),
    width: usize,
    scale: f32,
    mut gradient: Option<HeadGradient<'_>>,
) -> f64 {
    let vocab = own.1.weight.len() / width;
    let mut sum = 0.0;
    for (index, (theirs, ours)) in original.0.chunks(ROWS * width).zip(own.0.chunks(ROWS * width)).enumerate()
    {
        let (mut p_rows, mut q_rows) = (original.1.logits(theirs, width), own.1.logits(ours, width));
        for (p, q) in p_rows.chunks_exact_mut(vocab).zip(q_rows.chunks_exact_mut(vocab)) {
            // KL = sum p (log p - log q) = log Zq - log Zp + sum p (lp - lq), taken before the logits are overwritten.
            let difference: Vec<f32> = p.iter().zip(q.iter()).map(|(p, q)| p - q).collect();
            let (p_log, q_log) = (softmax(p), softmax(q));
            let mean: f64 = p.iter().zip(&difference).map(|(&p, &d)| f64::from(p) * f64::from(d)).sum();
            sum += q_log - p_log + mean;
            q.iter_mut().zip(p.iter()).for_each(|(q, p)| *q = scale * (*q - p));
        }
        if let Some(gradient) = &mut gradient {
            gradient.add(own.1, index * ROWS, ours, &q_rows, width);
        }
    }
    sum
}

/// Sum of `-ln p(next token)` over all rows but the last, and the gradient of `scale` times it added to `gradient`:
/// logits move by `scale * (p - 1 at the next token)`. A next token outside the vocabulary was refused before.
pub(crate) fn next_tokens(
    tokens: &[u32],
    own: (&[f32], Head<'_>),
    width: usize,
    scale: f32,
    mut gradient: Option<HeadGradient<'_>>,
) -> f64 {
    let vocab = own.1.weight.len() / width;
    let rows = &own.0[..tokens.len().saturating_sub(1) * width];
    let mut sum = 0.0;
    for (index, rows) in rows.chunks(ROWS * width).enumerate() {
        let mut logits = own.1.logits(rows, width);
        for (row, &next) in logits.chunks_exact_mut(vocab).zip(&tokens[index * ROWS + 1..]) {
            let next = next as usize;
            let at = f64::from(row[next]);
            sum += softmax(row) - at;
            row[next] -= 1.0;
            row.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(gradient) = &mut gradient {
            gradient.add(own.1, index * ROWS, rows, &logits, width);
        }
    }
    sum
}

/// The pooled vector of unit length and the length it had; zeros where there is no row.
pub(crate) fn pool(rows: &[f32], width: usize, pooling: Pooling) -> (Vec<f32>, f32) {
    let mut vector = vec![0.0; width];
    let taken = if pooling == Pooling::First { 1 } else { usize::MAX };
    rows.chunks_exact(width).take(taken).for_each(|row| add(&mut vector, row));
    let length = dot(&vector, &vector).sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
    (vector, length)
}

/// Squared distance of the pooled vector from `target`, and the gradient of `scale` times it written to `gradient`.
pub(crate) fn distance(
    target: &[f32],
    rows: &[f32],
    pooling: Pooling,
    scale: f32,
    gradient: Option<&mut [f32]>,
) -> f64 {
    let width = target.len();
    let (vector, length) = pool(rows, width, pooling);
    let mut change: Vec<f32> = vector.iter().zip(target).map(|(u, t)| u - t).collect();
    let sum = change.iter().map(|&d| f64::from(d) * f64::from(d)).sum();
    if let Some(gradient) = gradient
        && length > 0.0
    {
        // d|u - t|^2 / dv = (I - u u^T) 2 (u - t) / |v|
        let along = dot(&change, &vector);
        let factor = 2.0 * scale / length;
        change.iter_mut().zip(&vector).for_each(|(d, u)| *d = factor * (*d - along * u));
        let taken = if pooling == Pooling::First { 1 } else { usize::MAX };
        gradient.chunks_exact_mut(width).take(taken).for_each(|row| row.copy_from_slice(&change));
    }
    sum
}
