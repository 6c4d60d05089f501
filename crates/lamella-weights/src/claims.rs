//! What the claims of this wing are measured with, so that all of them measure alike.
//!
//! # Protocol
//! * Every measurement writes a whole `.lam` file with the pipeline that users run, and reads it back. **Bits** are the
//!   bytes of the layers of the blocks' linears in that file; **losses** are those of the arrays that came back.
//! * Embeddings, heads and norms stay exact in every file, so that files differ by their linears only.
//! * The **baseline** is the catalogue's own `gptq` at the best of [`GPTQ_SETTINGS`], each in its smallest form whose file
//!   is no smaller than the system's.
//! * A **seed** is a part of the calibration text. Statistics are taken of that part alone, and verdicts are taken on the
//!   worst seed. No seed sees the text that loss is measured on.
//! * The **error** of a linear is `trace(E H E^T) / trace(W H W^T)`, `H` being the second moment of its inputs in the
//!   original model under the seed's text. Every linear counts.
//!
//! Quick claims run on the project's own small model with one seed, so that each takes a few seconds; full ones run on
//! `lm/wiki5m` of the test data (they say so where it is not there) with every seed. [`ClaimBench::scope`] says which.

mod baseline;
mod shown;
mod source;
pub mod timing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamella_codec::{
    Array, Catalogue, ClaimContext, ClaimSize, Knowledge, Rate, Recipe, Silent, TensorSource,
};
use lamella_lm::statistics::{SequenceOptions, Statistics};
use lamella_lm::{LinearSite, Network};

use crate::compress::{Allocate, Budget, CalibrationRequest, Input, Job, Request, Rule};
use crate::distortion::{distortion, weighted_energy};
use crate::evaluate::Opened;

pub use baseline::{GPTQ_SETTINGS, GptqBaseline};
pub use shown::{Shown, exceptions, worst};
pub use source::Replaced;

/// What a claim fails with.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Parts of the calibration text; quick claims use the first.
pub const SEEDS: usize = 3;

/// One written file, read back.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Recipe of the linears.
    pub recipe: String,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of the layers of the blocks' linears.
    pub linear_bytes: u64,
    /// Those bytes in bits, over the linears' weights.
    pub linear_bits: f64,
    /// Mean KL divergence to the original on unseen text, nats per token.
    pub kl: f64,
    /// Perplexity on the same text.
    pub perplexity: f64,
    /// Error of each linear relative to storing nothing, in the order of [`ClaimBench::linears`].
    pub errors: Vec<f64>,
    /// `|E|^2 / |W|^2` of each linear, whatever its inputs.
    pub squared_errors: Vec<f64>,
}

impl Measured {
    /// Mean of the linears' errors.
    pub fn mean_error(&self) -> f64 {
        self.errors.iter().sum::<f64>() / self.errors.len().max(1) as f64
    }
    /// Linears whose error is smaller than `other`'s.
    pub fn n_better(&self, other: &Self) -> usize {
        self.errors.iter().zip(&other.errors).filter(|(own, other)| own < other).count()
    }
}

/// A seed's text, and what it says of each linear.
struct Seed {
    text: PathBuf,
    statistics: PathBuf,
    knowledge: Vec<Knowledge>,
}

/// A model with its seeds and its unseen text.
pub struct ClaimBench {
    /// For baselines.
    pub catalogue: Arc<Catalogue>,
    /// The original.
    pub input: Input,
    /// What reports call the model.
    pub model: String,
    /// Perplexity of the original on the unseen text.
    pub original_perplexity: f64,
    network: Network,
    exact: Vec<Rule>,
    linears: Vec<LinearSite>,
    originals: Vec<Array<'static>>,
    sequences: SequenceOptions,
    windows: Vec<Vec<u32>>,
    targets: Vec<u32>,
    logits: Vec<f32>,
    seeds: Vec<Seed>,
    is_full: bool,
    directory: tempfile::TempDir,
}

/// Where a claim's model and texts are, and how much of them is used.
struct Setting {
    name: &'static str,
    model: PathBuf,
    calibration: PathBuf,
    evaluation: PathBuf,
    calibration_tokens: usize,
    evaluation_tokens: usize,
    context: usize,
}

