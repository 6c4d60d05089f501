//! `lamella cut`: a smaller file out of a larger one.

use std::path::PathBuf;

use clap::Args;
use lamella::file::File;

use super::{CliError, Common, Exit, print};

/// Cut a `.lam` file to a smaller size, keeping whole layers
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lamella cut model.lam --size 300MB -o small.lam")]
pub(crate) struct Cut {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Largest size of the result: bytes, KB/MB/GB, KiB/MiB/GiB, or `N%` of the file
    #[arg(long, value_name = "SIZE")]
    size: String,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output where it exists
    #[arg(long)]
    overwrite: bool,
    /// Print what would be kept and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

impl Cut {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        self.common.start()?;
        if self.output.exists() && !self.overwrite && !self.dry_run {
            return Err(CliError::usage(format!("`{}` exists", self.output.display()))
                .hint("`--overwrite` replaces it"));
        }
        let file = File::open(&self.file)?;
        let size: lamella::rate::Size = self.size.parse()?;
        let cut = file.cut(size.bytes(file.length_bytes()))?;
        let report = if self.dry_run { cut.report().clone() } else { cut.write(&self.output)? };
        if self.common.json {
            print::json(&report);
        } else {
            print::data(&format!(
                "{}: {} of {}, {} layers, {:.3} bits per element",
                self.output.display(),
                print::bytes(report.bytes),
                print::bytes(file.length_bytes()),
                report.layers,
                report.bits_per_element,
            ));
        }
        Ok(Exit::Done)
    }
}
