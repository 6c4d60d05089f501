//! Which files of a model directory travel with its weights.
//!
//! The rule, so that a compressed model can be run, and no more than that is carried:
//!
//! * **Copied**: files at the top whose extension is `json`, `txt`, `model`, `jinja`, `tiktoken`, `bpe`, `vocab`,
//!   `spm`, `yaml`, `yml` or `py` (configuration, tokenizer, generation settings, chat template, vocabulary and
//!   merges, modelling code), and files of the same kinds in the folders that `modules.json` names
//!   (`1_Pooling/config.json`) and in `additional_chat_templates`.
//! * **Not copied**: weights of any framework and their indices, `calibration.txt` and `evaluation.txt` (texts for
//!   measuring, not for running), `README*`, `LICENSE*` and `NOTICE*`, pictures and everything else, hidden files,
//!   other folders, and any single file over [`LARGEST_SIDE_FILE_BYTES`].
//!
//! What is not copied is listed with its reason ([`LeftOut`]), except hidden files.

use std::path::{Path, PathBuf};

use crate::IoError;

/// Largest file that is copied: 32 MiB. The largest tokenizers in use have about 17 MB.
pub const LARGEST_SIDE_FILE_BYTES: u64 = 32 << 20;

const COPIED_EXTENSIONS: [&str; 11] =
    ["json", "txt", "model", "jinja", "tiktoken", "bpe", "vocab", "spm", "yaml", "yml", "py"];
const WEIGHT_EXTENSIONS: [&str; 13] = [
    "safetensors",
    "bin",
    "gguf",
    "ggml",
    "pt",
    "pth",
    "ckpt",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "tflite",
    "npz",
];

/// A file of the model directory that is not carried along.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Path within the directory, with `/` between folders; a folder ends in `/`.
    pub name: String,
    /// Its length; 0 for a folder.
    pub size_bytes: u64,
    /// Why, as a phrase: "weights of another framework".
    pub reason: String,
}

/// What a directory holds beside the weights that are read.
#[derive(Debug, Default, Clone)]
pub(crate) struct SideFiles {
    /// Name within the directory and place on disk, by name.
    pub(crate) copied: Vec<(String, PathBuf)>,
    pub(crate) left_out: Vec<LeftOut>,
}

impl SideFiles {
    /// Sorts a directory's entries by the rule. `weights` are the files that are read as weights.
    pub(crate) fn of_directory(root: &Path, weights: &[PathBuf]) -> Result<Self, IoError> {
        let mut found = Self::default();
        let folders = module_folders(root);
        found.walk(root, "", weights, &folders)?;
        found.copied.sort();
        found.left_out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn walk(
        &mut self,
        folder: &Path,
        prefix: &str,
        weights: &[PathBuf],
        folders: &[String],
    ) -> Result<(), IoError> {
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let name = format!("{prefix}{file_name}");
            if weights.contains(&path) || file_name.starts_with('.') {
                continue;
            }
            // Follows links: the hub's cache links every file. A dangling link is nothing.
            let Ok(about) = fs_err::metadata(&path) else {
                continue;
            };
            if about.is_dir() {
                if prefix.is_empty() && folders.contains(&name) {
                    self.walk(&path, &format!("{name}/"), weights, folders)?;
                } else {
                    let reason = "a folder that the model does not name";
                    self.left_out.push(LeftOut {
                        name: format!("{name}/"),
                        size_bytes: 0,
                        reason: reason.to_owned(),
                    });
                }
            } else if let Some(reason) = reason_against(file_name, about.len()) {
                self.left_out.push(LeftOut { name, size_bytes: about.len(), reason: reason.to_owned() });
            } else {
                self.copied.push((name, path));
            }
        }
        Ok(())
    }
}

fn reason_against(file_name: &str, size_bytes: u64) -> Option<&'static str> {
    let lower = file_name.to_ascii_lowercase();
    let extension = lower.rsplit_once('.').map_or("", |(_, extension)| extension);
    if WEIGHT_EXTENSIONS.contains(&extension) {
        return Some("weights that the model's configuration does not use here");
    }
    if lower.ends_with(".index.json") && !lower.ends_with(".safetensors.index.json") {
        return Some("the index of another framework's weights");
    }
    if ["calibration.txt", "evaluation.txt"].contains(&lower.as_str()) {
        return Some("text for measuring");
    }
    if ["readme", "license", "licence", "notice"].iter().any(|start| lower.starts_with(start)) {
        return Some("not needed to run the model");
    }
    if !COPIED_EXTENSIONS.contains(&extension) {
        return Some("not a kind of file that running the model needs");
    }
    (size_bytes > LARGEST_SIDE_FILE_BYTES).then_some("larger than 32 MiB")
}

/// Folders that `modules.json` (sentence-transformers) names, and the one for chat templates.
fn module_folders(root: &Path) -> Vec<String> {
    let mut folders = vec!["additional_chat_templates".to_owned()];
    let modules = fs_err::read(root.join("modules.json")).ok();
    if let Some(serde_json::Value::Array(modules)) =
        modules.and_then(|text| serde_json::from_slice(&text).ok())
    {
        let paths = modules.iter().filter_map(|module| module.get("path")?.as_str());
        folders.extend(paths.map(|path| path.trim_end_matches('/').to_owned()));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_sorts_a_typical_directory() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let modules = r#"[{"path":""},{"path":"1_Pooling"},{"path":"../elsewhere"}]"#;
        fs_err::create_dir(root.join("1_Pooling")).unwrap();
        fs_err::create_dir(root.join("onnx")).unwrap();
        for (name, text) in [
            ("config.json", "{}"),
            ("tokenizer.json", "{}"),
            ("vocab.txt", "a"),
            ("chat_template.jinja", "a"),
            ("modules.json", modules),
            ("1_Pooling/config.json", "{}"),
            ("onnx/config.json", "{}"),
            ("model.safetensors", ""),
            ("pytorch_model.bin", ""),
            ("pytorch_model.bin.index.json", ""),
            ("README.md", ""),
            ("LICENSE.txt", ""),
            ("calibration.txt", ""),
            (".gitattributes", ""),
            ("picture.png", ""),
        ] {
            fs_err::write(root.join(name), text).unwrap();
        }
        let large = fs_err::File::create(root.join("large.json")).unwrap();
        large.set_len(LARGEST_SIDE_FILE_BYTES + 1).unwrap();
        let found = SideFiles::of_directory(root, &[root.join("model.safetensors")]).unwrap();
        let copied: Vec<_> = found.copied.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            copied,
            [
                "1_Pooling/config.json",
                "chat_template.jinja",
                "config.json",
                "modules.json",
                "tokenizer.json",
                "vocab.txt"
            ]
        );
        let left: Vec<_> = found.left_out.iter().map(|left| left.name.as_str()).collect();
        assert_eq!(
            left,
            [
                "LICENSE.txt",
                "README.md",
                "calibration.txt",
                "large.json",
                "onnx/",
                "picture.png",
                "pytorch_model.bin",
                "pytorch_model.bin.index.json"
            ]
        );
    }
}
