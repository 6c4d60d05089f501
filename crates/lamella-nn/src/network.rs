//! A transformer with its weights in memory: forward, and in reverse to the gradients of its parameters.

use rayon::prelude::*;

use crate::block::Tape;
use crate::elementwise::add;
use crate::feed_forward::FeedForwardTape;
use crate::objective::{Head, HeadGradient, Reference, distance, divergence, next_tokens, pool};
use crate::parts::{FeedForward, Linear, NetworkError, Norm, Parts, Weight, check};
use crate::product;

/// One vector of numbers a parameter.
pub(crate) type Gradient = Vec<Vec<f32>>;

/// A network with gradients.
#[derive(Debug, Clone)]
pub struct Network {
    parts: Parts,
    trains_matrices: bool,
}

/// How [`Network::next_token_gradient`] works.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GradientOptions {
    /// Keep only the inputs of every block and run it again in reverse: a third more work, memory of one block.
    pub is_checkpointed: bool,
    /// Weight of the experts' balance in the loss (0: none; 0.01 is usual).
    pub balance: f32,
    /// Sequences that one thread takes one after the other into one gradient; 0 counts as 1. Sums depend on it, not
    /// on the number of threads.
    pub group: usize,
}

/// What a pass over sequences found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Mean loss: nats per predicted token. The balance is not in it.
    pub loss: f64,
    /// Mean balance of the experts, 1 where all are used alike; 0 without experts.
    pub balance: f64,
    /// Of the loss with its share of balance, in every parameter.
    pub gradient: Vec<Vec<f32>>,
}

/// What a network shall do with one sequence.
#[derive(Clone, Copy)]
enum Goal<'a> {
    Near(&'a Network, &'a Reference),
    NextToken,
}

/// What is kept of the way forward.
#[derive(Clone, Copy, PartialEq)]
enum Keep {
    Nothing,
    Inputs,
    Tapes,
}

/// A block's way forward, or what is needed to go it again.
enum Kept {
    Inputs(Vec<f32>),
    Tape(Tape),
}

impl Network {
    /// Checks every length.
    ///
    /// # Errors
    /// [`NetworkError::Length`] with the part that does not fit.
    pub fn new(parts: Parts) -> Result<Self, NetworkError> {
        check(&parts)?;
        let trains_matrices = parts.trains_matrices();
        Ok(Self { parts, trains_matrices })
    }

    /// Everything with a gradient: norms' weights, biases, trained matrices.
    pub fn parameters(&self) -> &[Vec<f32>] {
        &self.parts.parameters
    }

    /// The same, to be changed; lengths must stay.
    pub fn parameters_mut(&mut self) -> &mut [Vec<f32>] {
        &mut self.parts.parameters
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }
    pub(crate) fn trains_matrices(&self) -> bool {
        self.trains_matrices
    }
    /// Whether the reverse pass wants the inputs of linears.
    pub(crate) fn needs_inputs(&self) -> bool {
        self.trains_matrices
            || self.parts.blocks.iter().any(|b| matches!(b.feed_forward, FeedForward::Experts(_)))
    }

