//! Foreign formats: safetensors, Hugging Face directories, llama2.c checkpoints.

mod checkpoint;
mod cursor;
mod directory;
mod error;
mod ggml;
mod hub;
mod llama2c;
mod mapped;
mod rwkv_cpp;
mod safetensors;
mod side_files;

use std::path::Path;

pub use directory::{ModelDirectory, sha256_of_file};
pub use error::IoError;
pub use ggml::GgmlType;
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
