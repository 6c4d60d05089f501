//! `org/name`: models of the Hugging Face hub, through its own client and cache.

use std::path::{Component, Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::{IoError, ModelDirectory};

/// Opens what a user named: a directory, a weight file, or `org/name` of the hub.
///
/// What exists on this machine wins. See [`resolve_model`] for what is taken as a hub name.
///
/// # Errors
/// As [`resolve_model`] and [`ModelDirectory::open`].
pub fn open_model(name: &str) -> Result<ModelDirectory, IoError> {
    ModelDirectory::open(resolve_model(name)?)
}

/// Turns what a user named into a path on this machine, downloading where needed.
///
/// A text is a hub name if nothing of that name exists here, it has the form `org/name` in the characters the
/// hub allows, no extension of a weight file, and no local directory is called `org`. The files go into the
/// client's own cache (`HF_HOME`); where the hub cannot be reached, a cached snapshot serves.
///
/// # Errors
/// [`IoError::NotFound`] for what looks like a path, [`IoError::Hub`] where the hub says no.
pub fn resolve_model(name: &str) -> Result<PathBuf, IoError> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if !is_hub_name(name) {
        return Err(IoError::NotFound { path: path.to_owned() });
    }
    let repository = Repo::new(name.to_owned(), RepoType::Model);
    match download(name, repository.clone()) {
        Ok(directory) => Ok(directory),
        Err(message) => cached(repository).ok_or(IoError::Hub { repository: name.to_owned(), message }),
    }
}

fn is_hub_name(name: &str) -> bool {
    let Some((organisation, model)) = name.split_once('/') else {
        return false;
    };
    let is_allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let is_weight_file =
        [".safetensors", ".gguf", ".bin", ".lam", ".json"].iter().any(|suffix| name.ends_with(suffix));
    is_allowed(organisation) && is_allowed(model) && !is_weight_file && !Path::new(organisation).is_dir()
}

fn cached(repository: Repo) -> Option<PathBuf> {
    let cache = Cache::from_env().repo(repository);
    let file =
        ["model.safetensors", "model.safetensors.index.json"].iter().find_map(|name| cache.get(name))?;
    file.parent().map(Path::to_owned)
}

fn download(name: &str, repository: Repo) -> Result<PathBuf, String> {
    let api = ApiBuilder::from_env().with_progress(false).build().map_err(|error| error.to_string())?;
    let repository: ApiRepo = api.repo(repository);
    let about = repository.info().map_err(|error| error.to_string())?;
    let names: Vec<String> = about.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    let wanted = wanted(&names);
    let weights = wanted.iter().find(|name| name.ends_with(".safetensors"));
    let Some(weights) = weights else {
        return Err(format!("`{name}` holds no safetensors weights"));
    };
    let mut directory = None;
    for file in &wanted {
        let path = repository.get(file).map_err(|error| format!("`{file}`: {error}"))?;
        if file == weights {
            directory = path.parent().map(Path::to_owned);
        }
    }
    directory.ok_or_else(|| "the client gave no directory".to_owned())
}

/// The files of a repository that a model needs, by the names the hub lists.
fn wanted(names: &[String]) -> Vec<String> {
    let is_top = |name: &str| !name.contains('/');
    let has_single = names.iter().any(|name| name == "model.safetensors");
    let is_shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let has_shards = names.iter().any(|name| is_shard(name));
    let is_weight = |name: &str| {
        is_top(name)
            && if has_single {
                name == "model.safetensors"
            } else if has_shards {
                is_shard(name)
            } else {
                name.ends_with(".safetensors")
            }
    };
    let is_side = |name: &str| {
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let is_index = name.ends_with(".index.json");
        let is_text =
            ["json", "txt", "model", "jinja", "tiktoken", "bpe", "vocab", "spm"].contains(&extension);
        let depth = name.matches('/').count();
        let is_module = depth == 1 && name.starts_with(|c: char| c.is_ascii_digit());
        is_text && (depth == 0 || is_module) && (!is_index || name.ends_with(".safetensors.index.json"))
    };
    let is_safe = |name: &str| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    names.iter().filter(|name| is_safe(name) && (is_weight(name) || is_side(name))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_hub_names_are_told_apart() {
        for name in ["meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B"] {
            assert!(is_hub_name(name), "{name}");
        }
        let paths =
            ["model", "./a/b", "../a", "/a/b", "a/b/c", "a/b.safetensors", "src/nothing", "a b/c", "a/"];
        for name in paths {
            assert!(!is_hub_name(name), "{name}");
        }
        let message = resolve_model("src/nothing").unwrap_err().to_string();
        assert!(message.contains("no file or directory `src/nothing`"), "{message}");
    }

    #[test]
    fn only_what_a_model_needs_is_fetched() {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let listed = names(&[
            ".gitattributes",
            "../evil.json",
            "/etc/evil.json",
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "original/params.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
        ]);
        let expected = names(&[
            "1_Pooling/config.json",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ]);
        assert_eq!(wanted(&listed), expected);
    }
}
