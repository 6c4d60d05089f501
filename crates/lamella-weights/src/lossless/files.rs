//! Whole models, byte for byte: what `compress --lossless` writes and `expand` reads.
//!
//! Every regular file under the input directory comes back with the same bytes. Safetensors files become arrays, one by
//! one, with the header text kept where the ordinary writer would not make the same; other binary files become one
//! array of bytes each; texts are side files. SHA-256 of every file is stored and checked when it is written again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, Dtype, EncodedLayer, Interrupted, Progress, Recipe, SourceError, TensorSource,
};
use lamella_file::{
    ArrayEntry, File, FileError, LayerEntry, Manifest, ManifestError, Shard, SideFiles, Storage,
    write_atomically, write_to,
};
use lamella_io::{IoError, ModelDirectory, SafetensorsFile, SafetensorsHeader, sha256_of_file};
use rayon::prelude::*;
use serde::Serialize;

use super::{Planes, StreamError, encode, encode_delta};
use crate::systems::Exact;

/// Metadata key of a lossless file; its value is the version of what follows.
const LOSSLESS: &str = "lossless";
const BASE: &str = "base";
/// Keys of a file's SHA-256 and header text begin so, its name follows.
const SHA256: &str = "sha256:";
const HEADER: &str = "header:";
/// Binary files of at least this many bytes are arrays; smaller ones are side files.
const SMALLEST_ARRAY_FILE: u64 = 64 << 10;
/// Texts beyond this are arrays of bytes.
const LARGEST_SIDE_FILE: u64 = 32 << 20;
/// Bytes of arrays that are expanded side by side.
const EXPANDED_TOGETHER: u64 = 64 << 20;
/// Directories of tools, not of the model.
const SKIPPED: [&str; 3] = [".git", ".cache", ".huggingface"];

