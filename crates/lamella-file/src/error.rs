//! What can be wrong with a file, and what to do about it.

use std::path::PathBuf;

/// Why bytes are not a manifest, or a manifest cannot be written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The first bytes are not those of a `.lam` file.
    #[error("it does not begin with the bytes `8b 4c 41 4d` of a .lam file (found `{found}`)")]
    Magic {
        /// The first bytes in hexadecimal.
        found: String,
    },
    /// The file is of a version this reader does not know.
    #[error("it is of format version {found}; this program reads version {known}")]
    Version {
        /// Version of the file.
        found: u8,
        /// Version this reader knows.
        known: u8,
    },
    /// The bytes end inside something.
    #[error("it ends inside its {what}: {needed} bytes needed, found {found}")]
    Truncated {
        /// What ends early.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The manifest does not have the checksum the header states.
    #[error("its manifest fails its checksum (stated {stated:08x}, found {found:08x})")]
    Checksum {
        /// CRC-32 in the header.
        stated: u32,
        /// CRC-32 of the bytes.
        found: u32,
    },
    /// A number is beyond the format's limits.
    #[error("its manifest states {found} {what}; at most {allowed} are allowed")]
    Limit {
        /// What is counted, in the plural.
        what: &'static str,
        /// The number found.
        found: u64,
        /// The largest number allowed.
        allowed: u64,
    },
    /// The manifest contradicts itself.
    #[error("its manifest is invalid: {message}")]
    Invalid {
        /// What does not fit, with the thing's name.
        message: String,
    },
}

impl ManifestError {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into() }
    }
}

/// What the layers before a damaged one still hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Intact {
    /// Whole layers before the damaged one.
    pub layers: usize,
    /// Whether they hold every array.
    pub is_complete: bool,
    /// Bits per element of the file up to there.
    pub bits_per_element: f64,
    /// Bits per element of the whole file.
    pub whole_bits_per_element: f64,
}

/// Why a file cannot be opened, read, cut or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("{action} failed")]
    Io {
        /// What was attempted, with the path: "reading `model.lam`".
        action: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The manifest cannot be read.
    #[error("`{file}` cannot be opened: {source}")]
    Manifest {
        /// File.
        file: String,
        /// Reason.
        source: ManifestError,
    },
    /// A description cannot be written as a manifest.
    #[error("the file cannot be described: {0}")]
    Description(#[from] ManifestError),
    /// The file ends before every array has its first layer.
    #[error(
        "`{file}` ends before array `{array}`: {found} bytes of the {needed} that its smallest complete form needs"
    )]
    Incomplete {
        /// File.
        file: String,
        /// First array without a layer.
        array: String,
        /// Bytes there are.
        found: u64,
        /// Bytes of the shortest valid prefix.
        needed: u64,
    },
    /// A layer's payload changed.
    #[error(
        "layer {layer} of `{file}` fails its checksum (bytes {start} to {end}, array `{array}`): the file changed after it was written"
    )]
    LayerChecksum {
        /// File.
        file: String,
        /// Position in the stack.
        layer: usize,
        /// The array it refines (the first of a bundle).
        array: String,
        /// Ordinal within the array.
        ordinal: usize,
        /// First byte.
        start: u64,
        /// First byte after it.
        end: u64,
        /// What the layers before it hold.
        intact: Intact,
    },
    /// A byte between two payloads is not zero.
    #[error("byte {offset} of `{file}` is padding and must be zero: the file changed after it was written")]
    Padding {
        /// File.
        file: String,
        /// Where.
        offset: u64,
    },
    /// There are bytes after the last layer.
    #[error("`{file}` has {found} bytes, its manifest accounts for {expected}")]
    Trailing {
        /// File.
        file: String,
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The side files changed or contradict the manifest.
    #[error("the side files of `{file}` (bytes {start} to {end}) are damaged: {message}")]
    SideFiles {
        /// File.
        file: String,
        /// First byte.
        start: u64,
        /// First byte after them.
        end: u64,
        /// What does not fit.
        message: String,
    },
    /// No array has this name.
    #[error("`{file}` holds no array named `{name}`")]
    UnknownArray {
        /// File.
        file: String,
        /// Name asked for.
        name: String,
    },
    /// Cutting would take nothing away.
    #[error("`{file}` has nothing to cut: {reason}")]
    NothingToCut {
        /// File.
        file: String,
        /// Why.
        reason: String,
    },
    /// Cutting so far would lose an array.
    #[error(
        "`{file}` cannot be cut to {asked} bytes: array `{array}` would be lost; the smallest complete form has {smallest} bytes"
    )]
    CutTooSmall {
        /// File.
        file: String,
        /// Bytes asked for.
        asked: u64,
        /// First array that would have no layer.
        array: String,
        /// Bytes of the smallest form that can be cut.
        smallest: u64,
    },
    /// The spool directory holds something this program did not put there.
    #[error("`{path}` is not a spool directory of this program: it holds `{entry}`")]
    ForeignSpool {
        /// Directory.
        path: PathBuf,
        /// Unexpected entry.
        entry: String,
    },
    /// Another process writes the same output.
    #[error("`{path}` is in use: another process is writing the same output")]
    SpoolInUse {
        /// Directory.
        path: PathBuf,
    },
    /// Assembling found an array without layers.
    #[error("array `{array}` has no finished layer in `{path}`")]
    Unfinished {
        /// Array.
        array: String,
        /// Spool directory.
        path: PathBuf,
    },
}

impl FileError {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
    pub(crate) fn manifest(file: &str) -> impl FnOnce(ManifestError) -> Self + '_ {
        move |source| Self::Manifest { file: file.to_owned(), source }
    }

    /// Lines that explain the numbers of the message; a program prints them indented under it.
    pub fn details(&self) -> Vec<String> {
        match self {
            Self::LayerChecksum { layer, intact, .. } if intact.is_complete => vec![format!(
                "layers 0 to {} are intact and hold every array, at {:.2} bits per element instead of {:.2}",
                layer.saturating_sub(1),
                intact.bits_per_element,
                intact.whole_bits_per_element
            )],
            Self::LayerChecksum { layer: 0, .. } => vec!["no layer before it is intact".to_owned()],
            Self::LayerChecksum { layer, .. } => {
                vec![format!("layers 0 to {} are intact but do not hold every array", layer - 1)]
            }
            _ => Vec::new(),
        }
    }

    /// What to do next, each a sentence with a command to paste where there is one.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::LayerChecksum { file, start, end, intact, .. } => {
                let mut hints = Vec::new();
                if intact.is_complete && intact.layers > 0 {
                    hints.push(format!(
                        "`head -c {start} {file} > intact.lam` keeps what is intact; it opens like any other file"
                    ));
                }
                hints.push(format!("to mend the file, fetch bytes {start} to {end} again"));
                hints
            }
            Self::Incomplete { needed, .. } => {
                vec![format!("fetch at least the first {needed} bytes of the original file")]
            }
            Self::CutTooSmall { file, smallest, .. } => {
                vec![format!("`lamella cut {file} --size {smallest}` gives the smallest complete file")]
            }
            Self::Manifest { source: ManifestError::Version { .. }, .. } => {
                vec!["read it with the release that wrote it, or write it again".to_owned()]
            }
            Self::ForeignSpool { path, .. } => {
                vec![format!("move `{}` away, or choose another output name", path.display())]
            }
            Self::SpoolInUse { .. } => {
                vec!["wait for the other process, or choose another output name".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}
