//! The header of a GGUF file: metadata and where each tensor lies.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::IoError;
use crate::cursor::Cursor;
use crate::ggml::GgmlType;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// ggml's own limit.
const MOST_AXES: u32 = 4;
/// ggml's own limit is 64; some tools write longer names.
const LONGEST_NAME_BYTES: usize = 1024;
const LONGEST_KEY_BYTES: usize = 65_535;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GgufValue {
    /// `u8`, `u16`, `u32` or `u64`.
    Unsigned(u64),
    /// `i8`, `i16`, `i32` or `i64`.
    Signed(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array, left in the file until it is asked for.
    Array(GgufArray),
}

/// An array of metadata values, all of one kind: see `GgufFile::strings` and `GgufFile::numbers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufArray {
    pub(super) kind: u32,
    pub(super) length: usize,
    pub(super) extent: Range<usize>,
}

impl GgufArray {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.length
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
    /// Whether the values are texts.
    pub fn is_text(&self) -> bool {
        self.kind == KIND_TEXT
    }
}

pub(super) const KIND_TEXT: u32 = 8;
const KIND_ARRAY: u32 = 9;

/// Bytes of a value of fixed length.
pub(super) fn kind_bytes(kind: u32) -> Option<usize> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// Decodes a value of fixed length from exactly [`kind_bytes`] bytes.
pub(super) fn fixed_value(kind: u32, bytes: &[u8]) -> GgufValue {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    match kind {
        1 => GgufValue::Signed(i64::from(unsigned as u8 as i8)),
        3 => GgufValue::Signed(i64::from(unsigned as u16 as i16)),
        5 => GgufValue::Signed(i64::from(unsigned as u32 as i32)),
        11 => GgufValue::Signed(unsigned as i64),
        6 => GgufValue::Float(f64::from(f32::from_bits(unsigned as u32))),
        12 => GgufValue::Float(f64::from_bits(unsigned)),
        7 => GgufValue::Bool(unsigned != 0),
        _ => GgufValue::Unsigned(unsigned),
    }
}

/// A tensor as the file lists it.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Slowest axis first: the file's order turned round.
    pub(super) shape: Vec<usize>,
    pub(super) kind: GgmlType,
    /// First byte in the file.
    pub(super) start: usize,
    pub(super) size_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Vec<(String, GgufValue)>,
    pub(super) by_key: BTreeMap<String, usize>,
    pub(super) tensors: Vec<Tensor>,
}

impl Header {
    /// Parses and checks a whole file's header: work and memory in proportion to its length.
    pub(super) fn read(file: &[u8], path: &Path) -> Result<Self, IoError> {
        let mut cursor = Cursor::new(file, path);
        if cursor.take(4, "the magic")? != MAGIC {
            return Err(cursor.damaged("no GGUF file begins like this"));
        }
        let version = cursor.u32("the version")?;
        if !(2..=3).contains(&version) {
            let is_turned = version.swap_bytes() < 16;
            let why = if is_turned { "it is big-endian, which" } else { "its version" };
            return Err(cursor.damaged(format!("{why} is not read (version {version:#x}, read are 2 and 3)")));
        }
        let n_tensors = cursor.u64("the number of tensors")?;
        let n_values = cursor.u64("the number of metadata values")?;
        let mut header = Self { version, metadata: Vec::new(), by_key: BTreeMap::new(), tensors: Vec::new() };
        for _ in 0..n_values {
            let key = text(&mut cursor, LONGEST_KEY_BYTES, "a metadata key")?;
            let value = value(&mut cursor)?;
            if header.by_key.insert(key.clone(), header.metadata.len()).is_some() {
                return Err(cursor.damaged(format!("the metadata key `{key}` stands twice")));
            }
            header.metadata.push((key, value));
        }
        // Offsets are relative to the data, which begins after the last tensor's entry.
        let mut offsets = Vec::new();
        for _ in 0..n_tensors {
            let (tensor, offset) = tensor(&mut cursor, path)?;
            header.tensors.push(tensor);
            offsets.push(offset);
        }
        let alignment = match header.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(&GgufValue::Unsigned(alignment)) if alignment.is_power_of_two() && alignment <= 1 << 20 => {
                alignment
            }
            Some(other) => return Err(cursor.damaged(format!("an alignment of {other:?}"))),
        };
        let data_start = (cursor.position() as u64).next_multiple_of(alignment);
        header.place(&offsets, data_start, file.len() as u64, path)?;
        Ok(header)
    }

    /// Turns offsets into places and checks that no tensor leaves the file or overlaps another.
    fn place(
        &mut self,
        offsets: &[u64],
        data_start: u64,
        file_bytes: u64,
        path: &Path,
    ) -> Result<(), IoError> {
        for (tensor, &offset) in self.tensors.iter_mut().zip(offsets) {
            let end =
                data_start.checked_add(offset).and_then(|start| start.checked_add(tensor.size_bytes as u64));
            if end.is_none_or(|end| end > file_bytes) {
                return Err(IoError::damaged_array(
                    path,
                    &tensor.name,
                    format!(
                        "{} {:?} needs {} bytes at {offset} of the data, which begins at {data_start}; the file \
                         has {file_bytes} bytes: it was cut",
                        tensor.kind.name(),
                        tensor.shape,
                        tensor.size_bytes
                    ),
                ));
            }
            tensor.start = (data_start + offset) as usize;
        }
        let mut in_order: Vec<&Tensor> = self.tensors.iter().collect();
        in_order.sort_by_key(|tensor| (tensor.start, tensor.size_bytes));
        for pair in in_order.windows(2) {
            if pair[0].start + pair[0].size_bytes > pair[1].start {
                return Err(IoError::damaged_array(
                    path,
                    &pair[1].name,
                    format!("it overlaps `{}`", pair[0].name),
                ));
            }
        }
        let mut names: Vec<&str> = self.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(IoError::damaged_array(path, pair[0], "its name stands twice"));
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &str) -> Option<&GgufValue> {
        self.by_key.get(key).map(|&ordinal| &self.metadata[ordinal].1)
    }
}

