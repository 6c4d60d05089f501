//! Continuing texts: sampling, stop strings, streaming, several texts side by side.
//!
//! [`generate`] continues one prompt and hands out text while it comes; [`generate_batch`] continues several, one
//! token of each per step, so that every weight is read once for all of them.
//!
//! | option | effect | off at |
//! |---|---|---|
//! | `temperature` | divides logits; 0 takes the most probable token | 1 |
//! | `top_k` | only the `k` most probable tokens | 0 |
//! | `top_p` | only the most probable tokens that hold `p` of the probability together | 1 |
//! | `min_p` | only tokens at least `p` times as probable as the best | 0 |
//! | `repetition_penalty` | divides positive logits of tokens already there, multiplies negative ones | 1 |
//!
//! They apply in the order penalty, temperature, `top_k`, then `top_p` and `min_p` on what is left. The same seed
//! gives the same text at any thread count.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::sampler::{Sampler, check};
use crate::stream::TextStream;
use crate::{Cache, LmError, Network, Positions, Tokenizer};

/// Prompt tokens that go through the network at a time.
const PROMPT_TOKENS: usize = 1024;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// Divides logits; 0 (the default) takes the most probable token.
    pub temperature: f32,
    /// Tokens considered, most probable first; 0 (the default) considers all.
    pub top_k: usize,
    /// Probability the considered tokens hold together; default 1.
    pub top_p: f32,
    /// Probability a considered token has at least, relative to the best; default 0.
    pub min_p: f32,
    /// Divides positive logits of tokens that the text already holds and multiplies negative ones; default 1.
    pub repetition_penalty: f32,
    /// Tokens back to which the penalty looks; 0 (the default) is the whole text.
    pub repetition_window: usize,
    /// Seed of all random choices; default 0.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 0,
            seed: 0,
        }
    }
}

/// How a text is continued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Tokens to add at most; default 256.
    pub max_tokens: usize,
    /// Tokens that end the text (they are not part of it).
    pub stop_tokens: Vec<u32>,
    /// Strings that end the text (they are not part of it). They need a tokenizer.
    pub stop_strings: Vec<String>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingOptions::default(),
            max_tokens: 256,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
        }
    }
}

/// Why a text ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// As many tokens as asked for.
    MaxTokens,
    /// The network's context is full.
    ContextFull,
    /// A stop token came.
    StopToken(u32),
    /// A stop string came.
    StopString(String),
    /// The caller's callback said so.
    Interrupted,
}

/// A continued text.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Generated {
    /// Tokens added to the prompt, the stop token left out.
    pub tokens: Vec<u32>,
    /// Their text; empty without a tokenizer.
    pub text: String,
    /// Why it ended.
    pub reason: StopReason,
}

/// Receives text while it comes: number of the sequence, piece of text, token. `Break` ends that sequence.
pub type OnText<'a> = dyn FnMut(usize, &str, u32) -> ControlFlow<()> + 'a;

/// One text on its way.
struct Active<'a> {
    index: usize,
    /// Prompt and what was added.
    tokens: Vec<u32>,
    sampler: Sampler<'a>,
    stream: Option<TextStream<'a>>,
}

/// Continues one prompt.
///
/// ```no_run
/// # fn example(model: &lamella_lm::Model) -> Result<(), lamella_lm::LmError> {
/// use lamella_lm::generate::{GenerateOptions, generate};
/// use std::ops::ControlFlow;
/// let tokenizer = model.tokenizer.as_ref().unwrap();
/// let prompt = tokenizer.encode("Once upon a time", true)?;
/// let options = GenerateOptions { stop_tokens: model.stop_tokens.clone(), ..Default::default() };
/// let story = generate(&model.network, Some(tokenizer), &prompt, &options, &mut |_, piece, _| {
///     print!("{piece}");
///     ControlFlow::Continue(())
/// })?;
/// println!("\n{} tokens, {:?}", story.tokens.len(), story.reason);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// An empty prompt, options out of range, and all of [`Network::extend`].
pub fn generate(
    network: &Network,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    options: &GenerateOptions,
    on_text: &mut OnText<'_>,
) -> Result<Generated, LmError> {
    let mut all = generate_batch(network, tokenizer, &[prompt.to_vec()], options, on_text)?;
    all.pop().ok_or(LmError::EmptyPrompt)
}