    fn head_of(&self) -> Option<Head<'_>> {
        let head = self.parts.head.as_ref()?;
        let bias = head.bias.map(|bias| &self.parts.parameters[bias][..]);
        Some(Head { weight: self.parts.weight(&head.weight), bias })
    }

    pub(crate) fn norm(&self, norm: &Norm, rows: &mut [f32]) {
        let weight = &self.parts.parameters[norm.weight];
        let bias = norm.bias.map(|bias| &self.parts.parameters[bias][..]);
        for row in rows.chunks_exact_mut(weight.len()) {
            self.parts.norm.forward(row, self.parts.norm_epsilon, weight, bias);
        }
    }

    pub(crate) fn norm_backward(
        &self,
        norm: &Norm,
        inputs: &[f32],
        changes: &mut [f32],
        gradient: &mut Gradient,
    ) {
        let weight = &self.parts.parameters[norm.weight];
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

    pub(crate) fn linear(&self, linear: &Linear, rows: &[f32]) -> Vec<f32> {
        let weight = self.parts.weight(&linear.weight);
        let mut out = product::forward(rows, weight, linear.in_features, linear.out_features);
        if let Some(bias) = linear.bias {
            out.chunks_exact_mut(linear.out_features).for_each(|row| add(row, &self.parts.parameters[bias]));
        }
        out
    }

    /// Adds the gradient of a linear's inputs to `out`, those of its weight and bias to `gradient`. `rows` are the
    /// inputs; nothing looks at them where the weight is constant.
    pub(crate) fn linear_backward(
        &self,
        linear: &Linear,
        rows: &[f32],
        changes: &[f32],
        out: &mut [f32],
        gradient: &mut Gradient,
    ) {
        let (inputs, outputs) = (linear.in_features, linear.out_features);
        product::backward(changes, self.parts.weight(&linear.weight), inputs, outputs, out);
        if let Weight::Trained(index) = linear.weight {
            product::outer(changes, rows, inputs, outputs, &mut gradient[index]);
        }
        if let Some(bias) = linear.bias {
            changes.chunks_exact(outputs).for_each(|row| add(&mut gradient[bias], row));
        }
    }

    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, NetworkError> {
        let width = self.parts.hidden_size;
        let tables = &self.parts.tables;
        let mut rows = Vec::with_capacity(tokens.len() * width);
        let row = |table: &Weight, index: usize| {
            let table = self.parts.weight(table);
            index.checked_mul(width).and_then(|at| table.get(at..)?.get(..width).map(<[f32]>::to_vec))
        };
        for (position, &token) in tokens.iter().enumerate() {
            let missing = || NetworkError::Token { token, position };
            let from = rows.len();
            rows.extend(row(&tables.tokens, token as usize).ok_or_else(missing)?);
            if let Some((table, offset)) = &tables.positions {
                add(&mut rows[from..], &row(table, position + offset).ok_or_else(missing)?);
            }
            if let Some(constant) = &tables.constant {
                add(&mut rows[from..], constant);
            }
        }
        Ok(rows)
    }

    /// Adds the gradient of embedded rows to that of the tables.
    fn embed_backward(&self, tokens: &[u32], changes: &[f32], gradient: &mut Gradient) {
        let width = self.parts.hidden_size;
        let tables = &self.parts.tables;
        if let Weight::Trained(index) = tables.tokens {
            for (&token, change) in tokens.iter().zip(changes.chunks_exact(width)) {
                add(&mut gradient[index][token as usize * width..][..width], change);
            }
        }
        if let Some((Weight::Trained(index), offset)) = tables.positions {
            add(&mut gradient[index][offset * width..][..changes.len()], changes);
        }
    }

    /// Rows behind all blocks and the last norm, and rows as embedded and before the last norm.
    fn forward(
        &self,
        tokens: &[u32],
        keep: Keep,
        kept: &mut Vec<Kept>,
    ) -> Result<(Vec<f32>, [Vec<f32>; 2]), NetworkError> {
        let embedded = self.embed(tokens)?;
        let mut rows = embedded.clone();
        if let Some(norm) = &self.parts.embedding_norm {
            self.norm(norm, &mut rows);
        }
        for block in &self.parts.blocks {
            if keep == Keep::Inputs {
                kept.push(Kept::Inputs(rows.clone()));
            }
            let tape = self.block(block, &mut rows);
            if keep == Keep::Tapes {
                kept.push(Kept::Tape(tape));
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
        let (rows, _) = self.forward(tokens, Keep::Nothing, &mut Vec::new())?;
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
        let (rows, _) = self.forward(tokens, Keep::Nothing, &mut Vec::new())?;
        Ok(self.parts.head.as_ref().map(|head| self.linear(head, &rows)))
    }

    /// Mean distance from what `original` made of the sequences: nats per token, or squared distance per sequence.
    ///
    /// # Errors
    /// Tokens outside the tables; references that do not fit.
    pub fn loss(&self, original: &Network, batch: &[(&[u32], &Reference)]) -> Result<f64, NetworkError> {
        let goal = |reference| Goal::Near(original, reference);
        let losses: Vec<f64> = batch
            .par_iter()
            .map(|&(tokens, reference)| self.judged(tokens, goal(reference)))
            .collect::<Result<_, NetworkError>>()?;
        Ok(losses.iter().sum::<f64>() / count(batch))
    }

    /// [`Network::loss`] and its gradient in every parameter.
    ///
    /// # Errors
    /// As [`Network::loss`].
    pub fn gradient(
        &self,
        original: &Network,
        batch: &[(&[u32], &Reference)],
    ) -> Result<(f64, Vec<Vec<f32>>), NetworkError> {
        let scale = (1.0 / count(batch)) as f32;
        let goals: Vec<(&[u32], Goal<'_>)> =
            batch.iter().map(|&(tokens, reference)| (tokens, Goal::Near(original, reference))).collect();
        let options = GradientOptions { group: 1, ..GradientOptions::default() };
        let found = self.accumulate(&goals, scale, options)?;
        Ok((found.loss / count(batch), found.gradient))
    }

    /// Mean of `-ln p(next token)` over all tokens that have a next one, in nats.
    ///
    /// # Errors
    /// Encoders, sequences under two tokens, tokens outside the tables.
    pub fn next_token_loss(&self, sequences: &[&[u32]]) -> Result<f64, NetworkError> {
        let predicted = predicted(sequences)?;
        let losses: Vec<f64> = sequences
            .par_iter()
            .map(|tokens| self.judged(tokens, Goal::NextToken))
            .collect::<Result<_, NetworkError>>()?;
        Ok(losses.iter().sum::<f64>() / predicted)
    }

    /// [`Network::next_token_loss`] and its gradient.
    ///
    /// # Errors
    /// As [`Network::next_token_loss`].
    pub fn next_token_gradient(
        &self,
        sequences: &[&[u32]],
        options: GradientOptions,
    ) -> Result<Found, NetworkError> {
        let predicted = predicted(sequences)?;
        let goals: Vec<(&[u32], Goal<'_>)> =
            sequences.iter().map(|&tokens| (tokens, Goal::NextToken)).collect();
        let mut found = self.accumulate(&goals, (1.0 / predicted) as f32, options)?;
        found.loss /= predicted;
        found.balance /= sequences.len() as f64;
        Ok(found)
    }

    /// Per block with experts, the share of all choices that fell on each; empty where there is none.
    ///
    /// # Errors
    /// Tokens outside the tables.
    pub fn expert_usage(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f64>>, NetworkError> {
        let mut counts: Vec<Vec<usize>> = Vec::new();
        for tokens in sequences {
            let mut kept = Vec::new();
            self.forward(tokens, Keep::Tapes, &mut kept)?;
            let found = kept.iter().filter_map(|kept| match kept {
                Kept::Tape(Tape { feed_forward: FeedForwardTape::Experts(tape), .. }) => Some(tape.counts()),
                _ => None,
            });
            for (block, found) in found.enumerate() {
                match counts.get_mut(block) {
                    Some(sums) => sums.iter_mut().zip(found).for_each(|(sum, n)| *sum += n),
                    None => counts.push(found),
                }
            }
        }
        let shares = |counts: &Vec<usize>| {
            let total: usize = counts.iter().sum();
            counts.iter().map(|&n| n as f64 / total.max(1) as f64).collect()
        };
        Ok(counts.iter().map(shares).collect())
    }

    /// Summed losses and balances; the gradient of `scale` times the loss. Groups run side by side, their gradients
    /// are added in order.
    fn accumulate(
        &self,
        goals: &[(&[u32], Goal<'_>)],
        scale: f32,
        options: GradientOptions,
    ) -> Result<Found, NetworkError> {
        let zeros = || self.parts.parameters.iter().map(|values| vec![0.0; values.len()]).collect();
        let mut total = Found { loss: 0.0, balance: 0.0, gradient: zeros() };
        let groups: Vec<_> = goals.chunks(options.group.max(1)).collect();
        // No more gradients in memory than there are threads; the order of the sums does not change with it.
        for wave in groups.chunks(rayon::current_num_threads().max(1)) {
            let found: Vec<Found> = wave
                .par_iter()
                .map(|group| {
                    let mut found = Found { loss: 0.0, balance: 0.0, gradient: zeros() };
                    for &(tokens, goal) in *group {
                        self.one(tokens, goal, scale, options, &mut found)?;
                    }
                    Ok(found)
                })
                .collect::<Result<_, NetworkError>>()?;
            for part in &found {
                total.loss += part.loss;
                total.balance += part.balance;
                total.gradient.par_iter_mut().zip(&part.gradient).for_each(|(total, part)| add(total, part));
            }
        }
        Ok(total)
    }

    /// Summed loss of one sequence.
    fn judged(&self, tokens: &[u32], goal: Goal<'_>) -> Result<f64, NetworkError> {
        let (rows, _) = self.forward(tokens, Keep::Nothing, &mut Vec::new())?;
        self.compare(goal, tokens, &rows, 0.0, None)
    }

    /// Adds the summed loss of one sequence and the gradient of `scale` times it.
    fn one(
        &self,
        tokens: &[u32],
        goal: Goal<'_>,
        scale: f32,
        options: GradientOptions,
        found: &mut Found,
    ) -> Result<(), NetworkError> {
        let width = self.parts.hidden_size;
        let gradient = &mut found.gradient;
        let mut kept = Vec::with_capacity(self.parts.blocks.len());
        let keep = if options.is_checkpointed { Keep::Inputs } else { Keep::Tapes };
        let (rows, [embedded, last]) = self.forward(tokens, keep, &mut kept)?;
        let mut changes = vec![0.0; tokens.len() * width];
        let head_bias = self.parts.head.as_ref().and_then(|head| head.bias);
        let head_weight = match self.parts.head.as_ref().map(|head| &head.weight) {
            Some(Weight::Trained(index)) => Some(*index),
            _ => None,
        };
        let mut bias = head_bias.map(|bias| std::mem::take(&mut gradient[bias]));
        let mut weight = head_weight.map(|weight| std::mem::take(&mut gradient[weight]));
        let head =
            HeadGradient { rows: &mut changes, bias: bias.as_deref_mut(), weight: weight.as_deref_mut() };
        found.loss += self.compare(goal, tokens, &rows, scale, Some(head))?;
        for (index, values) in [(head_bias, bias), (head_weight, weight)] {
            if let (Some(index), Some(values)) = (index, values) {
                gradient[index] = values;
            }
        }
        if let Some(norm) = &self.parts.final_norm {
            self.norm_backward(norm, &last, &mut changes, gradient);
        }
        let mut balance = (0.0, 0usize);
        for (block, kept) in self.parts.blocks.iter().zip(kept).rev() {
            let tape = match kept {
                Kept::Tape(tape) => tape,
                Kept::Inputs(mut rows) => self.block(block, &mut rows),
            };
            if let FeedForwardTape::Experts(experts) = &tape.feed_forward {
                balance = (balance.0 + experts.balance(), balance.1 + 1);
            }
            self.block_backward(block, &tape, options.balance * scale, &mut changes, gradient);
        }
        found.balance += balance.0 / balance.1.max(1) as f64;
        if let Some(norm) = &self.parts.embedding_norm {
            self.norm_backward(norm, &embedded, &mut changes, gradient);
        }
        self.embed_backward(tokens, &changes, gradient);
        Ok(())
    }

    fn compare(
        &self,
        goal: Goal<'_>,
        tokens: &[u32],
        rows: &[f32],
        scale: f32,
        gradient: Option<HeadGradient<'_>>,
    ) -> Result<f64, NetworkError> {
        let width = self.parts.hidden_size;
        let (original, reference) = match goal {
            Goal::NextToken => {
                let own = self.head_of().ok_or(NetworkError::NoNextToken)?;
                let vocab = own.weight.len() / width;
                if let Some(position) = tokens.iter().position(|&token| token as usize >= vocab) {
                    return Err(NetworkError::Token { token: tokens[position], position });
                }
                return Ok(next_tokens(tokens, (rows, own), width, scale, gradient));
            }
            Goal::Near(original, reference) => (original, reference),
        };
        match (reference, self.head_of(), original.head_of()) {
            (Reference::Rows(theirs), Some(own), Some(head))
                if theirs.len() == rows.len() && head.weight.len() == own.weight.len() =>
            {
                Ok(divergence((theirs, head), (rows, own), width, scale, gradient))
            }
            (Reference::Embedding(target), None, None) if target.len() == width => {
                let changes = gradient.map(|gradient| gradient.rows);
                Ok(distance(target, rows, self.parts.pooling, scale, changes))
            }
            _ => Err(NetworkError::Reference),
        }
    }
}

/// Tokens that have a next one.
fn predicted(sequences: &[&[u32]]) -> Result<f64, NetworkError> {
    if sequences.is_empty() || sequences.iter().any(|tokens| tokens.len() < 2) {
        return Err(NetworkError::NoNextToken);
    }
    Ok(sequences.iter().map(|tokens| tokens.len() - 1).sum::<usize>() as f64)
}

/// Tokens of decoders, sequences of encoders; at least 1.
fn count(batch: &[(&[u32], &Reference)]) -> f64 {
    let counted: usize = batch
        .iter()
        .map(|(tokens, reference)| if matches!(reference, Reference::Rows(_)) { tokens.len() } else { 1 })
        .sum();
    counted.max(1) as f64
}
