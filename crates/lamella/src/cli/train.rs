//! `lamella train`: small language models from a text.
//!
//! What does it answer? "I need a model of this shape that I may use for anything": to try a recipe on, for a claim,
//! for a test. It trains on the CPU; thousands of tokens a second at a million weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use lamella::codec::{Dtype, TensorSource};
use lamella::lm::{Model, Network, Tokenizer};
use lamella::nn::train::{Run, Schedule, Shape, Texts, TrainError, TrainReport, write_model};
use lamella::nn::{Named, Pooling, Trained, read};
use serde::Serialize;
use serde_json::{Value, json};

use super::progress::Bar;
use super::{CliError, Common, Exit, print};

/// Train a model
#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    Lm(Box<TrainLm>),
}

/// Train a small language model on a text
///
/// A Llama or, with `--experts`, a Mixtral with a byte-level BPE vocabulary of its own; or, with `--from`, any known
/// decoder trained further. Writes a Hugging Face directory that `eval`, `run` and `compress` take. The last twentieth
/// of every file is not learned but judged by. The same arguments give the same bytes at any number of threads. An
/// interrupted run leaves DIR.part; the same command with `--resume` goes on and ends with the same bytes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella train lm text.txt -o model --steps 300\n  lamella train lm texts/ -o mixture --experts 8 --top-k 2 --feed-forward 96\n  lamella train lm text.txt -o tuned --from model --lr 0.0003"
)]
struct TrainLm {
    /// A UTF-8 text file, or a directory of them
    #[arg(value_name = "TEXT")]
    text: PathBuf,
    /// Directory to write
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Train this model further instead of a new one
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["dim", "layers", "heads", "kv_heads", "feed_forward", "vocabulary", "experts", "top_k"])]
    from: Option<String>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 128)]
    dim: usize,
    /// Blocks
    #[arg(long, value_name = "N", default_value_t = 4)]
    layers: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 4)]
    heads: usize,
    /// Key and value heads [default: half the query heads]
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Width of a feed-forward network, of each expert [default: 3 times the width]
    #[arg(long, value_name = "N")]
    feed_forward: Option<usize>,
    /// Tokens of the vocabulary; 257 for bytes
    #[arg(long, value_name = "N", default_value_t = 1024)]
    vocabulary: usize,
    /// Experts of each block (0: one network for every token)
    #[arg(long, value_name = "N", default_value_t = 0)]
    experts: usize,
    /// Experts that each token goes through
    #[arg(long, value_name = "N", default_value_t = 2)]
    top_k: usize,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 128)]
    context: usize,
    /// Steps
    #[arg(long, value_name = "N", default_value_t = 1000)]
    steps: usize,
    /// Windows of a step
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    /// Largest learning rate
    #[arg(long, value_name = "X", default_value_t = 0.003)]
    lr: f32,
    /// Steps in which the learning rate rises; it falls by half a cosine afterwards
    #[arg(long, value_name = "N", default_value_t = 50)]
    warmup: usize,
    /// Weight decay of matrices
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    decay: f32,
    /// Weight of the experts' balance in the loss
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    balance: f32,
    /// Chooses first weights and the order of the text
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Recompute blocks in reverse: a third slower, memory of one block's activations
    #[arg(long)]
    checkpointing: bool,
    /// Type of the stored weights
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = ["f32", "bf16", "f16"])]
    dtype: String,
    /// Go on with what an interrupted run left
    #[arg(long)]
    resume: bool,
    /// Replace the output, and what an interrupted run left
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    #[command(flatten)]
    common: Common,
}

/// What is trained, and what is written beside its weights.
struct Start {
    network: Network,
    source: Arc<dyn TensorSource>,
    tokenizer: Tokenizer,
    config: Value,
    side_files: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    output: PathBuf,
    bytes: u64,
    #[serde(flatten)]
    trained: TrainReport,
}

impl Train {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        match self.kind {
            Kind::Lm(train) => train.main(),
        }
    }
}

