//! `lamella export`: a model in another tool's format.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use lamella::codec::{Array, ArraySpec, Progress, TensorSource};
use lamella::file::File;
use lamella::io::{GgmlType, SafetensorsWriter};
use lamella::lm::statistics::SequenceOptions;
use lamella::weights::compressed_tensors::{self, Scheme, SchemeRule};
use lamella::weights::evaluate::{Opened, is_coded};
use lamella::weights::gguf::{BUILT_IN_TEXT, Calibration, Export as Request, TypeRule, export};
use lamella::weights::open::CodedModel;
use serde::Serialize;

use super::model_options::ModelOptions;
use super::{CliError, Common, Exit, print};

/// Side files: name and bytes.
type SideFiles = Vec<(String, Vec<u8>)>;

/// Write a model in another tool's format: one GGUF file, or a directory with safetensors
///
/// GGUF files hold metadata and tokenizer and are loaded by llama.cpp and what is built on it. `--type` quantises
/// into one of its block types; `--calibrate` lets a text decide where the error goes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella export assets/stories260k --to gguf -o story.gguf --type f16\n  lamella export MODEL --to gguf -o model.gguf --size 4.2GB --calibrate text.txt\n  lamella export MODEL --to gguf -o q4.gguf --type q4_k --rule '*embed*=q6_k' --calibrate text.txt\n  lamella export model.gguf --to safetensors -o model/"
)]
pub(crate) struct Export {
    /// `.lam` file, model directory, weight file, or `org/name`
    #[arg(value_name = "MODEL")]
    model: String,
    /// Format to write
    #[arg(long, value_enum)]
    to: Format,
    /// The file (GGUF) or directory (safetensors) to write
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    /// GGUF: type of every matrix [default: as the source has them]
    ///
    /// f32, f16, bf16, q8_0, q6_k, q5_k, q5_0, q5_1, q4_k, q4_0, q4_1, iq4_nl, iq4_xs, q3_k or q2_k
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// GGUF: size of the file; each tensor gets the type that loses least at or under it, measured on the text
    ///
    /// Bytes, KB/MB/GB, KiB/MiB/GiB, or a percentage of the model's weight files.
    #[arg(long, value_name = "SIZE", conflicts_with = "kind")]
    size: Option<String>,
    /// GGUF, compressed-tensors: quantise every block for what it sees in the original, not behind the quantised blocks before it
    #[arg(long)]
    independent: bool,
    /// compressed-tensors: scheme of every linear of the blocks
    ///
    /// int4 and int8 in groups of columns, int8-channel and fp8 with one scale a row
    #[arg(long, value_name = "SCHEME", default_value = "int4")]
    scheme: String,
    /// compressed-tensors: columns that share a scale
    #[arg(long, value_name = "N", default_value_t = 128)]
    group_size: usize,
    /// compressed-tensors: tell runtimes to round activations of int8-channel and fp8 linears to 8 bits too
    #[arg(long)]
    dynamic_activations: bool,
    /// Another type (GGUF) or scheme (compressed-tensors, also `none`) for matching tensors; repeatable, the last
    /// match wins
    #[arg(long, value_name = "GLOB=TYPE")]
    rule: Vec<String>,
    /// GGUF, compressed-tensors: text whose statistics decide scales and codes
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Calibration tokens at most
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    tokens: usize,
    /// Calibration window in tokens [default: 2048 or the model's context]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Replace an existing file
    #[arg(long)]
    overwrite: bool,
    /// Print what would be written and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One file for llama.cpp
    Gguf,
    /// A directory of the Hugging Face kind
    Safetensors,
    /// The same, quantised, for vLLM and transformers
    CompressedTensors,
}

fn kind(name: &str) -> Result<GgmlType, CliError> {
    GgmlType::from_name(name).ok_or_else(|| {
        CliError::usage(format!("`{name}` is no type of GGUF"))
            .hint("`lamella export --help` lists the types that are written")
    })
}

impl Export {
    /// `compress --to`: the same with the options of that verb.
    pub(crate) fn of_compress(
        options: &ModelOptions,
        to: Format,
        output: PathBuf,
        overwrite: bool,
        dry_run: bool,
    ) -> Result<Self, CliError> {
        let unused = [
            ("--recipe", options.recipe != "house"),
            ("--bits", options.budget.bits.is_some()),
            ("--quality", options.budget.quality.is_some()),
            ("--keep", !options.keep.is_empty()),
            ("--statistics", options.statistics.is_some()),
            ("--paragraphs", options.paragraphs.is_some()),
            ("--longer-than", options.longer_than.is_some()),
            ("--tune", options.tune.is_some() || options.tune_steps.is_some()),
        ];
        if let Some((flag, _)) = unused.iter().find(|(_, is_given)| *is_given) {
            return Err(CliError::usage(format!("`{flag}` is for `.lam` files, not for `--to`"))
                .hint("`--size`, `--rule GLOB=TYPE`, `--calibrate`, `--tokens` and `--context` apply"));
        }
        Ok(Self {
            model: options.model.clone(),
            to,
            output,
            kind: None,
            size: options.budget.size.clone(),
            independent: false,
            scheme: "int4".to_owned(),
            group_size: 128,
            dynamic_activations: false,
            rule: options.rule.clone(),
            calibrate: options.calibrate.clone(),
            tokens: options.tokens,
            context: options.context,
            overwrite,
            dry_run,
            common: options.common.clone(),
        })
    }

