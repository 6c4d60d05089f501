//! `lamella run`: continue a text.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use lamella::file::File;
use lamella::lm::generate::{GenerateOptions, SamplingOptions, StopReason, generate};
use lamella::lm::{LmError, Tokenizer};
use lamella::weights::evaluate::{EvaluateError, Opened, is_coded};
use serde::Serialize;

use super::{CliError, Common, Exit, print, progress};

/// Continue a prompt with a model, from a `.lam` file or a directory
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella run story.lam \"Once upon a time\"\n  lamella run story.lam \"Once\" --temperature 0.8 --top-p 0.95 --seed 7\n  lamella run story.lam \"Once\" --budget 100KB\n  lamella run https://example.org/story.lam \"Once\" --budget 40% --then 100%\n  lamella run MODEL \"text\" --max-tokens 0 --logits logits.npy"
)]
pub(crate) struct Run {
    /// `.lam` file, model directory, weight file, or `org/name`
    #[arg(value_name = "MODEL")]
    model: String,
    /// The text to continue
    #[arg(value_name = "PROMPT")]
    prompt: String,
    /// Tokens to add at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Divides logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Only the K most probable tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Only the most probable tokens that together hold P of the probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Only tokens at least P times as probable as the best
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Divides logits of tokens already there; 1 is off
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of all random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End the text before this string; repeatable
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Write the logits after the prompt as a NumPy array
    #[arg(long, value_name = "FILE.npy")]
    logits: Option<PathBuf>,
    /// Read only so much of a `.lam` file, local or at an `http(s)://` address: `300MB`, `40%`
    #[arg(long, value_name = "SIZE")]
    budget: Option<String>,
    /// With `--budget`: once the text is there, read on to this size, upgrade the model in memory, and continue the
    /// prompt again
    #[arg(long, value_name = "SIZE", requires = "budget")]
    then: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: u32,
    prompt: &'a str,
    prompt_tokens: usize,
    text: &'a str,
    tokens: &'a [u32],
    reason: &'a StopReason,
    /// Of the whole run after loading.
    seconds: f64,
    /// Reading the prompt, up to the first token.
    prompt_tokens_per_second: f64,
    /// After the first token; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    /// Bytes of the weights in memory.
    resident_bytes: usize,
}

impl Run {
    /// As much of the file as a budget holds.
    fn part(&self, budget: &str) -> Result<File, CliError> {
        let budget: lamella::rate::Size = budget.parse()?;
        if self.is_remote() { remote(&self.model, budget) } else { local(&self.model, budget) }
    }

    fn is_remote(&self) -> bool {
        self.model.starts_with("http://") || self.model.starts_with("https://")
    }

    /// The model, or as much of it as the budget holds; and what it is to be read on to.
    fn open(&self) -> Result<(Opened, Option<File>), CliError> {
        let catalogue = lamella::catalogue();
        let Some(budget) = &self.budget else {
            if self.is_remote() {
                return Err(CliError::usage(format!("`{}` is an address", self.model))
                    .hint("`--budget 100%` reads the whole file, less reads a part of it"));
            }
            return Ok((Opened::open(&self.model, &catalogue)?, None));
        };
        let started = std::time::Instant::now();
        let file = self.part(budget)?;
        let read = described(&file);
        let longer = self.then.as_deref().map(|size| self.part(size)).transpose()?;
        if longer.as_ref().is_some_and(|longer| longer.length_bytes() < file.length_bytes()) {
            return Err(CliError::usage(format!(
                "`--then {}` is less than `--budget {budget}`",
                self.then.as_deref().unwrap_or_default()
            )));
        }
        let opened = match longer {
            Some(_) => Opened::growing(file, &catalogue)?.resident()?,
            None => Opened::from_file(file, &catalogue)?.resident()?,
        };
        print::note(&format!("{read}; usable after {:.2} s", started.elapsed().as_secs_f64()));
        Ok((opened, longer))
    }

    pub(crate) fn main(self) -> Result<Exit, CliError> {
        self.common.start()?;
        let (mut opened, longer) = self.open()?;
        self.answer(&opened)?;
        if let Some(longer) = longer {
            let started = std::time::Instant::now();
            let read = described(&longer);
            opened = opened.grown(longer, &lamella::catalogue())?.resident()?;
            print::note(&format!("{read}; upgraded after {:.2} s", started.elapsed().as_secs_f64()));
            self.answer(&opened)?;
        }
        if let Some(path) = &self.logits {
            self.write_logits(&opened, path)?;
        }
        Ok(Exit::Done)
    }

