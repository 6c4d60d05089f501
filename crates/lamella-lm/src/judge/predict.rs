//! What the judge asks of a language model.

use std::ops::Range;

use super::JudgeError;
use super::distribution::largest;
use crate::{Hidden, Network};

/// Tokens to run, and the rows whose logits are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Tokens the model sees.
    pub tokens: Vec<u32>,
    /// Positions whose predictions (of the token after them) are scored: a range within the tokens.
    pub scored: Range<usize>,
}

/// A language model as the judge sees it.
pub trait Predictor: Sync {
    /// Logits per position.
    fn vocab_size(&self) -> usize;

    /// Runs the model over windows; logits are asked for afterwards.
    ///
    /// # Errors
    /// Whatever keeps the model from running.
    fn run(&self, windows: &[Window]) -> Result<Box<dyn Predictions + '_>, JudgeError>;

    /// Continues a prompt by the most probable token until `is_done` says so or `max_tokens` are made. The default
    /// runs the whole text again for every token.
    ///
    /// # Errors
    /// As [`Predictor::run`].
    fn greedy(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        is_done: &mut dyn FnMut(&[u32]) -> bool,
    ) -> Result<Vec<u32>, JudgeError> {
        let mut tokens = prompt.to_vec();
        while tokens.len() - prompt.len() < max_tokens && !tokens.is_empty() {
            let last = tokens.len() - 1;
            let window = Window { tokens: tokens.clone(), scored: last..last + 1 };
            let logits = self.run(&[window])?.logits(0, 0..1)?;
            tokens.push(most_probable(&logits) as u32);
            if is_done(&tokens[prompt.len()..]) {
                break;
            }
        }
        Ok(tokens.split_off(prompt.len()))
    }
}

/// What a model has made of windows.
pub trait Predictions {
    /// Logits of some of a window's scored positions (counted from the first scored one), `[rows, vocab_size]`.
    ///
    /// # Errors
    /// Whatever keeps the head from running.
    fn logits(&self, window: usize, rows: Range<usize>) -> Result<Vec<f32>, JudgeError>;
}

struct NetworkPredictions<'a> {
    network: &'a Network,
    hidden: Hidden,
    first: Vec<usize>,
}

impl Predictions for NetworkPredictions<'_> {
    fn logits(&self, window: usize, rows: Range<usize>) -> Result<Vec<f32>, JudgeError> {
        let first = self.hidden.sequence(window).start + self.first[window];
        Ok(self.network.logits_range(&self.hidden, first + rows.start..first + rows.end, None)?)
    }
}

/// Make the network [resident](Network::resident) first: else every group of windows reads all weights again.
impl Predictor for Network {
    fn vocab_size(&self) -> usize {
        Network::vocab_size(self)
    }

    fn run(&self, windows: &[Window]) -> Result<Box<dyn Predictions + '_>, JudgeError> {
        let tokens: Vec<Vec<u32>> = windows.iter().map(|window| window.tokens.clone()).collect();
        let hidden = self.forward(&tokens)?;
        let first = windows.iter().map(|window| window.scored.start).collect();
        Ok(Box::new(NetworkPredictions { network: self, hidden, first }))
    }

    fn greedy(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        is_done: &mut dyn FnMut(&[u32]) -> bool,
    ) -> Result<Vec<u32>, JudgeError> {
        let mut caches = vec![self.cache()];
        let (mut next, mut made) = (prompt.to_vec(), Vec::new());
        while made.len() < max_tokens && !next.is_empty() {
            let hidden = self.extend(&[next], &mut caches)?;
            let last = hidden.n_tokens().saturating_sub(1);
            let token = most_probable(&self.logits_range(&hidden, last..last + 1, None)?) as u32;
            made.push(token);
            next = vec![token];
            if is_done(&made) {
                break;
            }
        }
        Ok(made)
    }
}

/// Index of the largest logit, the first among equals.
pub(super) fn most_probable(logits: &[f32]) -> usize {
    let peak = largest(logits);
    logits.iter().position(|&logit| logit == peak).unwrap_or(0)
}