impl TrainLm {
    fn main(self) -> Result<Exit, CliError> {
        let bar = self.common.start()?;
        let part = PathBuf::from(format!("{}.part", self.output.display().to_string().trim_end_matches('/')));
        let state = part.join("state.safetensors");
        self.check_output(&part, &state)?;
        let texts = Texts::read(&self.text)?;
        let start = self.begin(&texts)?;
        let (tokens, held_out) = texts.tokens(&start.tokenizer)?;
        let mut named =
            read(&start.network, &*start.source, self.context, Pooling::Mean, Trained::Everything)?;
        let is_matrix = |name: &str| start.source.spec(name).is_some_and(|spec| spec.shape.len() > 1);
        let decayed =
            named.parameters.iter().map(|one| if is_matrix(&one.name) { 1.0 } else { 0.0 }).collect();
        let schedule = self.schedule();
        fs_err::create_dir_all(&part)?;
        let run = Run {
            schedule: &schedule,
            tokens: &tokens,
            held_out: &held_out,
            decayed,
            state: state.clone(),
            resumes: self.resume,
        };
        let trained = run.train(&mut named, &bar).map_err(|error| {
            // A run that left no state leaves no directory either; one with a state in it stays.
            let _ = std::fs::remove_dir(&part);
            explained(error, &state)
        })?;
        let bytes = self.write(&part, &start, &named, &texts)?;
        self.report(&bar, Report { schema: 1, output: self.output.clone(), bytes, trained });
        Ok(Exit::Done)
    }

    fn check_output(&self, part: &Path, state: &Path) -> Result<(), CliError> {
        if self.output.exists() && !self.overwrite {
            return Err(CliError::usage(format!("`{}` exists", self.output.display()))
                .hint("`--overwrite` replaces it once the new model is whole"));
        }
        if self.resume && !state.exists() {
            return Err(CliError::usage(format!("`{}` holds no interrupted run", part.display()))
                .hint("leave out `--resume` to begin one"));
        }
        if state.exists() && !self.resume && !self.overwrite {
            return Err(CliError::usage(format!("`{}` holds an interrupted run", part.display()))
                .hint("`--resume` goes on with it, `--overwrite` begins anew"));
        }
        for (flag, is_wrong, allowed) in [
            ("--steps", self.steps == 0, "1 or more"),
            ("--batch", self.batch == 0, "1 or more"),
            ("--context", self.context < 2, "2 or more"),
            ("--lr", !(self.lr > 0.0 && self.lr < 1.0), "more than 0 and less than 1"),
            ("--decay", !(0.0..1.0).contains(&self.decay), "0 or more and less than 1"),
            ("--balance", !(0.0..=1.0).contains(&self.balance), "0 to 1"),
        ] {
            if is_wrong {
                return Err(CliError::usage(format!("`{flag}` takes {allowed}")));
            }
        }
        Ok(())
    }

    fn schedule(&self) -> Schedule {
        Schedule {
            steps: self.steps,
            batch: self.batch,
            context: self.context,
            rate: self.lr,
            warmup: self.warmup,
            decay: self.decay,
            balance: self.balance,
            seed: self.seed,
            is_checkpointed: self.checkpointing,
            look_every: (self.steps / 10).clamp(1, 500),
        }
    }

