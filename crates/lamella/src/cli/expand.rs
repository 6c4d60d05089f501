//! `lamella expand`: back to a plain model directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use lamella::codec::{Progress, TensorSource};
use lamella::file::File;
use lamella::io::SafetensorsWriter;
use lamella::weights::lossless;
use lamella::weights::open::CodedModel;
use serde::Serialize;

use super::{CliError, Common, Exit, print};

/// Decode a `.lam` file into a plain model directory: source dtypes, shards and side files
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lamella expand story.lam -o story/")]
pub(crate) struct Expand {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The directory to write; it must not exist, or be empty
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// The model that a `--lossless --base` file is the difference to
    #[arg(long, value_name = "DIR")]
    base: Option<String>,
    /// Print what would be written and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    directory: String,
    files: Vec<Written>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Written {
    name: String,
    bytes: u64,
}

impl Expand {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        let bar = self.common.start()?;
        let started = std::time::Instant::now();
        let coded = CodedModel::new(File::open(&self.file)?, &lamella::catalogue())?;
        let is_free = !self.output.exists()
            || std::fs::read_dir(&self.output).is_ok_and(|mut dir| dir.next().is_none());
        if !is_free {
            return Err(CliError::usage(format!("`{}` exists and is not empty", self.output.display()))
                .hint("give another directory, or remove this one"));
        }
        let mut files = Vec::new();
        if self.dry_run {
            for (shard, _) in coded.file().manifest().shards.iter().enumerate() {
                let arrays = coded.file().arrays().iter().filter(|array| array.shard == shard);
                let bytes = arrays.map(|array| array.spec.checked_size_bytes().unwrap_or(0) as u64).sum();
                files.push(Written { name: coded.file().manifest().shards[shard].name.clone(), bytes });
            }
        } else {
            // Everything is written under a temporary name: an interrupted run leaves no directory that looks whole.
            let parent = self.output.parent().filter(|parent| !parent.as_os_str().is_empty());
            let name = self.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let part = parent.unwrap_or(Path::new(".")).join(format!("{name}.expanding"));
            let _ = std::fs::remove_dir_all(&part);
            let failed = |error: std::io::Error| CliError::usage(format!("`{}`: {error}", part.display()));
            std::fs::create_dir_all(&part).map_err(failed)?;
            let result = if lossless::is_lossless(coded.file()) {
                lossless::expand(coded.file(), &part, self.base.as_deref(), &bar)
                    .map(|all| files.extend(all.into_iter().map(|(name, bytes)| Written { name, bytes })))
                    .map_err(CliError::from)
            } else if self.base.is_some() {
                Err(CliError::usage("`--base` is for files that `compress --lossless --base` made"))
            } else {
                write_all(&coded, &part, &bar, &mut files)
            };
            if let Err(error) = result {
                let _ = std::fs::remove_dir_all(&part);
                return Err(error);
            }
            if self.output.exists() {
                std::fs::remove_dir(&self.output).map_err(failed)?;
            }
            std::fs::rename(&part, &self.output).map_err(failed)?;
        }
        bar.finish();
        let report = Report {
            schema: 1,
            directory: self.output.display().to_string(),
            files,
            seconds: started.elapsed().as_secs_f64(),
        };
        if self.common.json {
            print::json(&report);
        } else {
            let lines: Vec<String> = report
                .files
                .iter()
                .map(|file| format!("{}  {}", file.name, print::bytes(file.bytes)))
                .collect();
            print::data(&format!("{}\n{}", report.directory, lines.join("\n")));
        }
        Ok(Exit::Done)
    }
}

fn write_all(
    coded: &CodedModel,
    directory: &Path,
    progress: &dyn Progress,
    files: &mut Vec<Written>,
) -> Result<(), CliError> {
    let file = coded.file();
    let total = file.arrays().len() as u64;
    let mut done = 0;
    let mut names = BTreeSet::new();
    for (index, shard) in file.manifest().shards.iter().enumerate() {
        let specs: Vec<_> = file
            .arrays()
            .iter()
            .filter(|array| array.shard == index)
            .map(|array| array.spec.clone())
            .collect();
        let path = inside(directory, &shard.name, &mut names)?;
        let metadata: Vec<(&str, &str)> =
            shard.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let mut writer = SafetensorsWriter::create(&path, &metadata, &specs)?;
        for spec in &specs {
            progress.advance("expand", done, total, &spec.name);
            progress.check()?;
            writer.write(&coded.array(&spec.name)?)?;
            done += 1;
        }
        writer.finish()?;
        files.push(Written { name: shard.name.clone(), bytes: size(&path) });
    }
    for (name, bytes) in file.side_files()? {
        let path = inside(directory, &name, &mut names)?;
        std::fs::write(&path, &bytes)
            .map_err(|error| CliError::usage(format!("`{}`: {error}", path.display())))?;
        files.push(Written { name, bytes: bytes.len() as u64 });
    }
    Ok(())
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The path of a file named in a `.lam` file, which must stay inside the directory and be named once.
fn inside(directory: &Path, name: &str, names: &mut BTreeSet<String>) -> Result<PathBuf, CliError> {
    let is_plain = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if name.is_empty() || !is_plain {
        return Err(CliError::usage(format!(
            "the file names `{name}`, which would lie outside the directory"
        )));
    }
    if !names.insert(name.to_owned()) {
        return Err(CliError::usage(format!("the file names `{name}` twice")));
    }
    let path = directory.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| CliError::usage(format!("`{}`: {error}", parent.display())))?;
    }
    Ok(path)
}
