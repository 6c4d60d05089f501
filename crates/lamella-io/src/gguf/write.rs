//! Writing GGUF files.
//!
//! [`GgufPlan`] says what a file of a Hugging Face model holds: metadata and tokenizer (`write_metadata.rs`,
//! `write_tokenizer.rs`) and every tensor with the arrays it is made of (`write_names.rs`). [`GgufWriter`] then
//! takes the tensors' bytes, one at a time.

#[path = "write_metadata.rs"]
mod metadata;
#[path = "write_names.rs"]
mod names;
#[path = "write_tokenizer.rs"]
mod tokenizer;

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::header::MAGIC;
use crate::IoError;
use crate::ggml::GgmlType;

pub use metadata::GgufPlan;
pub use names::GgufSource;

const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;

/// Why a model cannot be written as GGUF.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum GgufWriteError {
    #[error(transparent)]
    Io(#[from] IoError),
    #[error("models of the kind `{model_type}` cannot be written as GGUF; known are {known}")]
    Architecture { model_type: String, known: &'static str },
    #[error("`config.json` {message}")]
    Config { message: String },
    #[error("the tokenizer cannot be written as GGUF: `tokenizer.json` {message}")]
    Tokenizer { message: String },
    #[error("array `{array}` cannot be written as GGUF: {message}")]
    Array { array: String, message: String },
}

/// A metadata value to write.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GgufField {
    /// `u32`.
    U32(u32),
    /// `f32`.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// `i32` numbers.
    I32s(Vec<i32>),
    /// `f32` numbers.
    F32s(Vec<f32>),
}

impl GgufField {
    fn write(&self, out: &mut Vec<u8>) {
        let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
        let array = |out: &mut Vec<u8>, element: u32, length: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(element.to_le_bytes());
            out.extend((length as u64).to_le_bytes());
        };
        match self {
            Self::U32(value) => {
                kind(out, 4);
                out.extend(value.to_le_bytes());
            }
            Self::F32(value) => {
                kind(out, 6);
                out.extend(value.to_le_bytes());
            }
            Self::Bool(value) => {
                kind(out, 7);
                out.push(u8::from(*value));
            }
            Self::Text(value) => {
                kind(out, 8);
                write_text(value, out);
            }
            Self::Texts(values) => {
                array(out, 8, values.len());
                values.iter().for_each(|value| write_text(value, out));
            }
            Self::I32s(values) => {
                array(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                array(out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor as the header lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// GGUF's name, `blk.0.attn_q.weight` for instance.
    pub name: String,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub kind: GgmlType,
}

impl GgufTensor {
    /// Bytes of the tensor, or `None` where its rows are no whole blocks.
    pub fn size_bytes(&self) -> Option<usize> {
        let row = self.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.kind.block_elements()) {
            return None;
        }
        self.kind
            .size_bytes(self.shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?)
    }
}

/// Writes one GGUF file, version 3, without holding it in memory.
///
/// The header is fixed first; tensors then come in any order, each exactly once. The file takes its place only in [`GgufWriter::finish`].
#[derive(Debug)]
pub struct GgufWriter {
    destination: PathBuf,
    tensors: Vec<GgufTensor>,
    /// Where each tensor begins in the file.
    starts: Vec<u64>,
    is_written: Vec<bool>,
    position: u64,
    file: BufWriter<NamedTempFile>,
}

impl GgufWriter {
    /// The header of a file with these fields and tensors: its length is the file's first byte of data.
    ///
    /// # Errors
    /// A tensor whose rows are no whole blocks.
    pub fn header(fields: &[(String, GgufField)], tensors: &[GgufTensor]) -> Result<Vec<u8>, GgufWriteError> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((fields.len() as u64).to_le_bytes());
        for (key, field) in fields {
            write_text(key, &mut out);
            field.write(&mut out);
        }
        let mut offset = 0usize;
        for tensor in tensors {
            let size = tensor.size_bytes().ok_or_else(|| GgufWriteError::Array {
                array: tensor.name.clone(),
                message: format!("{:?} is no whole number of {} blocks", tensor.shape, tensor.kind.name()),
            })?;
            write_text(&tensor.name, &mut out);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&extent| out.extend((extent as u64).to_le_bytes()));
            out.extend(tensor.kind.code().to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += size.next_multiple_of(ALIGNMENT);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        Ok(out)
    }

    /// Begins a file.
    ///
    /// # Errors
    /// A tensor whose rows are no whole blocks, or a destination that cannot be written.
    pub fn create(
        destination: impl AsRef<Path>,
        fields: &[(String, GgufField)],
        tensors: Vec<GgufTensor>,
    ) -> Result<Self, GgufWriteError> {
        let header = Self::header(fields, &tensors)?;
        let temporary = crate::temporary_beside(destination.as_ref())?;
        let mut file = BufWriter::with_capacity(1 << 20, temporary);
        file.write_all(&header).map_err(IoError::from)?;
        let position = header.len() as u64;
        let mut end = position;
        let mut starts = Vec::with_capacity(tensors.len());
        for tensor in &tensors {
            starts.push(end);
            end += tensor.size_bytes().unwrap_or(0).next_multiple_of(ALIGNMENT) as u64;
        }
        let is_written = vec![false; tensors.len()];
        Ok(Self { destination: destination.as_ref().to_owned(), tensors, starts, is_written, position, file })
    }

    /// Writes one tensor to its place; tensors may come in any order.
    ///
    /// # Errors
    /// The header has no such tensor, it was written before, its bytes have another length, or the disk refuses.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), GgufWriteError> {
        let unexpected = |message: String| GgufWriteError::Array { array: name.to_owned(), message };
        let Some(ordinal) = self.tensors.iter().position(|tensor| tensor.name == name) else {
            return Err(unexpected("the header does not name it".to_owned()));
        };
        if self.is_written[ordinal] {
            return Err(unexpected("it was written before".to_owned()));
        }
        let size = self.tensors[ordinal].size_bytes().unwrap_or(0);
        if bytes.len() != size {
            return Err(unexpected(format!("{} bytes, its shape and type need {size}", bytes.len())));
        }
        if self.starts[ordinal] != self.position {
            self.file.seek(SeekFrom::Start(self.starts[ordinal])).map_err(IoError::from)?;
        }
        let padding = size.next_multiple_of(ALIGNMENT) - size;
        self.file.write_all(bytes).map_err(IoError::from)?;
        self.file.write_all(&[0; ALIGNMENT][..padding]).map_err(IoError::from)?;
        self.position = self.starts[ordinal] + (size + padding) as u64;
        self.is_written[ordinal] = true;
        Ok(())
    }

    /// Flushes to the disk and puts the file in its place.
    ///
    /// # Errors
    /// A tensor is missing, or the disk refuses.
    pub fn finish(self) -> Result<(), GgufWriteError> {
        if let Some(ordinal) = self.is_written.iter().position(|&is_written| !is_written) {
            let tensor = &self.tensors[ordinal];
            return Err(GgufWriteError::Array {
                array: tensor.name.clone(),
                message: "the file is finished and it was never written".to_owned(),
            });
        }
        let file =
            self.file.into_inner().map_err(std::io::IntoInnerError::into_error).map_err(IoError::from)?;
        Ok(crate::persist(file, &self.destination)?)
    }
}
