//! `lamella expand`: back to a plain model directory.

use std::path::PathBuf;

use clap::Args;
use lamella::file::File;
use lamella::weights::expand::expand;
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
        let mut files = Vec::new();
        if self.dry_run {
            for (shard, _) in coded.file().manifest().shards.iter().enumerate() {
                let arrays = coded.file().arrays().iter().filter(|array| array.shard == shard);
                let bytes = arrays.map(|array| array.spec.checked_size_bytes().unwrap_or(0) as u64).sum();
                files.push(Written { name: coded.file().manifest().shards[shard].name.clone(), bytes });
            }
        } else {
            let written = expand(&coded, &self.output, self.base.as_deref(), &bar)?;
            files.extend(written.into_iter().map(|(name, bytes)| Written { name, bytes }));
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