/// Why a model could not be coded without loss, or not brought back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum LosslessError {
    #[error(transparent)]
    Input(#[from] IoError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("array `{array}` cannot be coded")]
    Array { array: String, source: StreamError },
    #[error("`{path}` cannot be brought back byte for byte: {reason}")]
    NotExact { path: PathBuf, reason: String },
    #[error("`{file}` is the difference to a base model with the content hash {hash}")]
    NeedsBase { file: String, hash: String },
    #[error("`{base}` is not the base of `{file}`: its content hash is {found}, the file needs {needed}")]
    WrongBase { base: String, file: String, found: String, needed: String },
    #[error("`{file}` stores no difference, so it needs no base")]
    NoBaseNeeded { file: String },
    #[error("`{file}` is damaged: {message}")]
    Damaged { file: String, message: String },
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct LosslessReport {
    /// Version of this report's fields.
    pub schema: u32,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of all input files.
    pub source_bytes: u64,
    /// `bytes / source_bytes`.
    pub share: f64,
    /// Arrays stored.
    pub arrays: usize,
    /// Arrays stored as differences.
    pub deltas: usize,
    /// Files that come back.
    pub files: usize,
    /// Directories that were left out.
    pub left_out: Vec<String>,
    /// Content hash of the base.
    pub base: Option<String>,
    /// Seconds it took.
    pub seconds: f64,
}

/// A file of the input.
enum Source {
    Safetensors(SafetensorsFile),
    Bytes(PathBuf),
}

/// Codes every file of a directory (or one file, or a hub name) without loss, as the difference to `base` where an
/// array is smaller so.
///
/// # Errors
/// Files that cannot be read, names that cannot be stored, a base that cannot be opened.
pub fn compress(
    name: &str,
    output: &Path,
    base: Option<&str>,
    progress: &dyn Progress,
) -> Result<LosslessReport, LosslessError> {
    let started = std::time::Instant::now();
    let root = lamella_io::resolve_model(name)?;
    let (paths, left_out) = list(&root)?;
    let base = base.map(lamella_io::open_model).transpose()?;
    let base_hash = base.as_ref().map(|base| Ok::<_, IoError>(hex(&base.content_hash()?))).transpose()?;
    let mut manifest = Manifest { recipes: vec!["exact".to_owned()], ..Manifest::default() };
    manifest.metadata.push((LOSSLESS.to_owned(), "1".to_owned()));
    if let Some(hash) = &base_hash {
        manifest.metadata.push((BASE.to_owned(), hash.clone()));
        manifest.recipes.push(delta_recipe(hash).to_string());
    }
    let (mut side, mut payloads, mut names) = (Vec::new(), Vec::new(), BTreeMap::new());
    let (mut source_bytes, mut deltas) = (0, 0);
    let total: u64 = paths.iter().map(|(_, path)| size(path)).sum();
    for (file_name, path) in &paths {
        progress.check()?;
        progress.advance("code", source_bytes, total, file_name);
        source_bytes += size(path);
        manifest.metadata.push((format!("{SHA256}{file_name}"), hex(&sha256_of_file(path)?)));
        let Some(source) = classify(file_name, path, &names)? else {
            side.push((file_name.clone(), fs_err::read(path)?));
            continue;
        };
        let shard = manifest.shards.len();
        let mut metadata = Vec::new();
        let arrays: Vec<Array<'_>> = match &source {
            Source::Bytes(path) => {
                let bytes = fs_err::read(path)?;
                let spec = ArraySpec::new(file_name.clone(), vec![bytes.len()], Dtype::U8);
                vec![Array { spec, bytes: bytes.into() }]
            }
            Source::Safetensors(file) => {
                metadata = file.header().metadata().to_vec();
                if !is_ordinary(file.header(), path) {
                    let text = String::from_utf8_lossy(file.header().text()).into_owned();
                    manifest.metadata.push((format!("{HEADER}{file_name}"), text));
                }
                file.arrays().iter().map(|spec| file.array(&spec.name)).collect::<Result<_, _>>()?
            }
        };
        manifest.shards.push(Shard { name: file_name.clone(), metadata });
        // Arrays side by side, too: the small ones have too few blocks to keep all threads at work.
        let coded: Vec<Result<(Vec<u8>, bool), LosslessError>> = arrays
            .par_iter()
            .map(|array| {
                progress.check()?;
                let coded = code(array, base.as_ref());
                if let Source::Safetensors(file) = &source {
                    file.release(&array.spec.name);
                }
                coded
            })
            .collect();
        for (array, coded) in arrays.iter().zip(coded) {
            let index = manifest.arrays.len();
            let mut entry = ArrayEntry { spec: array.spec.clone(), recipe: 0, shard, storage: Storage::Own };
            names.insert(array.spec.name.clone(), index);
            let (payload, is_delta) = coded?;
            if is_delta {
                entry.recipe = 1;
                deltas += 1;
            }
            let target = payloads.len();
            let layer = EncodedLayer { payload, distortion: 0.0, is_mapped: false };
            manifest.layers.push(LayerEntry::of(target, &layer));
            payloads.push(layer.payload);
            manifest.arrays.push(entry);
        }
    }
    if manifest.arrays.is_empty() {
        manifest.shards.clear();
    }
    let invalid = |source: ManifestError| FileError::Manifest { file: output.display().to_string(), source };
    let side = SideFiles::pack(&side).map_err(invalid)?;
    manifest.side = side.table.clone();
    let bytes = write_atomically(output, |out| {
        write_to(out, &manifest, &side.bytes, |index| Ok(payloads[index].as_slice().into()))
    })?;
    Ok(LosslessReport {
        schema: 1,
        bytes,
        source_bytes,
        share: bytes as f64 / source_bytes.max(1) as f64,
        arrays: manifest.arrays.len(),
        deltas,
        files: paths.len(),
        left_out,
        base: base_hash,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The smaller of an array by itself and its difference to the base; whether it is the difference.
fn code(array: &Array<'_>, base: Option<&ModelDirectory>) -> Result<(Vec<u8>, bool), LosslessError> {
    let failed = |source| LosslessError::Array { array: array.spec.name.clone(), source };
    let alone = encode(&array.spec, &array.bytes).map_err(failed)?;
    let Some(base) = base.filter(|base| base.spec(&array.spec.name).is_some()) else {
        return Ok((alone, false));
    };
    let original = base.array(&array.spec.name)?;
    Ok(match encode_delta(array, &original).map_err(failed)? {
        Some(delta) if delta.len() < alone.len() => (delta, true),
        _ => (alone, false),
    })
}

fn delta_recipe(hash: &str) -> Recipe {
    format!("exact(base=sha256-{hash})").parse().unwrap_or_else(|_| Recipe::new("exact"))
}

/// Files by the name they are stored under.
type Listed = Vec<(String, PathBuf)>;

/// Every regular file, by its path relative to the root (`/` between parts), sorted; and what was skipped.
fn list(root: &Path) -> Result<(Listed, Vec<String>), LosslessError> {
    let not_exact = |path: &Path, reason: &str| LosslessError::NotExact {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    if !fs_err::metadata(root)?.is_dir() {
        let name = root.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| not_exact(root, "its name is not UTF-8"))?;
        return Ok((vec![(name.to_owned(), root.to_owned())], Vec::new()));
    }
    let (mut files, mut left_out) = (Vec::new(), Vec::new());
    let mut open = vec![(String::new(), root.to_owned(), 0)];
    while let Some((prefix, directory, depth)) = open.pop() {
        if depth > 32 {
            return Err(not_exact(&directory, "directories nest more than 32 levels deep"));
        }
        for entry in fs_err::read_dir(&directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| not_exact(&path, "its name is not UTF-8"))?;
            if name.contains(['\\', ':']) {
                return Err(not_exact(&path, "its name contains `\\` or `:`, which the file cannot store"));
            }
            let relative = format!("{prefix}{name}");
            // Links are followed: the hub's cache consists of them.
            let about = fs_err::metadata(&path)?;
            if about.is_dir() && SKIPPED.contains(&name) {
                left_out.push(relative);
            } else if about.is_dir() {
                open.push((format!("{relative}/"), path, depth + 1));
            } else if about.is_file() {
                files.push((relative, path));
            } else {
                return Err(not_exact(&path, "it is no regular file"));
            }
        }
    }
    files.sort();
    left_out.sort();
    Ok((files, left_out))
}

/// What a file becomes; `None`: a side file.
fn classify(
    name: &str,
    path: &Path,
    known: &BTreeMap<String, usize>,
) -> Result<Option<Source>, LosslessError> {
    // Damaged or unusual safetensors files, and second copies of arrays, are kept as bytes.
    if name.ends_with(".safetensors")
        && let Ok(file) = SafetensorsFile::open(path)
        && !file.arrays().is_empty()
        && file.arrays().iter().all(|spec| !known.contains_key(&spec.name))
        && !file
            .arrays()
            .iter()
            .any(|spec| spec.name.is_empty() || spec.name.len() > 4096 || spec.shape.len() > 16)
        && std::str::from_utf8(file.header().text()).is_ok()
    {
        return Ok(Some(Source::Safetensors(file)));
    }
    let size = size(path);
    let is_side = size < SMALLEST_ARRAY_FILE || (size <= LARGEST_SIDE_FILE && is_text(path)?);
    // A file named like an array of the model cannot be an array itself.
    if is_side || known.contains_key(name) { Ok(None) } else { Ok(Some(Source::Bytes(path.to_owned()))) }
}

fn is_text(path: &Path) -> Result<bool, LosslessError> {
    Ok(std::str::from_utf8(&fs_err::read(path)?).is_ok())
}

/// Whether the ordinary writer makes the same header from names, shapes and metadata.
fn is_ordinary(header: &SafetensorsHeader, path: &Path) -> bool {
    let metadata: Vec<(&str, &str)> =
        header.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    SafetensorsHeader::for_arrays(&metadata, header.arrays(), path)
        .is_ok_and(|made| made.text() == header.text())
}

fn size(path: &Path) -> u64 {
    fs_err::metadata(path).map_or(0, |about| about.len())
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn value<'f>(file: &'f File, key: &str) -> Option<&'f str> {
    file.manifest().metadata.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
}

/// Whether a file was written by [`compress`].
pub fn is_lossless(file: &File) -> bool {
    value(file, LOSSLESS).is_some()
}

/// Writes the files back into an existing directory; names and bytes of each.
///
/// # Errors
/// A missing or wrong base, damaged payloads, names that would leave the directory, a file whose hash is not the
/// stored one.
pub fn expand(
    file: &File,
    directory: &Path,
    base: Option<&str>,
    progress: &dyn Progress,
) -> Result<Vec<(String, u64)>, LosslessError> {
    let damaged = |message: String| LosslessError::Damaged { file: file.name().to_owned(), message };
    let base = open_base(file, base)?;
    let exact = match (&base, value(file, BASE)) {
        (Some(base), Some(hash)) => {
            let source: Arc<dyn TensorSource> = base.clone();
            Some(Exact::with_base(delta_recipe(hash), source))
        }
        _ => None,
    };
    let mut written = Vec::new();
    let mut names = BTreeSet::new();
    let total = file.arrays().len() as u64;
    let mut done = 0;
    for (shard_index, shard) in file.manifest().shards.iter().enumerate() {
        let path = inside(directory, &shard.name, &mut names).map_err(damaged)?;
        let entries: Vec<&ArrayEntry> =
            file.arrays().iter().filter(|entry| entry.shard == shard_index).collect();
        let mut read = |entries: &[&ArrayEntry]| -> Result<Vec<Array<'static>>, LosslessError> {
            progress.check()?;
            if let Some(entry) = entries.first() {
                progress.advance("expand", done, total, &entry.spec.name);
            }
            done += entries.len() as u64;
            entries.par_iter().map(|entry| decode(file, entry, exact.as_ref())).collect()
        };
        let is_bytes =
            matches!(&entries[..], [only] if only.spec.name == shard.name && only.spec.dtype == Dtype::U8);
        if is_bytes {
            let arrays = read(&entries)?;
            fs_err::write(&path, arrays.first().map_or(&[][..], |array| &array.bytes))?;
        } else {
            let text = match value(file, &format!("{HEADER}{}", shard.name)) {
                Some(text) => text.as_bytes().to_vec(),
                None => {
                    let metadata: Vec<(&str, &str)> =
                        shard.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                    let specs: Vec<ArraySpec> = entries.iter().map(|entry| entry.spec.clone()).collect();
                    SafetensorsHeader::for_arrays(&metadata, &specs, &path)?.text().to_vec()
                }
            };
            let mut writer = lamella_io::SafetensorsWriter::with_header(&path, &text)?;
            // Small arrays together, large ones alone: what is held at a time stays small.
            let mut rest = &entries[..];
            while !rest.is_empty() {
                let mut bytes = 0u64;
                let fits = rest.iter().take_while(|entry| {
                    bytes = bytes
                        .saturating_add(entry.spec.checked_size_bytes().map_or(u64::MAX, |size| size as u64));
                    bytes <= EXPANDED_TOGETHER
                });
                let (together, after) = rest.split_at(fits.count().max(1));
                for array in read(together)? {
                    writer.write(&array)?;
                }
                rest = after;
            }
            writer.finish()?;
        }
        written.push((shard.name.clone(), path));
    }
    for (name, bytes) in file.side_files()? {
        let path = inside(directory, &name, &mut names).map_err(damaged)?;
        fs_err::write(&path, &bytes)?;
        written.push((name, path));
    }
    for (name, path) in &written {
        let found = hex(&sha256_of_file(path)?);
        if value(file, &format!("{SHA256}{name}")) != Some(&found) {
            return Err(damaged(format!(
                "`{name}` came back with SHA-256 {found}, which is not the original's"
            )));
        }
    }
    Ok(written.into_iter().map(|(name, path)| (name, size(&path))).collect())
}

