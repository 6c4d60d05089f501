//! Questions with choices, cloze texts and exact answers, scored as lm-evaluation-harness scores them.
//!
//! A choice's score is the sum of log-probabilities of its tokens behind the context. Context and choice are
//! tokenised together and cut where the tokens of the context alone end; trailing white space of the context counts
//! to the choice; what is too long loses its beginning. `acc` takes the choice of the highest sum, `acc_norm` that of
//! the highest sum per UTF-8 byte of the choice (the first among equals). A cloze text is right when every token of
//! its end is the most probable one. An answer is what greedy decoding makes before the first stop string, compared
//! without outer white space.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::measure::score_logits;
use super::{
    ChoiceItem, ClozeItem, GenerationItem, Interval, JudgeError, Predictor, Progress, Resampler, SCHEMA,
    Window,
};
use crate::Tokenizer;

/// Tokens that run side by side, and bytes of logits that are scored at a time.
const GROUP_TOKENS: usize = 4096;
const SLAB_BYTES: usize = 16 << 20;

/// How questions are put.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskOptions {
    /// Tokens a model sees at most. Default 2,048; the caller puts the network's context here.
    pub max_length: usize,
    /// What stands between context and choice. Default one space.
    pub delimiter: String,
    /// The token an empty context is replaced by; where `None`, the tokenizer's beginning or else ending token.
    pub prefix_token: Option<u32>,
    /// Tokens of an answer at most. Default 64.
    pub max_tokens: usize,
    /// Texts that end an answer. Default a line feed.
    pub stop: Vec<String>,
    /// Tokens that end an answer. Default none.
    pub stop_tokens: Vec<u32>,
    /// Whether upper and lower case are one in answers. Default no.
    pub is_case_ignored: bool,
    /// Whether ASCII punctuation is left out of answers. Default no.
    pub is_punctuation_ignored: bool,
    /// Intervals.
    pub resampler: Resampler,
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self {
            max_length: 2048,
            delimiter: " ".to_owned(),
            prefix_token: None,
            max_tokens: 64,
            stop: vec!["\n".to_owned()],
            stop_tokens: Vec::new(),
            is_case_ignored: false,
            is_punctuation_ignored: false,
            resampler: Resampler::default(),
        }
    }
}

/// Result of a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Number of the report's form.
    pub schema: u32,
    /// Questions.
    pub items: u64,
    /// Mean of every measure by its name in the harness (`acc`, `acc_norm`, `perplexity`, `exact_match`).
    pub measures: BTreeMap<String, f64>,
    /// Bootstrap interval of every mean of outcomes.
    pub intervals: BTreeMap<String, Interval>,
    /// Outcome of every question, 1 or 0, for paired comparisons
    /// ([`paired_difference`](super::paired_difference)).
    #[serde(skip)]
    pub outcomes: BTreeMap<String, Vec<f64>>,
}

impl TaskReport {
    fn add(&mut self, name: &str, outcomes: Vec<f64>, resampler: &Resampler) {
        let mean =
            |drawn: &[usize]| drawn.iter().map(|&unit| outcomes[unit]).sum::<f64>() / drawn.len() as f64;
        let all: Vec<usize> = (0..outcomes.len()).collect();
        self.measures.insert(name.to_owned(), mean(&all));
        if let Some(interval) = resampler.interval(outcomes.len(), mean) {
            self.intervals.insert(name.to_owned(), interval);
        }
        self.outcomes.insert(name.to_owned(), outcomes);
    }
}

