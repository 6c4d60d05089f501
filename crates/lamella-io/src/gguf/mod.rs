//! GGUF: the single-file checkpoints of llama.cpp.
//!
//! A file is the magic `GGUF`, `u32` version (2 or 3), `u64` numbers of tensors and of metadata values; the
//! metadata (key, kind, value); per tensor its name, extents (fastest first), type and offset; then the data,
//! each tensor aligned. Texts are `u64` length and bytes.
//!
//! What comes out is as near a Hugging Face checkpoint as the file allows:
//!
//! * for the Llama family (`llama`: Llama, Mistral, Mixtral) and Qwen (`qwen2`, `qwen3`, with or without experts)
//!   arrays have their Hugging Face names, stacked experts are handed out one by one, and query and key rows of
//!   `llama` files, which the converter reordered for adjacent rotary pairs, are put back; other architectures
//!   keep GGUF's names, extents turned round;
//! * quantised types are decoded to `f32` when they are asked for, bit for bit as the `gguf` package does; `F16`,
//!   `BF16` and integers stay as they are;
//! * `config.json` and `tokenizer.json` are made from the metadata.

mod config;
mod header;
mod names;
mod tokenizer;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use lamella_codec::{Array, ArraySpec, SourceError, TensorSource};
use serde_json::Value;

pub use self::header::{GgufArray, GgufValue};
use self::header::{Header, KIND_TEXT, Tensor};
use self::names::{Family, Named};
pub use self::write::{GgufField, GgufPlan, GgufSource, GgufTensor, GgufWriteError, GgufWriter};
use crate::checkpoint::{Checkpoint, MadeTokenizer};
use crate::cursor::Cursor;
use crate::ggml::GgmlType;
use crate::llama2c::pairs_to_halves;
use crate::mapped::MappedFile;
use crate::{IoError, LeftOut};

/// More experts than any model has; bounds the names that one tensor can stand for.
const MOST_EXPERTS: usize = 4096;

/// An open GGUF file. Opening reads the header only.
#[derive(Debug)]
pub struct GgufFile {
    map: MappedFile,
    header: Header,
    specs: Vec<ArraySpec>,
    places: BTreeMap<String, Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    ordinal: usize,
    start: usize,
    size_bytes: usize,
    kind: GgmlType,
    /// Heads whose rows are reordered; 0 for arrays that stay as they lie.
    reordered_heads: usize,
}

