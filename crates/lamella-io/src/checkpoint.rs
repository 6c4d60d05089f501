//! What single-file checkpoints of other tools have in common.

use lamella_codec::TensorSource;
use serde_json::Value;

use crate::IoError;

/// A checkpoint that carries its configuration, and perhaps its tokenizer, inside.
pub(crate) trait Checkpoint: TensorSource + std::fmt::Debug {
    /// A `config.json` made from what the file says.
    fn config(&self) -> Option<Value>;
    /// Files made from what the file says, `tokenizer.json` for instance. Not `config.json`.
    fn made_files(&self) -> Result<Vec<(String, Vec<u8>)>, IoError>;
    /// Length of the file.
    fn size_bytes(&self) -> u64;
}