fn open_base(file: &File, base: Option<&str>) -> Result<Option<Arc<ModelDirectory>>, LosslessError> {
    let file_name = || file.name().to_owned();
    match (value(file, BASE), base) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(LosslessError::NoBaseNeeded { file: file_name() }),
        (Some(hash), None) => Err(LosslessError::NeedsBase { file: file_name(), hash: hash.to_owned() }),
        (Some(needed), Some(base)) => {
            let model = lamella_io::open_model(base)?;
            let found = hex(&model.content_hash()?);
            if found != needed {
                let (base, needed) = (base.to_owned(), needed.to_owned());
                return Err(LosslessError::WrongBase { base, file: file_name(), found, needed });
            }
            Ok(Some(Arc::new(model)))
        }
    }
}

fn decode(
    file: &File,
    entry: &ArrayEntry,
    with_base: Option<&Exact>,
) -> Result<Array<'static>, LosslessError> {
    let name = &entry.spec.name;
    let damaged = |message: String| LosslessError::Damaged { file: file.name().to_owned(), message };
    let layers = file.layers_of(name)?;
    let [layer] = &layers[..] else {
        return Err(damaged(format!("array `{name}` has {} layers", layers.len())));
    };
    if file.recipe(entry) == "exact" {
        let bytes = Planes::parse(&entry.spec, layer).and_then(|planes| planes.decode());
        let bytes = bytes.map_err(|source| LosslessError::Array { array: name.clone(), source })?;
        return Array::new(entry.spec.clone(), bytes).map_err(|error| damaged(error.to_string()));
    }
    match with_base {
        Some(exact) if exact.recipe().to_string() == file.recipe(entry) => {
            exact.decode(&entry.spec, &[layer]).map_err(|error| damaged(error.to_string()))
        }
        _ => Err(damaged(format!("array `{name}` has the recipe `{}`", file.recipe(entry)))),
    }
}

/// The path of a stored name, which must stay inside the directory and stand once.
fn inside(directory: &Path, name: &str, names: &mut BTreeSet<String>) -> Result<PathBuf, String> {
    let is_plain = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if name.is_empty() || !is_plain {
        return Err(format!("it names `{name}`, which would lie outside the directory"));
    }
    if !names.insert(name.to_owned()) {
        return Err(format!("it names `{name}` twice"));
    }
    let path = directory.join(name);
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent).map_err(|error| error.to_string())?;
    }
    Ok(path)
}