    fn begin(&self, texts: &Texts) -> Result<Start, CliError> {
        if let Some(model) = &self.from {
            return self.further(model);
        }
        let learned: Vec<&str> = texts.learned.iter().map(String::as_str).collect();
        let mut shape = Shape {
            hidden_size: self.dim,
            n_blocks: self.layers,
            n_heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or((self.heads / 2).max(1)),
            intermediate_size: self.feed_forward.unwrap_or(3 * self.dim),
            vocab_size: self.vocabulary,
            n_experts: self.experts,
            experts_per_token: self.top_k,
            context: self.context,
        };
        shape.check()?;
        let tokenizer_json = Tokenizer::train(&learned, self.vocabulary)?;
        let tokenizer = Tokenizer::from_bytes(tokenizer_json.as_bytes())?;
        // A short text may not hold enough pairs for the vocabulary that was asked for.
        shape.vocab_size = tokenizer.vocab_size();
        let config = shape.config();
        let source: Arc<dyn TensorSource> = Arc::new(shape.weights(self.seed)?);
        let described = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": false,
            "model_max_length": self.context,
        });
        Ok(Start {
            network: Network::open(&config, Arc::clone(&source))?,
            source,
            tokenizer,
            config,
            side_files: vec![
                ("tokenizer.json".to_owned(), tokenizer_json.into_bytes()),
                ("tokenizer_config.json".to_owned(), format!("{described:#}\n").into_bytes()),
            ],
        })
    }

    fn further(&self, model: &str) -> Result<Start, CliError> {
        let directory = Arc::new(lamella::io::open_model(model)?);
        let source: Arc<dyn TensorSource> = directory.clone();
        let side_files = directory.side_files()?;
        let opened = Model::open(Arc::clone(&source), &side_files.iter().cloned().collect())?;
        let Model { network, tokenizer, config, .. } = opened;
        let tokenizer =
            tokenizer.ok_or_else(|| CliError::usage(format!("`{model}` has no `tokenizer.json`")))?;
        if self.context > network.context_length() {
            let most = network.context_length();
            return Err(CliError::usage(format!(
                "`--context {}`: `{model}` reads up to {most} tokens",
                self.context
            )));
        }
        let is_text = |name: &str| matches!(name, "calibration.txt" | "evaluation.txt");
        let side_files = side_files.into_iter().filter(|(name, _)| !is_text(name)).collect();
        Ok(Start { network, source, tokenizer, config, side_files })
    }

    /// Writes the model inside the part, then gives it its name; returns its bytes.
    fn write(&self, part: &Path, start: &Start, named: &Named, texts: &Texts) -> Result<u64, CliError> {
        let whole = part.join("model");
        if whole.exists() {
            fs_err::remove_dir_all(&whole)?;
        }
        fs_err::create_dir_all(&whole)?;
        let dtype = match self.dtype.as_str() {
            "bf16" => Dtype::BF16,
            "f16" => Dtype::F16,
            _ => Dtype::F32,
        };
        write_model(&whole, &*start.source, named, dtype, (&start.config, &start.side_files), texts)?;
        let bytes = fs_err::metadata(whole.join("model.safetensors"))?.len();
        if self.output.exists() {
            fs_err::remove_dir_all(&self.output)?;
        }
        fs_err::rename(&whole, &self.output)?;
        fs_err::remove_dir_all(part)?;
        Ok(bytes)
    }

    fn report(&self, bar: &Bar, report: Report) {
        bar.finish();
        if self.common.json {
            return print::json(&report);
        }
        let trained = &report.trained;
        let perplexity = trained
            .held_out_perplexity
            .map_or("not measured: the held-out text is shorter than a window".to_owned(), |found| {
                format!("{found:.2} on {} held-out tokens", trained.held_out_tokens)
            });
        print::data(&format!(
            "{}  {} weights in {}\n{} steps over {} tokens of text: loss {:.4}, perplexity {perplexity}\n{:.0} tokens/s, {:.1} s",
            report.output.display(),
            trained.parameters,
            print::bytes(report.bytes),
            trained.steps,
            trained.text_tokens,
            trained.loss,
            trained.tokens_per_second,
            trained.seconds,
        ));
        for (block, shares) in trained.expert_usage.iter().enumerate() {
            let shares: Vec<String> = shares.iter().map(|share| format!("{:.1}", 100.0 * share)).collect();
            print::data(&format!("block {block}: % of choices by expert: {}", shares.join(" ")));
        }
    }
}

/// Adds what to do to errors of a run.
fn explained(error: TrainError, state: &Path) -> CliError {
    match error {
        TrainError::Diverged { .. } => CliError::from(error).hint("a smaller `--lr`, or a longer `--warmup`"),
        TrainError::OtherRun { .. } => CliError::from(error)
            .hint("give the arguments the run was begun with, or `--overwrite` to begin anew"),
        TrainError::Interrupted(_) if state.exists() => {
            CliError::from(error).hint(format!("`--resume` goes on from `{}`", state.display()))
        }
        error => CliError::from(error),
    }
}