/// Puts questions with choices: `acc` and `acc_norm`. `progress` counts choices.
///
/// # Errors
/// A question without choices or with a right one beyond them, a choice without tokens, a model that cannot run.
pub fn multiple_choice(
    model: &dyn Predictor,
    tokenizer: &Tokenizer,
    items: &[ChoiceItem],
    options: &TaskOptions,
    progress: &Progress<'_>,
) -> Result<TaskReport, JudgeError> {
    let mut requests = Vec::new();
    for (index, item) in items.iter().enumerate() {
        if item.gold >= item.choices.len() {
            let message = format!("choice {} is the right one of {}", item.gold, item.choices.len());
            return Err(JudgeError::Item { line: index + 1, message });
        }
        for choice in &item.choices {
            let text = format!("{}{choice}", options.delimiter);
            requests.push(request(tokenizer, &item.context, &text, options, index)?);
        }
    }
    let likelihoods = log_likelihoods(model, &requests, progress)?;
    let (mut acc, mut acc_norm, mut rest) = (Vec::new(), Vec::new(), &likelihoods[..]);
    for item in items {
        let (own, others) = rest.split_at(item.choices.len());
        rest = others;
        let plain = own.iter().map(|found| found.sum);
        let normed =
            own.iter().zip(&item.choices).map(|(found, choice)| found.sum / choice.len().max(1) as f64);
        acc.push(outcome(best(plain) == item.gold));
        acc_norm.push(outcome(best(normed) == item.gold));
    }
    let mut report = TaskReport { schema: SCHEMA, items: items.len() as u64, ..TaskReport::default() };
    report.add("acc", acc, &options.resampler);
    report.add("acc_norm", acc_norm, &options.resampler);
    Ok(report)
}

/// Puts cloze texts: `acc` (the whole target is what greedy decoding would make) and `perplexity`
/// (`exp` of the mean negative log-likelihood of a *target*, as the harness has it for LAMBADA).
///
/// # Errors
/// A target without tokens, a model that cannot run.
pub fn cloze(
    model: &dyn Predictor,
    tokenizer: &Tokenizer,
    items: &[ClozeItem],
    options: &TaskOptions,
    progress: &Progress<'_>,
) -> Result<TaskReport, JudgeError> {
    let requests = items
        .iter()
        .enumerate()
        .map(|(index, item)| request(tokenizer, &item.context, &item.target, options, index))
        .collect::<Result<Vec<_>, _>>()?;
    let likelihoods = log_likelihoods(model, &requests, progress)?;
    let mut report = TaskReport { schema: SCHEMA, items: items.len() as u64, ..TaskReport::default() };
    report.add("acc", likelihoods.iter().map(|found| outcome(found.is_greedy)).collect(), &options.resampler);
    let sum: f64 = likelihoods.iter().map(|found| found.sum).sum();
    report.measures.insert("perplexity".to_owned(), (-sum / items.len().max(1) as f64).exp());
    Ok(report)
}

/// Lets the model answer greedily: `exact_match`. `progress` counts questions.
///
/// # Errors
/// A model or tokenizer that cannot run; a prompt that is empty where there is no token to begin with.
pub fn exact_match(
    model: &dyn Predictor,
    tokenizer: &Tokenizer,
    items: &[GenerationItem],
    options: &TaskOptions,
    progress: &Progress<'_>,
) -> Result<TaskReport, JudgeError> {
    let room = options.max_length.saturating_sub(options.max_tokens);
    if room == 0 {
        return Err(JudgeError::Option {
            option: "max_tokens",
            message: format!("{} leaves no room for a prompt in {}", options.max_tokens, options.max_length),
        });
    }
    let mut outcomes = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let mut prompt = tokenizer.encode(&item.prompt, false)?;
        if prompt.is_empty() {
            prompt.push(prefix_token(tokenizer, options)?);
        }
        let prompt = &prompt[prompt.len().saturating_sub(room)..];
        let mut failure = None;
        let mut answer = String::new();
        model.greedy(prompt, options.max_tokens, &mut |made| {
            if made.last().is_some_and(|token| options.stop_tokens.contains(token)) {
                return true;
            }
            match tokenizer.decode(made) {
                Ok(text) => answer = text,
                Err(error) => failure = Some(error),
            }
            failure.is_some() || options.stop.iter().any(|stop| answer.contains(stop.as_str()))
        })?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        let end = options.stop.iter().filter_map(|stop| answer.find(stop.as_str())).min();
        let found = normalized(&answer[..end.unwrap_or(answer.len())], options);
        outcomes.push(outcome(item.answers.iter().any(|right| normalized(right, options) == found)));
        progress(index as u64 + 1, items.len() as u64, "questions");
    }
    let mut report = TaskReport { schema: SCHEMA, items: items.len() as u64, ..TaskReport::default() };
    report.add("exact_match", outcomes, &options.resampler);
    Ok(report)
}

fn outcome(is_right: bool) -> f64 {
    f64::from(u8::from(is_right))
}

