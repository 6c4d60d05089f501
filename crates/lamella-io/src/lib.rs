//! Foreign formats: how models come in, and how they go out again.
//!
//! This crate alone knows other people's files. Everything above it sees a [`TensorSource`]: named arrays, handed
//! out one at a time.
//!
//! # Which type do I use?
//! | you have | use | arrays are |
//! |---|---|---|
//! | what a user typed: a path or `org/name` | [`open_model`] | as below |
//! | a model directory or any single weight file | [`ModelDirectory::open`] | as below |
//! | one safetensors file | [`SafetensorsFile`] | borrowed from the map |
//! | a GGUF file and wishes about its metadata | [`GgufFile`] | borrowed; quantised types decoded to `f32` on demand |
//! | a llama2.c `.bin`, version 0 or 1 | [`Llama2cFile`] | borrowed; query and key rows reordered on demand |
//! | an rwkv.cpp `.bin` | [`RwkvCppFile`] | borrowed; quantised types decoded to `f32` on demand |
//! | arrays to write | [`SafetensorsWriter`] | written in any order, the file appears when finished |
//!
//! # Cost
//! Opening reads headers only. An array costs nothing until its bytes are looked at; a decoded one costs its own
//! size while the caller holds it. [`ModelDirectory::content_hash`] reads every weight file once.
//!
//! # Hostile bytes
//! Headers are checked in full before anything is handed out: every array lies inside the file, none overlaps
//! another, and no length is believed before the bytes behind it were seen. Errors name the file and the array.
//! Weight files are memory-mapped: a process that shortens a file while it is open makes reading it fail with a
//! signal, as with every reader of this kind.
//!
//! # Example
//! ```
//! use lamella_codec::TensorSource;
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/stories260k");
//! let model = lamella_io::ModelDirectory::open(path)?;
//! assert_eq!(model.weight_bytes(), 1_044_992);
//! assert_eq!(model.config().unwrap()["num_hidden_layers"], 5);
//! let gate = model.array("model.layers.0.mlp.gate_proj.weight")?;
//! assert_eq!(gate.spec.matrix(), Some((172, 64)));
//! let side: Vec<String> = model.side_files()?.into_iter().map(|(name, _)| name).collect();
//! assert_eq!(side, ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`TensorSource`]: lamella_codec::TensorSource

mod checkpoint;
mod cursor;
mod directory;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod ggml;
mod gguf;
mod hub;
mod llama2c;
mod mapped;
mod rwkv_cpp;
mod safetensors;
mod sentencepiece;
mod side_files;
mod weight_files;

use std::path::Path;

pub use directory::{ModelDirectory, sha256_of_file};
pub use error::IoError;
pub use ggml::{BlockForm, Codes, GgmlType, Levels};
pub use gguf::{
    GgufArray, GgufField, GgufFile, GgufPlan, GgufSource, GgufTensor, GgufValue, GgufWriteError, GgufWriter,
};
pub use hub::{open_model, resolve_model};
pub use llama2c::{Llama2cFile, ScoredPieces, llama2c_pieces, llama2c_tokenizer_json};
pub use rwkv_cpp::RwkvCppFile;
pub use safetensors::{SafetensorsFile, SafetensorsHeader, SafetensorsWriter};
pub use side_files::{LARGEST_SIDE_FILE_BYTES, LeftOut};

/// A temporary file in the directory of `destination`, with the permissions an ordinary new file gets.
pub(crate) fn temporary_beside(destination: &Path) -> Result<tempfile::NamedTempFile, IoError> {
    let directory = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".lamella-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    Ok(builder.tempfile_in(directory)?)
}

/// Syncs a finished temporary file and renames it to its destination.
pub(crate) fn persist(file: tempfile::NamedTempFile, destination: &Path) -> Result<(), IoError> {
    file.as_file().sync_all()?;
    file.persist(destination).map_err(|error| error.error)?;
    Ok(())
}

/// A file of the shared test data, or `None` (and a printed reason) where it is not on this machine.
#[cfg(test)]
pub(crate) fn test_data(name: &str) -> Option<std::path::PathBuf> {
    let root = std::env::var_os("LAMELLA_DATA").map_or_else(
        || std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")),
        std::path::PathBuf::from,
    );
    let path = root.join(name);
    if !path.exists() {
        println!("skipped: no test data at {}", path.display());
        return None;
    }
    Some(path)
}
