//! Which files of a directory hold its weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::IoError;

const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// An index of shards: where it lies, and its file for each array.
pub(crate) type Index = (PathBuf, BTreeMap<String, String>);

/// What holds the weights of a directory.
pub(crate) enum Found {
    /// safetensors files.
    Shards(Vec<PathBuf>),
    /// safetensors files that an index names.
    Indexed(Vec<PathBuf>, Index),
    /// One GGUF file.
    Gguf(PathBuf),
}

/// The weight files of a directory, by the order of preference that other tools have: `model.safetensors`, an
/// index, any safetensors, one GGUF file.
pub(crate) fn find_weights(root: &Path) -> Result<Found, IoError> {
    let single = root.join("model.safetensors");
    if single.is_file() {
        return Ok(Found::Shards(vec![single]));
    }
    let mut names = Vec::new();
    for entry in fs_err::read_dir(root)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    let preferred = names.iter().find(|name| *name == "model.safetensors.index.json");
    if let Some(index_name) = preferred.or_else(|| names.iter().find(|name| name.ends_with(INDEX_SUFFIX))) {
        let index_path = root.join(index_name);
        let (files, weight_map) = read_index(root, &index_path)?;
        return Ok(Found::Indexed(files, (index_path, weight_map)));
    }
    let files: Vec<_> =
        names.iter().filter(|name| name.ends_with(".safetensors")).map(|name| root.join(name)).collect();
    if files.is_empty() {
        let ggufs: Vec<_> = names.iter().filter(|name| name.ends_with(".gguf")).collect();
        if let [only] = ggufs[..] {
            return Ok(Found::Gguf(root.join(only)));
        }
        let others: Vec<_> = names
            .iter()
            .filter(|name| {
                [".gguf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"]
                    .iter()
                    .any(|end| name.ends_with(end))
            })
            .map(|name| format!("`{name}`"))
            .collect();
        let found = match others.len() {
            0 => String::new(),
            _ => format!(
                "; found {}: name one of these files, or save PyTorch weights as safetensors",
                others.join(", ")
            ),
        };
        return Err(IoError::NoWeights { path: root.to_owned(), found });
    }
    Ok(Found::Shards(files))
}

fn read_index(root: &Path, index_path: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, String>), IoError> {
    #[derive(serde::Deserialize)]
    struct IndexJson {
        weight_map: BTreeMap<String, String>,
    }
    let index: IndexJson = serde_json::from_slice(&fs_err::read(index_path)?)
        .map_err(|error| IoError::damaged(index_path, format!("it is no index of shards: {error}")))?;
    let mut shard_names: Vec<&String> = index.weight_map.values().collect();
    shard_names.sort();
    shard_names.dedup();
    let mut files = Vec::new();
    for shard_name in shard_names {
        let is_plain = Path::new(shard_name).file_name().is_some_and(|name| name == shard_name.as_str());
        if !is_plain {
            return Err(IoError::damaged(
                index_path,
                format!("it names the shard `{shard_name}`, which is not a file name in this directory"),
            ));
        }
        let path = root.join(shard_name);
        if !path.is_file() {
            let array = index.weight_map.iter().find(|(_, name)| *name == shard_name);
            let array = array.map_or("", |(array, _)| array.as_str());
            return Err(IoError::damaged_array(
                index_path,
                array,
                format!("its shard `{shard_name}` is missing: the download is not complete"),
            ));
        }
        files.push(path);
    }
    Ok((files, index.weight_map))
}
