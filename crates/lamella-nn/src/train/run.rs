//! The steps of a run.

use std::path::PathBuf;
use std::time::Instant;

use lamella_codec::Progress;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Random, Schedule, TrainError, state};
use crate::{AdamW, GradientOptions, Named, cosine_after};

/// Tokens that one thread takes into one gradient.
const GROUP_TOKENS: usize = 1024;
/// Held-out tokens that are looked at during a run, and at its end.
const LOOK_TOKENS: usize = 4096;
const LAST_LOOK_TOKENS: usize = 32_768;
/// Gradients are shortened to this length.
const LONGEST_GRADIENT: f64 = 1.0;
/// Seconds between states written in case the run is killed.
const SAVE_EVERY_SECONDS: u64 = 120;

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainReport {
    /// Steps taken in all.
    pub steps: usize,
    /// Numbers that were trained.
    pub parameters: usize,
    /// Tokens of the text that was learned from.
    pub text_tokens: usize,
    /// Tokens held out.
    pub held_out_tokens: usize,
    /// Mean loss over the last tenth of the steps of this process, nats per token.
    pub loss: f64,
    /// On the held-out text, in windows of the training's context that do not overlap.
    pub held_out_perplexity: Option<f64>,
    /// `(step, perplexity)` as looked at during the run.
    pub looks: Vec<(usize, f64)>,
    /// Per block the share of choices that fell on each expert, on the held-out text; empty without experts.
    pub expert_usage: Vec<Vec<f64>>,
    /// Tokens learned per second of this process.
    pub tokens_per_second: f64,
    /// Seconds of this process.
    pub seconds: f64,
}

/// A run: what it learns, how, and where it leaves its state.
#[derive(Debug)]
pub struct Run<'a> {
    /// How.
    pub schedule: &'a Schedule,
    /// Tokens to learn.
    pub tokens: &'a [u32],
    /// Tokens to judge by.
    pub held_out: &'a [u32],
    /// Per parameter: its share of [`Schedule::decay`] (matrices 1, vectors 0).
    pub decayed: Vec<f32>,
    /// Where the state is kept until the run is over.
    pub state: PathBuf,
    /// Whether to go on from that state.
    pub resumes: bool,
}

impl Run<'_> {
    /// Trains a network. Interrupted, it leaves its state and returns [`TrainError::Interrupted`].
    ///
    /// # Errors
    /// Too little text, a state of another run, a loss that is no number, an interruption.
    pub fn train(&self, named: &mut Named, progress: &dyn Progress) -> Result<TrainReport, TrainError> {
        let schedule = self.schedule;
        if self.tokens.len() <= schedule.context {
            return Err(TrainError::TooLittleText { found: self.tokens.len(), needed: schedule.context + 1 });
        }
        let decay = self.decayed.iter().map(|share| share * schedule.decay).collect();
        let mut optimizer = AdamW::training(named.network.parameters(), decay);
        let text = self.text_hash();
        let first = match self.resumes {
            true => state::load(&self.state, (schedule, &text), named, &mut optimizer)?,
            false => 0,
        };
        let save = |step: usize, named: &Named, optimizer: &AdamW| {
            state::save(&self.state, (schedule, &text), step, named, optimizer)
        };
        let (started, mut saved) = (Instant::now(), Instant::now());
        let (mut smooth, mut last, mut looks) = (None, Vec::new(), Vec::<(usize, f64)>::new());
        for step in first..schedule.steps {
            if progress.is_interrupted() || saved.elapsed().as_secs() >= SAVE_EVERY_SECONDS {
                save(step, named, &optimizer)?;
                saved = Instant::now();
                progress.check()?;
            }
            let loss = self.step(step, named, &mut optimizer)?;
            let mean = smooth.map_or(loss, |mean: f64| 0.95 * mean + 0.05 * loss);
            smooth = Some(mean);
            if step >= schedule.steps - schedule.steps.div_ceil(10) {
                last.push(loss);
            }
            if (step + 1) % schedule.look_every.max(1) == 0 {
                looks.extend(self.perplexity(named, LOOK_TOKENS)?.map(|found| (step + 1, found)));
            }
            let rate = self.learned(step + 1 - first) / started.elapsed().as_secs_f64().max(1e-9);
            let judged = looks.last().map_or(String::new(), |(_, found)| format!(", held-out {found:.2}"));
            let now = format!("loss {mean:.4}{judged}, {rate:.0} tokens/s");
            progress.advance("train", step as u64 + 1, schedule.steps as u64, &now);
        }
        let seconds = started.elapsed().as_secs_f64();
        let windows = self.windows(LAST_LOOK_TOKENS);
        Ok(TrainReport {
            steps: schedule.steps,
            parameters: named.network.parameters().iter().map(Vec::len).sum(),
            text_tokens: self.tokens.len(),
            held_out_tokens: self.held_out.len(),
            loss: last.iter().sum::<f64>() / last.len().max(1) as f64,
            held_out_perplexity: self.perplexity(named, LAST_LOOK_TOKENS)?,
            looks,
            expert_usage: named.network.expert_usage(&windows)?,
            tokens_per_second: self.learned(schedule.steps - first) / seconds.max(1e-9),
            seconds,
        })
    }

    fn learned(&self, steps: usize) -> f64 {
        (steps * self.schedule.batch * self.schedule.context) as f64
    }

    fn step(&self, step: usize, named: &mut Named, optimizer: &mut AdamW) -> Result<f64, TrainError> {
        let schedule = self.schedule;
        let room = (self.tokens.len() - schedule.context) as u64;
        let windows: Vec<&[u32]> = (0..schedule.batch)
            .map(|index| {
                let mut random = Random::of(&[schedule.seed, 2, step as u64, index as u64]);
                let first = (random.next() % room) as usize;
                &self.tokens[first..first + schedule.context]
            })
            .collect();
        let options = GradientOptions {
            is_checkpointed: schedule.is_checkpointed,
            balance: schedule.balance,
            group: (GROUP_TOKENS / schedule.context).max(1),
        };
        let mut found = named.network.next_token_gradient(&windows, options)?;
        let squares: f64 = found
            .gradient
            .iter()
            .map(|values| values.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>())
            .sum();
        let length = squares.sqrt();
        if !found.loss.is_finite() || !length.is_finite() {
            return Err(TrainError::Diverged { step });
        }
        if length > LONGEST_GRADIENT {
            let shrink = (LONGEST_GRADIENT / length) as f32;
            found.gradient.iter_mut().flatten().for_each(|g| *g *= shrink);
        }
        let rate = schedule.rate * cosine_after(step, schedule.steps, schedule.warmup);
        let rates = vec![rate; found.gradient.len()];
        optimizer.step(named.network.parameters_mut(), &found.gradient, &rates);
        Ok(found.loss)
    }

    /// Held-out windows of at most so many tokens in all.
    fn windows(&self, tokens: usize) -> Vec<&[u32]> {
        let context = self.schedule.context;
        self.held_out.chunks_exact(context).take((tokens / context).max(1)).collect()
    }

    fn perplexity(&self, named: &Named, tokens: usize) -> Result<Option<f64>, TrainError> {
        let windows = self.windows(tokens);
        if windows.is_empty() {
            return Ok(None);
        }
        Ok(Some(named.network.next_token_loss(&windows)?.exp()))
    }

    /// What names the text and its tokens.
    fn text_hash(&self) -> String {
        let mut hash = Sha256::new();
        for tokens in [self.tokens, self.held_out] {
            hash.update((tokens.len() as u64).to_le_bytes());
            tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