    pub(crate) fn main(self) -> Result<Exit, CliError> {
        let bar = self.common.start()?;
        match self.to {
            Format::Gguf => self.gguf(&bar)?,
            Format::Safetensors => {
                if self.kind.is_some()
                    || self.size.is_some()
                    || !self.rule.is_empty()
                    || self.calibrate.is_some()
                {
                    return Err(CliError::usage(
                        "`--type`, `--size`, `--rule` and `--calibrate` belong to `--to gguf`",
                    ));
                }
                self.safetensors(&bar)?;
            }
            Format::CompressedTensors => {
                if self.kind.is_some() || self.size.is_some() {
                    return Err(CliError::usage("`--type` and `--size` belong to `--to gguf`")
                        .hint("`--scheme int4` says what linears become"));
                }
                self.compressed_tensors(&bar)?;
            }
        }
        bar.finish();
        Ok(Exit::Done)
    }

    /// Rules as pattern and name.
    fn rules(&self) -> Result<Vec<(&str, &str)>, CliError> {
        let parted = |rule: &'_ String| CliError::usage(format!("`--rule {rule}` is not GLOB=TYPE"));
        self.rule.iter().map(|rule| rule.rsplit_once('=').ok_or_else(|| parted(rule))).collect()
    }

    fn compressed_tensors(&self, progress: &dyn Progress) -> Result<(), CliError> {
        let scheme = |name: &str| {
            Scheme::from_name(name, self.group_size).ok_or_else(|| {
                CliError::usage(format!("`{name}` is no scheme"))
                    .hint("schemes are int4, int8, int8-channel and fp8; rules also take `none`")
            })
        };
        let mut rules = Vec::new();
        for (pattern, name) in self.rules()? {
            let scheme = if name == "none" { None } else { Some(scheme(name)?) };
            rules.push(SchemeRule { pattern: pattern.to_owned(), scheme });
        }
        let request = compressed_tensors::Export {
            output: self.output.clone(),
            scheme: scheme(&self.scheme)?,
            rules,
            sequential: !self.independent,
            dynamic_activations: self.dynamic_activations,
            dry_run: self.dry_run,
        };
        self.check_free()?;
        let opened = Opened::open_lazy(&self.model, &lamella::catalogue())?;
        let calibration = if self.dry_run { None } else { self.calibration(&opened, progress)? };
        let report = compressed_tensors::export(
            &opened.model,
            &opened.side_files,
            calibration.as_ref(),
            &request,
            progress,
        )?;
        if self.common.json {
            print::json(&report);
        } else {
            print::data(&format!(
                "{}  {}  {:.3} bits per weight, {} linears",
                report.directory,
                print::bytes(report.array_bytes),
                report.bits_per_weight,
                report.linears.len()
            ));
        }
        Ok(())
    }

    /// Refuses an output directory that holds something.
    fn check_free(&self) -> Result<(), CliError> {
        let is_free = !self.output.exists()
            || std::fs::read_dir(&self.output).is_ok_and(|mut directory| directory.next().is_none());
        if is_free || self.dry_run {
            return Ok(());
        }
        Err(CliError::usage(format!("`{}` exists and is not empty", self.output.display()))
            .hint("give another directory, or remove this one"))
    }

    fn gguf(&self, progress: &dyn Progress) -> Result<(), CliError> {
        let mut rules = Vec::new();
        for (pattern, name) in self.rules()? {
            rules.push(TypeRule { pattern: pattern.to_owned(), kind: kind(name)? });
        }
        let mut request = Request {
            output: self.output.clone(),
            name: model_name(&self.model),
            kind: self.kind.as_deref().map(kind).transpose()?,
            rules,
            size: None,
            sequential: !self.independent,
            dry_run: self.dry_run,
        };
        if self.output.exists() && !self.overwrite && !self.dry_run {
            return Err(CliError::usage(format!("`{}` exists", self.output.display()))
                .hint("give another name, or `--overwrite`"));
        }
        let opened = Opened::open_lazy(&self.model, &lamella::catalogue())?;
        if let Some(text) = &self.size {
            let size: lamella::rate::Size = text.parse()?;
            request.size = Some(size.bytes(opened.bytes));
        }
        let is_needed = !self.dry_run || self.size.is_some();
        let calibration = if is_needed { self.calibration(&opened, progress)? } else { None };
        let report = export(&opened.model, &opened.side_files, calibration.as_ref(), &request, progress)?;
        if self.common.json {
            print::json(&report);
        } else {
            let rows = report.tensors.iter().map(|row| {
                format!("{}  {:?}  {}  {}", row.name, row.shape, row.kind, print::bytes(row.bytes))
            });
            let rows: Vec<String> = rows.collect();
            print::data(&format!(
                "{}  {}  {:.3} bits per weight\n{}",
                report.file,
                print::bytes(report.bytes),
                report.bits_per_weight,
                rows.join("\n")
            ));
        }
        Ok(())
    }