impl GgufFile {
    /// Whether a file begins with GGUF's magic.
    pub(crate) fn is_one(file: &[u8]) -> bool {
        file.starts_with(header::MAGIC)
    }

    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// The file cannot be opened, is version 1 or big-endian, or a field contradicts the format or the file's
    /// length; the message names the tensor where one is concerned.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IoError> {
        let map = MappedFile::open(path.as_ref())?;
        let header = Header::read(&map, path.as_ref())?;
        let mut file = Self { map, header, specs: Vec::new(), places: BTreeMap::new() };
        file.name_arrays(path.as_ref())?;
        Ok(file)
    }

    fn name_arrays(&mut self, path: &Path) -> Result<(), IoError> {
        let architecture = self.text("general.architecture").unwrap_or("").to_owned();
        let number = |key: &str| self.unsigned(&format!("{architecture}.{key}")).unwrap_or(0);
        let family = Family::of(&architecture, number("expert_count"));
        let query_heads = number("attention.head_count") as usize;
        let key_heads = match number("attention.head_count_kv") as usize {
            0 => query_heads,
            heads => heads,
        };
        for tensor in std::mem::take(&mut self.header.tensors) {
            let named = family.map_or(Named::Own, |family| family.name(&tensor));
            match named {
                Named::Own => self.add(tensor.name.clone(), tensor.shape.clone(), &tensor, 0, 0, path)?,
                Named::One(name) => self.add(name, tensor.shape.clone(), &tensor, 0, 0, path)?,
                Named::AsRow(name) => {
                    let shape = vec![1, tensor.shape.iter().product()];
                    self.add(name, shape, &tensor, 0, 0, path)?;
                }
                Named::Reordered { name, is_query } => {
                    let heads = if is_query { query_heads } else { key_heads };
                    let rows = tensor.shape.first().copied().unwrap_or(0);
                    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) {
                        return Err(IoError::damaged_array(
                            path,
                            &tensor.name,
                            format!("its {rows} rows are not pairs of {heads} heads"),
                        ));
                    }
                    self.add(name, tensor.shape.clone(), &tensor, 0, heads, path)?;
                }
                Named::Stacked { before, after } => {
                    let n_experts = tensor.shape[0];
                    if !(1..=MOST_EXPERTS).contains(&n_experts) {
                        return Err(IoError::damaged_array(
                            path,
                            &tensor.name,
                            format!("{n_experts} experts, allowed are 1 to {MOST_EXPERTS}"),
                        ));
                    }
                    for expert in 0..n_experts {
                        let name = format!("{before}{expert}{after}");
                        self.add(name, tensor.shape[1..].to_vec(), &tensor, expert, 0, path)?;
                    }
                }
            }
            self.header.tensors.push(tensor);
        }
        Ok(())
    }

    /// Lists the `part`-th piece of this shape of a tensor under a name.
    fn add(
        &mut self,
        name: String,
        shape: Vec<usize>,
        tensor: &Tensor,
        part: usize,
        reordered_heads: usize,
        path: &Path,
    ) -> Result<(), IoError> {
        let kind = tensor.kind;
        let spec = ArraySpec::new(name.clone(), shape, kind.dtype());
        // The whole tensor was checked, so its parts are whole blocks and fit.
        let size_bytes = spec.checked_len().and_then(|length| kind.size_bytes(length)).unwrap_or(0);
        let start = tensor.start + part * size_bytes;
        let place = Place { ordinal: self.specs.len(), start, size_bytes, kind, reordered_heads };
        if self.places.insert(name, place).is_some() {
            return Err(IoError::damaged_array(
                path,
                &tensor.name,
                format!("a second array is named `{}`", spec.name),
            ));
        }
        self.specs.push(spec);
        Ok(())
    }

    /// Version of the file format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }
    /// All metadata in the file's order.
    pub fn metadata(&self) -> &[(String, GgufValue)] {
        &self.header.metadata
    }
    /// One metadata value.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.header.get(key)
    }
    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.value(key) {
            Some(GgufValue::Text(text)) => Some(text),
            _ => None,
        }
    }
    /// A number of the metadata that is not negative.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        match *self.value(key)? {
            GgufValue::Unsigned(value) => Some(value),
            GgufValue::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }
    /// A number of the metadata.
    pub fn float(&self, key: &str) -> Option<f64> {
        match *self.value(key)? {
            GgufValue::Float(value) => Some(value),
            GgufValue::Unsigned(value) => Some(value as f64),
            GgufValue::Signed(value) => Some(value as f64),
            _ => None,
        }
    }
    /// A truth value of the metadata.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match *self.value(key)? {
            GgufValue::Bool(value) => Some(value),
            _ => None,
        }
    }
    /// An array of texts of the metadata, `tokenizer.ggml.tokens` for instance; `None` where there is no such
    /// array or a text is no UTF-8.
    pub fn strings(&self, key: &str) -> Option<Vec<&str>> {
        let Some(GgufValue::Array(array)) = self.value(key) else {
            return None;
        };
        if array.kind != KIND_TEXT {
            return None;
        }
        let mut cursor = Cursor::new(&self.map[array.extent.clone()], self.map.path());
        let mut texts = Vec::with_capacity(array.length);
        for _ in 0..array.length {
            let length = cursor.length("a text's length").ok()?;
            texts.push(std::str::from_utf8(cursor.take(length, "a text").ok()?).ok()?);
        }
        Some(texts)
    }
    /// An array of numbers or truth values of the metadata, `tokenizer.ggml.scores` for instance.
    pub fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        let Some(GgufValue::Array(array)) = self.value(key) else {
            return None;
        };
        let each = header::kind_bytes(array.kind)?;
        let numbers =
            self.map[array.extent.clone()].chunks_exact(each).map(|bytes| {
                match header::fixed_value(array.kind, bytes) {
                    GgufValue::Unsigned(value) => value as f64,
                    GgufValue::Signed(value) => value as f64,
                    GgufValue::Float(value) => value,
                    GgufValue::Bool(value) => f64::from(u8::from(value)),
                    _ => f64::NAN,
                }
            });
        Some(numbers.collect())
    }
    /// How an array is stored in the file.
    pub fn stored_as(&self, name: &str) -> Option<GgmlType> {
        self.places.get(name).map(|place| place.kind)
    }
    /// A Hugging Face `config.json` made from the metadata; `None` for architectures whose names are not known.
    pub fn config(&self) -> Option<Value> {
        config::config(self)
    }
    /// A Hugging Face `tokenizer.json` made from the metadata, or the reason why there is none.
    ///
    /// # Errors
    /// A sentence without subject: "has no tokenizer", for instance.
    pub fn tokenizer_json(&self) -> Result<Value, String> {
        tokenizer::tokenizer(self)
    }
}

impl TensorSource for GgufFile {
    fn arrays(&self) -> &[ArraySpec] {
        &self.specs
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        let place = self.places.get(name).ok_or_else(|| SourceError::Missing { name: name.to_owned() })?;
        let spec = self.specs[place.ordinal].clone();
        let mut bytes = Cow::Borrowed(&self.map[place.start..place.start + place.size_bytes]);
        if place.reordered_heads > 0 {
            let rows = spec.shape[0];
            bytes = Cow::Owned(pairs_to_halves(&bytes, place.reordered_heads, rows, bytes.len() / rows));
        }
        let array = if place.kind.is_quantized() {
            Array::from_f32(spec, &place.kind.dequantize(&bytes))
        } else {
            Array::new(spec, bytes)
        };
        array.map_err(|error| SourceError::Unreadable { name: name.to_owned(), source: Box::new(error) })
    }
    fn spec(&self, name: &str) -> Option<&ArraySpec> {
        self.places.get(name).map(|place| &self.specs[place.ordinal])
    }
}

impl Checkpoint for GgufFile {
    fn config(&self) -> Option<Value> {
        GgufFile::config(self)
    }
    fn tokenizer(&self) -> Result<MadeTokenizer, IoError> {
        Ok(match self.tokenizer_json() {
            Ok(value) => MadeTokenizer::Made(value.to_string()),
            Err(reason) => MadeTokenizer::LeftOut(LeftOut {
                name: "tokenizer.json".to_owned(),
                size_bytes: 0,
                reason: format!("cannot be made: the file {reason}"),
            }),
        })
    }
    fn size_bytes(&self) -> u64 {
        self.map.len() as u64
    }
}

#[cfg(test)]
mod tests;
