//! The model that is compressed, as all later steps see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamella_codec::TensorSource;
use lamella_io::ModelDirectory;
use lamella_lm::{LmError, Model};
use sha2::{Digest, Sha256};

use super::CompressError;

/// An opened model: its arrays, its side files and, where the architecture is known, the network.
#[derive(Debug)]
pub struct Input {
    /// The directory or file.
    pub directory: Arc<ModelDirectory>,
    /// The copied side files, in the order they are stored.
    pub side_files: Vec<(String, Vec<u8>)>,
    /// The network and its tokenizer; `None` where the architecture is not known.
    pub model: Option<Model>,
    /// Why the network is not known.
    pub unknown: Option<String>,
}

impl Input {
    /// Opens a directory, a weight file, or `org/name` from the hub.
    ///
    /// # Errors
    /// Nothing there, or damaged weights. An architecture that is not known is no error: the arrays are then
    /// compressed without calibration.
    pub fn open(name: &str) -> Result<Self, CompressError> {
        let directory = Arc::new(lamella_io::open_model(name)?);
        let side_files = directory.side_files()?;
        let by_name: BTreeMap<String, Vec<u8>> = side_files.iter().cloned().collect();
        let source: Arc<dyn TensorSource> = directory.clone();
        let (model, unknown) = match Model::open(source, &by_name) {
            Ok(model) => (Some(model), None),
            Err(error) => (None, Some(describe(&error))),
        };
        Ok(Self { directory, side_files, model, unknown })
    }

    /// SHA-256 over weights and side files, hexadecimal: what a spool is resumed by.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn content_hash(&self) -> Result<String, CompressError> {
        let mut hasher = Sha256::new();
        hasher.update(self.directory.content_hash()?);
        for (name, bytes) in &self.side_files {
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

fn describe(error: &LmError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
