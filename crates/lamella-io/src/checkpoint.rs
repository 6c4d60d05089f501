//! What single-file checkpoints of other tools have in common.

use lamella_codec::TensorSource;
use serde_json::Value;

use crate::{IoError, LeftOut};

/// A checkpoint that carries its configuration, and perhaps its tokenizer, inside.
pub(crate) trait Checkpoint: TensorSource + std::fmt::Debug {
    /// A `config.json` made from what the file says.
    fn config(&self) -> Option<Value>;
    /// A `tokenizer.json` made from what the file (or one beside it) says, where there is one.
    fn tokenizer(&self) -> Result<MadeTokenizer, IoError>;
    /// Length of the file.
    fn size_bytes(&self) -> u64;
}

/// What became of a checkpoint's tokenizer.
#[derive(Debug)]
pub(crate) enum MadeTokenizer {
    /// The format has none.
    Absent,
    /// The text of a `tokenizer.json`.
    Made(String),
    /// There is one that cannot be converted.
    LeftOut(LeftOut),
}