impl Setting {
    fn of(context: &ClaimContext) -> Self {
        let own = context.assets.join("stories260k");
        match context.data.as_deref().filter(|data| is_full(context) && data.join("lm/wiki5m").is_dir()) {
            Some(data) => Self {
                name: "wiki5m",
                model: data.join("lm/wiki5m"),
                calibration: data.join("text/wikitext2_valid.txt"),
                evaluation: data.join("text/wikitext2_eval.txt"),
                calibration_tokens: 16_384,
                evaluation_tokens: 6144,
                context: 256,
            },
            None => Self {
                name: "stories260k",
                calibration: own.join("calibration.txt"),
                evaluation: own.join("evaluation.txt"),
                model: own,
                calibration_tokens: 2048,
                evaluation_tokens: 1024,
                context: 128,
            },
        }
    }
}

fn is_full(context: &ClaimContext) -> bool {
    context.size == ClaimSize::Full
}

impl ClaimBench {
    /// Opens the model of a claim's size and takes every seed's statistics.
    ///
    /// # Errors
    /// Files that are not there or cannot be read.
    pub fn new(context: &ClaimContext) -> Result<Self, Error> {
        let setting = Setting::of(context);
        let input = Input::open(&setting.model.to_string_lossy())?;
        let model = input.model.as_ref().ok_or("the claim's model has an unknown architecture")?;
        let tokenizer = model.tokenizer.as_ref().ok_or("the claim's model has no tokenizer")?;
        let text = fs_err::read_to_string(&setting.evaluation)?;
        let tokens = tokenizer.encode(&text, false)?;
        let used = setting.evaluation_tokens.min(tokens.len().saturating_sub(1));
        let windows: Vec<Vec<u32>> = tokens[..used].chunks(setting.context).map(<[u32]>::to_vec).collect();
        let targets = tokens[1..=used].to_vec();
        let opened = Opened::open(&setting.model.to_string_lossy(), &context.catalogue)?;
        let network = opened.model.network;
        let logits = network.logits(&network.forward(&windows)?, None)?;
        let sites = network.linears().iter();
        let linears: Vec<LinearSite> =
            sites.filter(|site| site.block.is_some() && !site.is_transposed).cloned().collect();
        let originals = linears
            .iter()
            .map(|site| Ok(network.source().array(&site.weight)?.into_owned()))
            .collect::<Result<_, Error>>()?;
        let outer = network.linears().iter().filter(|site| site.block.is_none());
        let mut kept: Vec<String> =
            outer.map(|site| site.weight.clone()).chain(network.embeddings()).collect();
        kept.sort();
        kept.dedup();
        kept.retain(|name| input.directory.arrays().iter().any(|spec| &spec.name == name));
        let exact = kept.into_iter().map(|pattern| Rule { pattern, recipe: Recipe::new("exact") }).collect();
        let context_length = setting.context;
        let sequences = SequenceOptions {
            max_tokens: setting.calibration_tokens,
            context_length,
            ..SequenceOptions::default()
        };
        let mut bench = Self {
            catalogue: Arc::clone(&context.catalogue),
            model: setting.name.to_owned(),
            original_perplexity: 0.0,
            network,
            exact,
            linears,
            originals,
            sequences,
            windows,
            targets,
            logits,
            seeds: Vec::new(),
            is_full: is_full(context),
            directory: tempfile::tempdir()?,
            input,
        };
        bench.original_perplexity = bench.judge(&bench.network)?.1;
        bench.take_statistics(&setting.calibration)?;
        Ok(bench)
    }

    /// Cuts the calibration text into one part a seed.
    fn take_statistics(&mut self, calibration: &Path) -> Result<(), Error> {
        let text = fs_err::read_to_string(calibration)?;
        let lines: Vec<&str> = text.lines().collect();
        for seed in self.seeds() {
            let part = lines[seed * lines.len() / SEEDS..(seed + 1) * lines.len() / SEEDS].join("\n");
            let path = self.directory.path().join(format!("seed{seed}.txt"));
            fs_err::write(&path, part)?;
            let statistics = self.directory.path().join(format!("seed{seed}.statistics"));
            let request = self.calibration(path.clone(), statistics.clone());
            let taken: Statistics = request.run(&self.input, &Silent)?.statistics;
            let knowledge =
                self.linears.iter().map(|site| taken.knowledge(site)).collect::<Result<_, _>>()?;
            self.seeds.push(Seed { text: path, statistics, knowledge });
        }
        Ok(())
    }