/// Continues several prompts side by side; results are in the prompts' order.
///
/// # Errors
/// As [`generate`].
pub fn generate_batch(
    network: &Network,
    tokenizer: Option<&Tokenizer>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_text: &mut OnText<'_>,
) -> Result<Vec<Generated>, LmError> {
    check(&options.sampling)?;
    if prompts.iter().any(Vec::is_empty) {
        return Err(LmError::EmptyPrompt);
    }
    let mut done: Vec<Option<Generated>> = vec![None; prompts.len()];
    let (mut active, mut caches) = (Vec::new(), Vec::new());
    let mut logits = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let mut cache = network.cache();
        logits.extend(read_prompt(network, prompt, &mut cache)?);
        caches.push(cache);
        active.push(Active {
            index,
            tokens: prompt.clone(),
            sampler: Sampler::new(&options.sampling, index as u64),
            stream: tokenizer.map(|tokenizer| TextStream::new(tokenizer, &options.stop_strings, prompt)),
        });
    }
    while !active.is_empty() {
        let mut next = Vec::new();
        let mut still = Vec::new();
        let mut kept = Vec::new();
        let rows = logits.chunks_exact_mut(network.vocab_size());
        for ((mut text, cache), logits) in active.into_iter().zip(caches).zip(rows) {
            let start = prompts[text.index].len();
            match step(&mut text, logits, start, &cache, network, options, on_text)? {
                Some(reason) => {
                    let mut answer = String::new();
                    if let Some(stream) = &mut text.stream {
                        if !matches!(reason, StopReason::StopString(_)) {
                            let rest = stream.finish()?;
                            if let (false, Some(&last)) = (rest.is_empty(), text.tokens.last()) {
                                let _ = on_text(text.index, &rest, last);
                            }
                        }
                        answer = stream.text().to_owned();
                    }
                    let tokens = text.tokens.split_off(start);
                    done[text.index] = Some(Generated { tokens, text: answer, reason });
                }
                None => {
                    next.push(text.tokens[text.tokens.len() - 1..].to_vec());
                    still.push(text);
                    kept.push(cache);
                }
            }
        }
        (active, caches) = (still, kept);
        if !active.is_empty() {
            let hidden = network.extend(&next, &mut caches)?;
            logits = network.logits(&hidden, None)?;
        }
    }
    Ok(done.into_iter().flatten().collect())
}

/// Chooses one token; `Some` ends the text.
fn step(
    text: &mut Active<'_>,
    logits: &mut [f32],
    start: usize,
    cache: &Cache,
    network: &Network,
    options: &GenerateOptions,
    on_text: &mut OnText<'_>,
) -> Result<Option<StopReason>, LmError> {
    if text.tokens.len() - start >= options.max_tokens {
        return Ok(Some(StopReason::MaxTokens));
    }
    let token = text.sampler.choose(logits, &text.tokens);
    if options.stop_tokens.contains(&token) {
        return Ok(Some(StopReason::StopToken(token)));
    }
    text.tokens.push(token);
    let (piece, stop) = match &mut text.stream {
        Some(stream) => stream.push(token)?,
        None => (String::new(), None),
    };
    let answer = on_text(text.index, &piece, token);
    if let Some(stop) = stop {
        return Ok(Some(StopReason::StopString(stop)));
    }
    if answer.is_break() {
        return Ok(Some(StopReason::Interrupted));
    }
    if text.tokens.len() - start >= options.max_tokens {
        return Ok(Some(StopReason::MaxTokens));
    }
    let is_bounded = network.config().positions != Positions::Order;
    if is_bounded && cache.n_tokens() >= network.context_length() {
        return Ok(Some(StopReason::ContextFull));
    }
    Ok(None)
}

/// Puts a prompt into a cache; logits after its last token.
fn read_prompt(network: &Network, prompt: &[u32], cache: &mut Cache) -> Result<Vec<f32>, LmError> {
    let mut logits = Vec::new();
    let parts = prompt.chunks(PROMPT_TOKENS);
    let last = parts.len().saturating_sub(1);
    for (index, part) in parts.enumerate() {
        let hidden = network.extend(&[part.to_vec()], std::slice::from_mut(cache))?;
        if index == last {
            logits = network.logits_range(&hidden, part.len() - 1..part.len(), None)?;
        }
    }
    Ok(logits)
}