    fn prompt<'o>(&self, opened: &'o Opened) -> Result<(&'o Tokenizer, Vec<u32>), CliError> {
        let no_tokenizer = || EvaluateError::NoTokenizer { name: opened.name.clone() };
        let tokenizer = opened.model.tokenizer.as_ref().ok_or_else(no_tokenizer)?;
        Ok((tokenizer, tokenizer.encode(&self.prompt, true)?))
    }

    fn write_logits(&self, opened: &Opened, path: &std::path::Path) -> Result<(), CliError> {
        let (_, prompt) = self.prompt(opened)?;
        if prompt.is_empty() {
            return Err(LmError::EmptyPrompt.into());
        }
        let network = &opened.model.network;
        let hidden = network.forward(std::slice::from_ref(&prompt))?;
        let last = prompt.len().saturating_sub(1)..prompt.len();
        write_npy(path, &network.logits_range(&hidden, last, None)?)
    }

    /// Continues the prompt.
    fn answer(&self, opened: &Opened) -> Result<(), CliError> {
        let (tokenizer, prompt) = self.prompt(opened)?;
        if self.max_tokens == 0 {
            return Ok(());
        }
        let model = &opened.model;
        let options = GenerateOptions {
            sampling: SamplingOptions {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
                ..SamplingOptions::default()
            },
            max_tokens: self.max_tokens,
            stop_tokens: model.stop_tokens.clone(),
            stop_strings: self.stop.clone(),
        };
        let is_streaming = !self.common.json;
        if is_streaming {
            print::piece(&self.prompt);
        }
        let started = std::time::Instant::now();
        let mut first = None;
        let generated = generate(&model.network, Some(tokenizer), &prompt, &options, &mut |_, piece, _| {
            first.get_or_insert_with(|| started.elapsed().as_secs_f64());
            if is_streaming {
                print::piece(piece);
            }
            if progress::is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let first = first.unwrap_or(seconds);
        let after = generated.tokens.len().saturating_sub(1);
        let tokens_per_second = (after > 0).then(|| after as f64 / (seconds - first).max(1e-9));
        let prompt_tokens_per_second = prompt.len() as f64 / first.max(1e-9);
        let resident_bytes = model.network.resident_bytes();
        if is_streaming {
            print::piece("\n");
            let speed = tokens_per_second.map_or(String::new(), |speed| format!(", {speed:.1} tokens/s"));
            print::note(&format!(
                "{} tokens{speed}; prompt {} tokens, {prompt_tokens_per_second:.1} tokens/s; {} of weights in memory",
                generated.tokens.len(),
                prompt.len(),
                print::bytes(resident_bytes as u64),
            ));
        } else {
            print::json(&Report {
                schema: 1,
                prompt: &self.prompt,
                prompt_tokens: prompt.len(),
                text: &generated.text,
                tokens: &generated.tokens,
                reason: &generated.reason,
                seconds,
                prompt_tokens_per_second,
                tokens_per_second,
                resident_bytes,
            });
        }
        if progress::is_interrupted() {
            return Err(CliError::usage("interrupted"));
        }
        Ok(())
    }
}

/// How much of a file is there.
fn described(file: &File) -> String {
    format!(
        "{} of {}, {} of {} layers",
        print::bytes(file.length_bytes()),
        print::bytes(file.layout().file_bytes),
        file.whole_layers(),
        file.manifest().layers.len(),
    )
}

fn local(path: &str, budget: lamella::rate::Size) -> Result<File, CliError> {
    if !is_coded(std::path::Path::new(path)) {
        return Err(CliError::usage(format!(
            "`{path}` is no `.lam` file, and only those can be read in part"
        ))
        .hint("leave `--budget` out, or compress the model with `--progressive` first"));
    }
    let whole = std::fs::metadata(path)
        .map_err(|error| CliError::usage(format!("`{path}` cannot be read: {error}")))?
        .len();
    Ok(File::open_prefix(path, budget.bytes(whole))?)
}

#[cfg(feature = "remote")]
fn remote(url: &str, budget: lamella::rate::Size) -> Result<File, CliError> {
    use lamella::file::ReadAt as _;
    let failed = |error| CliError::usage(format!("`{url}` cannot be read: {error}"));
    let whole = lamella::file::RemoteFile::open(url).map_err(failed)?.length_bytes();
    Ok(File::open_url_prefix(url, budget.bytes(whole))?)
}

#[cfg(not(feature = "remote"))]
fn remote(url: &str, _budget: lamella::rate::Size) -> Result<File, CliError> {
    Err(CliError::usage(format!("`{url}`: this program was built without reading from web servers"))
        .hint("build it with `--features remote`"))
}

/// Writes one row as a NumPy file: version 1.0, little-endian f32, shape `(n,)`.
fn write_npy(path: &std::path::Path, values: &[f32]) -> Result<(), CliError> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", values.len());
    // The header, with its 10 bytes of magic, version and length before it, ends on a 64-byte boundary in a line feed.
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    let failed = |error| CliError::usage(format!("`{}`: {error}", path.display()));
    let part = path.with_added_extension("part");
    std::fs::write(&part, bytes).map_err(failed)?;
    std::fs::rename(&part, path).map_err(failed)
}
