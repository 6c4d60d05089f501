//! What can go wrong with foreign files.

use std::path::{Path, PathBuf};

/// Why a foreign file could not be read or written. Every message names the file, and the array where one is
/// concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// A file contradicts its own format.
    #[error("`{}` is damaged: {message}", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// What does not fit, with the numbers.
        message: String,
    },
    /// One array of a file contradicts the format.
    #[error("array `{array}` in `{}` is damaged: {message}", path.display())]
    DamagedArray {
        /// File.
        path: PathBuf,
        /// Array.
        array: String,
        /// What does not fit, with the numbers.
        message: String,
    },
    /// An array has an element type that Lamella does not know.
    #[error("array `{array}` in `{}` has the unknown element type `{dtype}`; known are {known}", path.display())]
    UnknownDtype {
        /// File.
        path: PathBuf,
        /// Array.
        array: String,
        /// The name found.
        dtype: String,
        /// Every name that is read.
        known: String,
    },
    /// The same array stands twice.
    #[error("array `{array}` is in both `{}` and `{}`", first.display(), second.display())]
    Duplicate {
        /// Array.
        array: String,
        /// First file.
        first: PathBuf,
        /// Second file.
        second: PathBuf,
    },
    /// A text looks like a path, and nothing is there.
    #[error(
        "there is no file or directory `{}`; give a model directory, a weight file, or `org/name` of the \
         Hugging Face hub",
        path.display()
    )]
    NotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// A directory holds no weights that can be read.
    #[error("`{}` holds no weights that can be read{found}", path.display())]
    NoWeights {
        /// Directory.
        path: PathBuf,
        /// What was found instead, as the rest of the sentence; empty where nothing was.
        found: String,
    },
    /// A file is of no known kind.
    #[error(
        "`{}` is no checkpoint this version reads (safetensors, GGUF, llama2.c or rwkv.cpp `.bin`)",
        path.display()
    )]
    UnknownFormat {
        /// File.
        path: PathBuf,
    },
    /// The model hub could not be reached or does not have what is needed.
    #[error(
        "`{repository}` cannot be fetched from the Hugging Face hub: {message}; where there is no network, \
         download it elsewhere and give its local directory"
    )]
    Hub {
        /// `org/name`.
        repository: String,
        /// What the hub client said.
        message: String,
    },
    /// An array was handed to a writer that does not expect it.
    #[error("array `{array}` does not belong into `{}`: {message}", path.display())]
    Unexpected {
        /// File being written.
        path: PathBuf,
        /// Array.
        array: String,
        /// Found against expected.
        message: String,
    },
}

impl IoError {
    /// A file that contradicts its format.
    pub(crate) fn damaged(path: &Path, message: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), message: message.into() }
    }
    /// An array that contradicts its file's format.
    pub(crate) fn damaged_array(path: &Path, array: &str, message: impl Into<String>) -> Self {
        Self::DamagedArray { path: path.to_owned(), array: array.to_owned(), message: message.into() }
    }
}
