//! `lamella verify`: whether a file is whole.

use std::path::PathBuf;

use clap::Args;
use lamella::codec::Progress;
use lamella::file::File;

use super::{CliError, Common, Exit, print};

/// Check every byte of a `.lam` file against its checksums, without decoding
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lamella verify story.lam\n\nExit code 2 names the first damaged layer")]
pub(crate) struct Verify {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

impl Verify {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        let bar = self.common.start()?;
        let file = File::open(&self.file)?;
        let verification =
            file.verify(|progress| bar.advance("verify", progress.done_bytes, progress.total_bytes, ""))?;
        bar.finish();
        if self.common.json {
            print::json(&verification);
        } else {
            let mut line = format!(
                "{}: {} of {} layers whole, every checksum right, {:.3} bits per element",
                self.file.display(),
                verification.whole_layers,
                verification.layers,
                verification.bits_per_element,
            );
            if verification.unused_bytes > 0 {
                line.push_str(&format!(
                    "; the last {} bytes are part of a cut layer",
                    verification.unused_bytes
                ));
            }
            print::data(&line);
        }
        Ok(Exit::Done)
    }
}