    /// Statistics of the text that is given, of the model's own, or where a size asks for one of a built-in text.
    fn calibration(&self, opened: &Opened, progress: &dyn Progress) -> Result<Option<Calibration>, CliError> {
        let beside = || Some(Path::new(&self.model).join("calibration.txt")).filter(|path| path.is_file());
        let path = match (&self.calibrate, &self.size) {
            (Some(path), _) => Some(path.clone()),
            (None, Some(_)) => beside(),
            (None, None) => return Ok(None),
        };
        let text = match path {
            Some(path) => {
                let bytes = std::fs::read(&path).map_err(|error| {
                    CliError::usage(format!("`{}` cannot be read: {error}", path.display()))
                })?;
                String::from_utf8_lossy(&bytes).into_owned()
            }
            None => {
                progress.warn(
                    "no text was given: a built-in text of 64 KB is used; text like what the model will see (`--calibrate FILE`) gives better results",
                );
                BUILT_IN_TEXT.to_owned()
            }
        };
        let default = SequenceOptions::default();
        let context_length = self.context.unwrap_or(default.context_length);
        let options = SequenceOptions { max_tokens: self.tokens, context_length, ..default };
        Ok(Some(Calibration::take(&opened.model, &text, &options, progress)?))
    }

    fn safetensors(&self, progress: &dyn Progress) -> Result<(), CliError> {
        let (source, side_files): (Arc<dyn TensorSource>, SideFiles) = if is_coded(Path::new(&self.model)) {
            let coded = CodedModel::new(File::open(&self.model)?, &lamella::catalogue())?;
            let side_files = coded.file().side_files()?;
            (Arc::new(coded), side_files)
        } else {
            let directory = lamella::io::open_model(&self.model)?;
            let side_files = directory.side_files()?;
            (Arc::new(directory), side_files)
        };
        self.check_free()?;
        let specs: Vec<ArraySpec> = source.arrays().to_vec();
        if !self.dry_run {
            // Everything is written under a temporary name: an interrupted run leaves nothing that looks whole.
            let name = self.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let part = self.output.with_file_name(format!("{name}.exporting"));
            let _ = std::fs::remove_dir_all(&part);
            if let Err(error) = write_directory(source.as_ref(), &specs, &side_files, &part, progress) {
                let _ = std::fs::remove_dir_all(&part);
                return Err(error);
            }
            let failed =
                |error: std::io::Error| CliError::usage(format!("`{}`: {error}", self.output.display()));
            if self.output.exists() {
                std::fs::remove_dir(&self.output).map_err(failed)?;
            }
            std::fs::rename(&part, &self.output).map_err(failed)?;
        }
        let bytes = specs.iter().map(|spec| spec.checked_size_bytes().unwrap_or(0) as u64).sum();
        let report = DirectoryReport {
            schema: 1,
            directory: self.output.display().to_string(),
            arrays: specs.len() as u64,
            array_bytes: bytes,
        };
        if self.common.json {
            print::json(&report);
        } else {
            let size = print::bytes(report.array_bytes);
            print::data(&format!("{}  {} arrays, {size}", report.directory, report.arrays));
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct DirectoryReport {
    schema: u32,
    directory: String,
    arrays: u64,
    array_bytes: u64,
}

/// `MODEL` without its directories and ending.
fn model_name(model: &str) -> String {
    let path = Path::new(model.trim_end_matches('/'));
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned())
}

fn write_directory(
    source: &dyn TensorSource,
    specs: &[ArraySpec],
    side_files: &[(String, Vec<u8>)],
    directory: &Path,
    progress: &dyn Progress,
) -> Result<(), CliError> {
    let failed =
        |path: &Path, error: std::io::Error| CliError::usage(format!("`{}`: {error}", path.display()));
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    let weights = "model.safetensors";
    let mut writer = SafetensorsWriter::create(directory.join(weights), &[("format", "pt")], specs)?;
    for (done, spec) in specs.iter().enumerate() {
        progress.advance("export", done as u64, specs.len() as u64, &spec.name);
        progress.check()?;
        let array: Array<'_> = source.array(&spec.name)?;
        writer.write(&array)?;
        source.release(&spec.name);
    }
    writer.finish()?;
    let mut names = BTreeSet::from([weights.to_owned()]);
    for (name, bytes) in side_files {
        let is_plain =
            Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if name.is_empty() || !is_plain || !names.insert(name.clone()) {
            return Err(CliError::usage(format!("the model's file `{name}` has no place in the directory")));
        }
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        }
        std::fs::write(&path, bytes).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}