fn normalized(text: &str, options: &TaskOptions) -> String {
    let mut text = text.trim().to_owned();
    if options.is_case_ignored {
        text = text.to_lowercase();
    }
    if options.is_punctuation_ignored {
        text.retain(|character| !character.is_ascii_punctuation());
    }
    text
}

/// Index of the largest value, the first among equals.
fn best(values: impl Iterator<Item = f64>) -> usize {
    let (mut found, mut largest) = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > largest {
            (found, largest) = (index, value);
        }
    }
    found
}

fn prefix_token(tokenizer: &Tokenizer, options: &TaskOptions) -> Result<u32, JudgeError> {
    options.prefix_token.or(tokenizer.bos()).or(tokenizer.eos()).ok_or_else(|| JudgeError::Option {
        option: "prefix_token",
        message: "is needed for an empty context: the tokenizer has no beginning or ending token".to_owned(),
    })
}

/// The window that scores `continuation` behind `context`.
fn request(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
    options: &TaskOptions,
    index: usize,
) -> Result<Window, JudgeError> {
    let kept = context.trim_end();
    let moved = format!("{}{continuation}", &context[kept.len()..]);
    let (mut tokens, n_context) = if kept.is_empty() {
        let prefix = prefix_token(tokenizer, options)?;
        let behind = tokenizer.encode(&moved, false)?;
        (std::iter::once(prefix).chain(behind).collect::<Vec<u32>>(), 1)
    } else {
        (tokenizer.encode(&format!("{kept}{moved}"), false)?, tokenizer.encode(kept, false)?.len())
    };
    let n_scored = tokens.len().saturating_sub(n_context);
    if n_scored == 0 || n_scored > options.max_length {
        let message = format!(
            "`{continuation}` has {n_scored} tokens of its own, between 1 and {} can be scored",
            options.max_length
        );
        return Err(JudgeError::Item { line: index + 1, message });
    }
    let start = tokens.len().saturating_sub(options.max_length + 1);
    tokens.drain(..start);
    let end = tokens.len() - 1;
    Ok(Window { scored: end - n_scored.min(end)..end, tokens })
}

struct Likelihood {
    sum: f64,
    is_greedy: bool,
}

/// Scores windows whose last token is a target only: the model sees all but it.
fn log_likelihoods(
    model: &dyn Predictor,
    windows: &[Window],
    progress: &Progress<'_>,
) -> Result<Vec<Likelihood>, JudgeError> {
    let vocab_size = model.vocab_size();
    if let Some(token) =
        windows.iter().flat_map(|window| &window.tokens).find(|&&token| token as usize >= vocab_size)
    {
        let message = format!("a text holds token {token}, the model knows {vocab_size} tokens");
        return Err(JudgeError::Mismatch { message });
    }
    let step = (SLAB_BYTES / (4 * vocab_size.max(1))).max(1);
    let mut found = Vec::with_capacity(windows.len());
    while found.len() < windows.len() {
        let (first, mut end, mut held) = (found.len(), found.len(), 0);
        while end < windows.len() && (end == first || held + windows[end].tokens.len() <= GROUP_TOKENS) {
            held += windows[end].tokens.len();
            end += 1;
        }
        let seen: Vec<Window> = windows[first..end]
            .iter()
            .map(|window| Window {
                tokens: window.tokens[..window.scored.end].to_vec(),
                scored: window.scored.clone(),
            })
            .collect();
        let predictions = model.run(&seen)?;
        for (index, window) in windows[first..end].iter().enumerate() {
            let mut likelihood = Likelihood { sum: 0.0, is_greedy: true };
            for row in (0..window.scored.len()).step_by(step) {
                let rows = row..window.scored.len().min(row + step);
                let behind = window.scored.start + 1;
                let targets = &window.tokens[behind + rows.start..behind + rows.end];
                let scores = score_logits(&predictions.logits(index, rows)?, targets).map_err(|bad| {
                    JudgeError::NonFinite {
                        what: "the model's logits".to_owned(),
                        place: format!("request {}, row {}", first + index, row + bad),
                    }
                })?;
                likelihood.sum -= scores.iter().map(|score| score.negative_log_likelihood).sum::<f64>();
                likelihood.is_greedy &= scores.iter().all(|score| score.is_greedy);
            }
            found.push(likelihood);
        }
        progress(end as u64, windows.len() as u64, "requests");
    }
    Ok(found)
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
