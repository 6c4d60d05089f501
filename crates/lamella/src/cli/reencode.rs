//! `lamella cut --reencode`: a smaller file by coding a finer one anew.

use std::path::{Path, PathBuf};

use lamella::file::File;
use lamella::weights::compress::{Allocate, Budget, CompressReport, Input, Job, Request};
use lamella::weights::expand::expand;
use lamella::weights::open::CodedModel;

use super::CliError;
use super::progress::Bar;

/// Decodes `master` into a directory beside the output, codes it with `recipe` in `bytes`, and removes the directory.
///
/// Steps are uniform and statistics are those kept in `statistics` (else taken anew and kept there), so that what is
/// left to do is the coding itself.
pub(super) fn reencode(
    master: &Path,
    recipe: &str,
    bytes: u64,
    statistics: Option<&Path>,
    output: &Path,
    is_dry: bool,
    bar: &Bar,
) -> Result<CompressReport, CliError> {
    let catalogue = lamella::catalogue();
    let coded = CodedModel::new(File::open(master)?, &catalogue)?;
    let beside = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    let beside = beside.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let directory = tempfile::Builder::new()
        .prefix(".lamella-")
        .tempdir_in(&beside)
        .map_err(|error| CliError::usage(format!("`{}` cannot be written: {error}", beside.display())))?;
    let expanded = directory.path().join("master");
    expand(&coded, &expanded, None, bar)?;
    drop(coded);
    let input = Input::open(&expanded.display().to_string())?;
    let mut request = Request::new(&input, output.to_path_buf(), Budget::Bytes(bytes))?;
    request.recipe = recipe.parse()?;
    request.budget_text = format!("{bytes} bytes");
    request.calibration.statistics = statistics.map(Path::to_path_buf);
    // They were taken of the model that the master was made of.
    request.calibration.takes_foreign = true;
    request.allocate = Allocate::Uniform;
    let mut job = Job::plan(&input, &request, &catalogue, bar)?;
    Ok(if is_dry { job.report()? } else { job.run(bar)? })
}