fn text(cursor: &mut Cursor<'_>, longest: usize, what: &str) -> Result<String, IoError> {
    let length = cursor.length(what)?;
    if length > longest {
        return Err(cursor.damaged(format!("{what} of {length} bytes, allowed are {longest}")));
    }
    let bytes = cursor.take(length, what)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(cursor.damaged(format!("{what} is no UTF-8: {error}"))),
    }
}

fn value(cursor: &mut Cursor<'_>) -> Result<GgufValue, IoError> {
    let kind = cursor.u32("a value's kind")?;
    if let Some(length) = kind_bytes(kind) {
        return Ok(fixed_value(kind, cursor.take(length, "a value")?));
    }
    match kind {
        KIND_TEXT => Ok(GgufValue::Text(text(cursor, usize::MAX, "a text")?)),
        KIND_ARRAY => {
            let kind = cursor.u32("an array's kind")?;
            let length = cursor.length("an array's length")?;
            let start = cursor.position();
            if kind == KIND_TEXT {
                for _ in 0..length {
                    let bytes = cursor.length("a text's length")?;
                    cursor.take(bytes, "a text")?;
                }
            } else {
                // Arrays of arrays are in no file that llama.cpp reads.
                let each =
                    kind_bytes(kind).ok_or_else(|| cursor.damaged(format!("an array of kind {kind}")))?;
                let size = length.saturating_mul(each);
                cursor.take(size, "an array")?;
            }
            Ok(GgufValue::Array(GgufArray { kind, length, extent: start..cursor.position() }))
        }
        _ => Err(cursor.damaged(format!("a value of the unknown kind {kind}"))),
    }
}

/// A tensor's entry, and its offset in the data.
fn tensor(cursor: &mut Cursor<'_>, path: &Path) -> Result<(Tensor, u64), IoError> {
    let name = text(cursor, LONGEST_NAME_BYTES, "a tensor's name")?;
    let n_axes = cursor.u32("a tensor's axes")?;
    if n_axes > MOST_AXES {
        return Err(IoError::damaged_array(path, &name, format!("{n_axes} axes, allowed are {MOST_AXES}")));
    }
    let mut shape = Vec::new();
    for _ in 0..n_axes {
        shape.push(cursor.length("a tensor's extent")?);
    }
    let code = cursor.u32("a tensor's type")?;
    let offset = cursor.u64("a tensor's offset")?;
    let kind = GgmlType::from_code(code).ok_or_else(|| IoError::UnknownDtype {
        path: path.to_owned(),
        array: name.clone(),
        dtype: code.to_string(),
        known: GgmlType::names(),
    })?;
    let row = shape.first().copied().unwrap_or(1);
    if !row.is_multiple_of(kind.block_elements()) {
        let block = kind.block_elements();
        return Err(IoError::damaged_array(
            path,
            &name,
            format!("rows of {row} are no whole blocks of {block} ({})", kind.name()),
        ));
    }
    shape.reverse();
    let n_elements = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    // Four bytes per element must be addressable too: that is what it decodes to.
    let size_bytes = n_elements.filter(|&n| n <= isize::MAX as usize / 8).and_then(|n| kind.size_bytes(n));
    let size_bytes = size_bytes
        .ok_or_else(|| IoError::damaged_array(path, &name, format!("its shape {shape:?} overflows")))?;
    Ok((Tensor { name, shape, kind, start: 0, size_bytes }, offset))
}