    fn calibration(&self, text: PathBuf, statistics: PathBuf) -> CalibrationRequest {
        CalibrationRequest {
            text: Some(text),
            sequences: self.sequences.clone(),
            statistics: Some(statistics),
            takes_foreign: false,
            scratch: self.directory.path().to_owned(),
        }
    }

    /// The seeds that a claim of this size asks.
    pub fn seeds(&self) -> std::ops::Range<usize> {
        0..if self.is_full { SEEDS } else { 1 }
    }

    /// Whether this is the full claim.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// What this run covers, in words: its model, and what the quick form leaves out.
    pub fn scope(&self) -> String {
        match self.is_full {
            true => format!("{}, {SEEDS} seeds", self.model),
            false => format!("quick form: {}, 1 of {SEEDS} seeds", self.model),
        }
    }

    /// The blocks' linears: what every claim counts.
    pub fn linears(&self) -> &[LinearSite] {
        &self.linears
    }

    /// The linears' original arrays, in the order of [`ClaimBench::linears`].
    pub fn originals(&self) -> &[Array<'static>] {
        &self.originals
    }

    /// The original network, in memory.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What a seed's text says of each linear, in the order of [`ClaimBench::linears`].
    pub fn knowledge(&self, seed: usize) -> &[Knowledge] {
        &self.seeds[seed].knowledge
    }

    /// The file that a seed's calibration text lies in.
    pub fn text(&self, seed: usize) -> &Path {
        &self.seeds[seed].text
    }

    /// A seed's calibration text in token sequences.
    ///
    /// # Errors
    /// A text that cannot be read.
    pub fn sequences(&self, seed: usize) -> Result<Vec<Vec<u32>>, Error> {
        let Seed { text, statistics, .. } = &self.seeds[seed];
        let request = self.calibration(text.clone(), statistics.clone());
        Ok(request.sequences(&self.input, &fs_err::read_to_string(text)?)?)
    }

    /// Writes every linear by `recipe`, reads the file back and measures.
    ///
    /// # Errors
    /// A recipe that cannot be run, a file that cannot be written or read.
    pub fn measure(&self, seed: usize, recipe: &str) -> Result<Measured, Error> {
        self.measure_with(seed, recipe, &[])
    }

    /// [`ClaimBench::measure`] with rules for single linears.
    ///
    /// # Errors
    /// As [`ClaimBench::measure`].
    pub fn measure_with(&self, seed: usize, recipe: &str, rules: &[Rule]) -> Result<Measured, Error> {
        let output = self.directory.path().join("candidate.lam");
        let parsed: Recipe = recipe.parse()?;
        let Seed { text, statistics, knowledge } = &self.seeds[seed];
        let request = Request {
            output: output.clone(),
            sequential: parsed.flag("sequential").unwrap_or(false),
            recipe: parsed,
            rules: self.exact.iter().chain(rules).cloned().collect(),
            budget: Budget::Recipe,
            budget_text: String::new(),
            calibration: self.calibration(text.clone(), statistics.clone()),
            tune: None,
            allocate: Allocate::default(),
        };
        let report = Job::plan(&self.input, &request, &self.catalogue, &Silent)?.run(&Silent)?;
        let opened = Opened::open(&output.to_string_lossy(), &self.catalogue)?;
        if opened.bytes != report.bytes || fs_err::metadata(&output)?.len() != report.bytes {
            return Err(
                format!("the report says {} bytes, the file has {}", report.bytes, opened.bytes).into()
            );
        }
        let coded = &opened.model.network;
        let (mut errors, mut squared_errors) = (Vec::new(), Vec::new());
        let mut weights = 0;
        for ((site, original), knowledge) in self.linears.iter().zip(&self.originals).zip(knowledge) {
            let original = original.to_f32()?;
            let returned = coded.source().array(&site.weight)?.to_f32()?;
            let relative = |knowledge: &Knowledge| {
                let energy = weighted_energy(&original, site.in_features, knowledge);
                let error = distortion(&original, &returned, site.in_features, knowledge);
                if energy > 0.0 { error / energy } else { error }
            };
            errors.push(relative(knowledge));
            squared_errors.push(relative(&Knowledge::default()));
            weights += original.len();
        }
        let (kl, perplexity) = self.judge(coded)?;
        let linear_bits = opened.linear_bits_per_weight;
        Ok(Measured {
            recipe: recipe.to_owned(),
            file_bytes: report.bytes,
            linear_bytes: (linear_bits * weights as f64 / 8.0).round() as u64,
            linear_bits,
            kl,
            perplexity,
            errors,
            squared_errors,
        })
    }

