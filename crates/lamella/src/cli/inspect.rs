//! `lamella inspect`: what a file says about itself.

use std::path::{Path, PathBuf};

use clap::Args;
use lamella::file::File;

use super::{CliError, Common, Exit, print};

/// Show what is in a `.lam` file: arrays, recipes, layers, sizes
///
/// Reads the manifest only; behind an address, too, by HTTP ranges (in a build with the feature `remote`).
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella inspect story.lam\n  lamella inspect story.lam --json\n  lamella inspect https://example.org/story.lam"
)]
pub(crate) struct Inspect {
    /// The file, or its address
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

impl Inspect {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        self.common.start()?;
        let inspection = open(&self.file)?.inspect();
        if self.common.json {
            print::json(&inspection);
            return Ok(Exit::Done);
        }
        let rows: Vec<Vec<String>> = inspection
            .arrays
            .iter()
            .map(|array| {
                vec![
                    array.spec.name.clone(),
                    format!("{:?}", array.spec.shape),
                    array.spec.dtype.name().to_owned(),
                    array.recipe.clone(),
                    array.bytes.to_string(),
                    format!("{:.3}", array.bits_per_element),
                    format!("{}/{}", array.layers, array.all_layers),
                ]
            })
            .collect();
        let table = print::table(&["array", "shape", "dtype", "recipe", "bytes", "bits", "layers"], &rows);
        print::data(&format!(
            "{table}\n\n{} of {}: manifest {}, side files {} ({}), {} layers of {}; complete from {}; {:.3} bits per element; {}",
            print::bytes(inspection.bytes),
            print::bytes(inspection.file_bytes),
            print::bytes(inspection.manifest_bytes),
            print::bytes(inspection.side_bytes),
            inspection.side_files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>().join(", "),
            inspection.whole_layers,
            inspection.layers,
            print::bytes(inspection.smallest_complete_bytes),
            inspection.bits_per_element,
            if inspection.budget.is_empty() { "no budget" } else { &inspection.budget },
        ));
        Ok(Exit::Done)
    }
}

/// The address in a path that is one.
fn address(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| text.starts_with("http://") || text.starts_with("https://"))
}

#[cfg(feature = "remote")]
fn open(path: &Path) -> Result<File, CliError> {
    Ok(match address(path) {
        Some(url) => File::open_url(url)?,
        None => File::open(path)?,
    })
}

#[cfg(not(feature = "remote"))]
fn open(path: &Path) -> Result<File, CliError> {
    if address(path).is_some() {
        return Err(CliError::usage("this build reads no addresses")
            .hint("build with `--features remote`, or download the file first"));
    }
    Ok(File::open(path)?)
}
