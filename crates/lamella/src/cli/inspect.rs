//! `lamella inspect`: what a file says about itself.

use std::path::PathBuf;

use clap::Args;
use lamella::file::File;

use super::{CliError, Common, Exit, print};

/// Show what is in a `.lam` file: arrays, recipes, layers, sizes
///
/// Reads the manifest only.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lamella inspect story.lam\n  lamella inspect story.lam --json")]
pub(crate) struct Inspect {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

impl Inspect {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        self.common.start()?;
        let inspection = File::open(&self.file)?.inspect();
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