    /// KL divergence to the original and perplexity, on the unseen text.
    ///
    /// # Errors
    /// A network that cannot be run or predicts nothing.
    pub fn judge(&self, network: &Network) -> Result<(f64, f64), Error> {
        let logits = network.logits(&network.forward(&self.windows)?, None)?;
        let compared = lamella_lm::judge::compare_logits(&self.logits, &logits, &self.targets)
            .map_err(|(_, row)| format!("the logits at token {row} are not finite"))?;
        let mean = |value: &dyn Fn(&lamella_lm::judge::Comparison) -> f64| {
            compared.iter().map(value).sum::<f64>() / compared.len().max(1) as f64
        };
        let kl = mean(&|row| row.kl_divergence);
        Ok((kl, mean(&|row| row.candidate.negative_log_likelihood).exp()))
    }

    /// `|E|^2 / |W|^2` of each linear under a recipe that knows nothing of the inputs, decoded from its payload.
    ///
    /// # Errors
    /// A recipe that cannot be run.
    pub fn plain_squared_errors(&self, recipe: &str) -> Result<Vec<f64>, Error> {
        let codec = self.catalogue.codec(&recipe.parse()?)?;
        let error = |array: &Array<'static>| {
            let knowledge = Knowledge::default();
            let encoded = codec.encode(array, &knowledge, Rate::Recipe)?;
            let layers: Vec<&[u8]> = encoded.layers.iter().map(|layer| &layer.payload[..]).collect();
            let (original, returned) = (array.to_f32()?, codec.decode(&array.spec, &layers)?.to_f32()?);
            let energy = weighted_energy(&original, 1, &knowledge);
            let error = distortion(&original, &returned, 1, &knowledge);
            Ok(if energy > 0.0 { error / energy } else { error })
        };
        self.originals.iter().map(error).collect()
    }
}

/// What tests hand a claim: the project's own model, the wing's own codecs.
#[cfg(test)]
pub(crate) fn quick_context() -> ClaimContext {
    ClaimContext {
        size: ClaimSize::Quick,
        assets: concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets").into(),
        data: None,
        catalogue: Arc::new(Catalogue::new(Vec::new(), crate::systems::codecs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gptq_is_measured_in_files_no_smaller_and_more_bits_lose_less() {
        let bench = ClaimBench::new(&quick_context()).unwrap();
        let rtn = bench.measure(0, "rtn(bits=3, group_size=32)").unwrap();
        assert_eq!(rtn.linear_bytes, bench.stored_bytes("rtn(bits=3, group_size=32)").unwrap());
        assert_eq!(rtn.errors.len(), 35);
        let gptq = bench.gptq(0, &rtn).unwrap();
        assert!(gptq.settings.iter().all(|measured| measured.file_bytes >= rtn.file_bytes));
        assert!(gptq.by_kl().kl < rtn.kl && gptq.by_error().mean_error() < rtn.mean_error());
        let finer = bench.measure(0, "rtn(bits=5, group_size=32)").unwrap();
        assert_eq!(finer.n_better(&rtn), 35);
        assert!(finer.kl < rtn.kl && finer.perplexity > 0.9 * bench.original_perplexity);
    }
}
