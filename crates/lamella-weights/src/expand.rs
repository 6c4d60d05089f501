//! A coded model back to a plain model directory: source dtypes, shards and side files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lamella_codec::{Interrupted, Progress, SourceError, TensorSource};
use lamella_file::FileError;
use lamella_io::{IoError, SafetensorsWriter};

use crate::lossless::{self, LosslessError};
use crate::open::CodedModel;

/// Why a model could not be expanded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ExpandError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Output(#[from] IoError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Lossless(#[from] LosslessError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("`{0}` exists and is not empty; give another directory, or remove this one")]
    NotEmpty(String),
    #[error("the file names `{0}`, which would lie outside the directory")]
    Outside(String),
    #[error("the file names `{0}` twice")]
    Twice(String),
    #[error(
        "a base model was given, and the file is no difference to one (`compress --lossless --base` makes such)"
    )]
    NoDelta,
}

/// Writes the model into `directory`, which must not exist or be empty, and returns the files' names and bytes.
///
/// Everything is written under a temporary name beside it and renamed at the end: an interrupted run leaves no
/// directory that looks whole. Arrays come back in the source's dtypes and shards; files of `compress --lossless`
/// come back byte for byte, with `base` where they are stored as the difference to another model.
///
/// # Errors
/// A damaged file, a missing base, what the system says of the directory.
pub fn expand(
    coded: &CodedModel,
    directory: &Path,
    base: Option<&str>,
    progress: &dyn Progress,
) -> Result<Vec<(String, u64)>, ExpandError> {
    let is_free =
        !directory.exists() || fs_err::read_dir(directory).is_ok_and(|mut dir| dir.next().is_none());
    if !is_free {
        return Err(ExpandError::NotEmpty(directory.display().to_string()));
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let part = parent.unwrap_or(Path::new(".")).join(format!("{name}.expanding"));
    // What an earlier, killed run left behind.
    let _ = fs_err::remove_dir_all(&part);
    fs_err::create_dir_all(&part)?;
    let written = write_all(coded, &part, base, progress).and_then(|files| {
        if directory.exists() {
            fs_err::remove_dir(directory)?;
        }
        fs_err::rename(&part, directory)?;
        Ok(files)
    });
    if written.is_err() {
        let _ = fs_err::remove_dir_all(&part);
    }
    written
}

fn write_all(
    coded: &CodedModel,
    directory: &Path,
    base: Option<&str>,
    progress: &dyn Progress,
) -> Result<Vec<(String, u64)>, ExpandError> {
    let file = coded.file();
    if lossless::is_lossless(file) {
        return Ok(lossless::expand(file, directory, base, progress)?);
    }
    if base.is_some() {
        return Err(ExpandError::NoDelta);
    }
    let total = file.arrays().len() as u64;
    let (mut done, mut names, mut files) = (0, BTreeSet::new(), Vec::new());
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
        files.push((shard.name.clone(), fs_err::metadata(&path)?.len()));
    }
    for (name, bytes) in file.side_files()? {
        fs_err::write(inside(directory, &name, &mut names)?, &bytes)?;
        files.push((name, bytes.len() as u64));
    }
    Ok(files)
}

/// The path of a file named in a `.lam` file, which must stay inside the directory and be named once.
fn inside(directory: &Path, name: &str, names: &mut BTreeSet<String>) -> Result<PathBuf, ExpandError> {
    let is_plain = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if name.is_empty() || !is_plain {
        return Err(ExpandError::Outside(name.to_owned()));
    }
    if !names.insert(name.to_owned()) {
        return Err(ExpandError::Twice(name.to_owned()));
    }
    let path = directory.join(name);
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    Ok(path)
}
