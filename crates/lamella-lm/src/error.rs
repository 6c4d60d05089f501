//! Why a model could not be opened or run.

use lamella_codec::{ArrayError, SourceError};

/// Why a model could not be opened or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LmError {
    /// The configuration names an architecture this runtime does not know.
    #[error("architecture `{architecture}` is not known to the language-model runtime")]
    UnknownArchitecture {
        /// What the configuration says: the first of `architectures`, else `model_type`.
        architecture: String,
    },
    /// A field of the configuration is missing or out of range.
    #[error("configuration field `{field}`: {message}")]
    Config {
        /// Field, with the path of its parents.
        field: String,
        /// Found against allowed.
        message: String,
    },
    /// The checkpoint lacks an array that the architecture needs.
    #[error("`{architecture}` needs array `{name}`, which the checkpoint does not hold")]
    MissingArray {
        /// Architecture.
        architecture: String,
        /// Array.
        name: String,
    },
    /// The checkpoint holds an array that would change the result, and the configuration does not mention it.
    #[error(
        "the checkpoint holds array `{name}`, which the configuration of `{architecture}` does not allow for"
    )]
    UnexpectedArray {
        /// Architecture.
        architecture: String,
        /// Array.
        name: String,
    },
    /// An array's shape is not the one the configuration asks for.
    #[error("array `{name}` has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// Array.
        name: String,
        /// Shape by configuration.
        expected: Vec<usize>,
        /// Shape in the checkpoint.
        found: Vec<usize>,
    },
    /// An array could not be handed out by its source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An array's bytes could not be read as numbers.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// A token is outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    Token {
        /// Token.
        token: u32,
        /// Tokens there are.
        vocab_size: usize,
    },
    /// A sequence is longer than the network has positions for.
    #[error("a sequence of {tokens} tokens does not fit the {positions} learned positions")]
    TooLong {
        /// Tokens of the sequence, with those already in its cache.
        tokens: usize,
        /// Positions the network has learned.
        positions: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt has no tokens; a network needs at least one to predict from")]
    EmptyPrompt,
    /// An option of a generation is out of range.
    #[error("generation option `{option}` is {value}, allowed is {allowed}")]
    Option {
        /// Option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        allowed: &'static str,
    },
    /// A block index beyond the last.
    #[error("block {index} does not exist: the network has {n_blocks}")]
    Block {
        /// Index asked for.
        index: usize,
        /// Blocks there are.
        n_blocks: usize,
    },
    /// The network's family cannot do what was asked.
    #[error("`{architecture}` {message}")]
    Unsupported {
        /// Architecture.
        architecture: String,
        /// What it cannot do, as a sentence without subject.
        message: String,
    },
    /// A side file that is needed does not exist or cannot be read.
    #[error("side file `{name}`: {message}")]
    SideFile {
        /// File.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// A tokenizer refused a text, or its own description.
    #[error("tokenizer: {message}")]
    Tokenizer {
        /// What it said.
        message: String,
    },
}
