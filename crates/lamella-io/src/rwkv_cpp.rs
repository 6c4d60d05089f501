//! rwkv.cpp checkpoints (`.bin`) of RWKV 4 to 7.
//!
//! The header is six `u32`: the magic `ggmf`, version (100 plain, 101 with quantised arrays), vocabulary,
//! embedding width, layers, main data type. Then, until the end, each array: `u32` axes, name length and type, one
//! `u32` extent per axis (**fastest first**), the name, the data.
//!
//! Names are kept (`blocks.0.att.key.weight`); extents are turned round, so a matrix is `[out_features,
//! in_features]`. `f32` and `f16` arrays are borrowed, quantised ones are decoded to `f32` when they are asked
//! for. Where rwkv.cpp's converter changed an array against the original RWKV checkpoint (`time_maa_w1` and its
//! like are stored transposed, `time_decay` as the converter left it), it is handed out as this file has it.

use std::collections::BTreeMap;
use std::path::Path;

use lamella_codec::{Array, ArraySpec, Dtype, SourceError, TensorSource};
use serde_json::{Value, json};

use crate::IoError;
use crate::checkpoint::{Checkpoint, MadeTokenizer};
use crate::cursor::Cursor;
use crate::ggml::GgmlType;
use crate::mapped::MappedFile;

const MAGIC: u32 = 0x6767_6d66;
/// ggml's own limit.
const MOST_AXES: u32 = 4;
const LONGEST_NAME_BYTES: u32 = 1024;

/// An open rwkv.cpp checkpoint.
#[derive(Debug)]
pub struct RwkvCppFile {
    map: MappedFile,
    header: Header,
}

#[derive(Debug)]
struct Header {
    vocabulary: u32,
    n_embed: u32,
    n_layers: u32,
    specs: Vec<ArraySpec>,
    places: BTreeMap<String, Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    ordinal: usize,
    start: usize,
    size_bytes: usize,
    kind: GgmlType,
}

impl RwkvCppFile {
    /// Whether a file begins with rwkv.cpp's magic.
    pub(crate) fn is_one(file: &[u8]) -> bool {
        file.starts_with(&MAGIC.to_le_bytes())
    }

    /// Maps a file and walks its array headers.
    ///
    /// # Errors
    /// The file cannot be opened, or a field contradicts the file's length or the format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IoError> {
        let map = MappedFile::open(path.as_ref())?;
        let header = Header::read(&map, path.as_ref())?;
        Ok(Self { map, header })
    }

    /// Generation of the architecture, found by the names of the arrays: 4, 5, 6 or 7.
    pub fn generation(&self) -> u32 {
        let has = |name: &str| self.header.places.contains_key(name);
        if has("blocks.0.att.r_k") {
            7
        } else if has("blocks.0.att.time_maa_x") {
            6
        } else if has("blocks.0.att.ln_x.weight") {
            5
        } else {
            4
        }
    }

    /// What the header and the arrays say, in the manner of a `config.json`: `model_type` (`rwkv4` to `rwkv7`),
    /// `vocab_size`, `hidden_size`, `num_hidden_layers`, and where it can be told from a shape
    /// `num_attention_heads`, `head_dim` and `intermediate_size`.
    pub fn config(&self) -> Value {
        let header = &self.header;
        let mut config = json!({
            "model_type": format!("rwkv{}", self.generation()),
            "vocab_size": header.vocabulary,
            "hidden_size": header.n_embed,
            "num_hidden_layers": header.n_layers,
        });
        let shape = |name: &str| self.spec(name).map(|spec| spec.shape.clone());
        let heads = shape("blocks.0.att.r_k").or_else(|| shape("blocks.0.att.time_faaaa"));
        // `r_k` is [heads, head_dim], `time_faaaa` [heads, head_dim, 1] or [heads, 1, 1].
        if let Some(&[heads, _] | &[heads, _, _]) = heads.as_deref()
            && heads > 0
        {
            config["num_attention_heads"] = json!(heads);
            config["head_dim"] = json!(header.n_embed as usize / heads);
        }
        if let Some(&[intermediate, _]) = shape("blocks.0.ffn.key.weight").as_deref() {
            config["intermediate_size"] = json!(intermediate);
        }
        config
    }
}

impl TensorSource for RwkvCppFile {
    fn arrays(&self) -> &[ArraySpec] {
        &self.header.specs
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        let place =
            self.header.places.get(name).ok_or_else(|| SourceError::Missing { name: name.to_owned() })?;
        let spec = self.header.specs[place.ordinal].clone();
        let bytes = &self.map[place.start..place.start + place.size_bytes];
        let array = if place.kind.is_quantized() {
            Array::from_f32(spec, &place.kind.dequantize(bytes))
        } else {
            Array::new(spec, bytes)
        };
        array.map_err(|error| SourceError::Unreadable { name: name.to_owned(), source: Box::new(error) })
    }
    fn spec(&self, name: &str) -> Option<&ArraySpec> {
        self.header.places.get(name).map(|place| &self.header.specs[place.ordinal])
    }
}

impl Checkpoint for RwkvCppFile {
    fn config(&self) -> Option<Value> {
        Some(RwkvCppFile::config(self))
    }
    /// Tokens are bytes or of a vocabulary that the file does not hold.
    fn tokenizer(&self) -> Result<MadeTokenizer, IoError> {
        Ok(MadeTokenizer::Absent)
    }
    fn size_bytes(&self) -> u64 {
        self.map.len() as u64
    }
}

impl Header {
    fn read(file: &[u8], path: &Path) -> Result<Self, IoError> {
        let mut cursor = Cursor::new(file, path);
        let mut fields = [0; 6];
        for field in &mut fields {
            *field = cursor.u32("the header")?;
        }
        let [magic, version, vocabulary, n_embed, n_layers, _main_type] = fields;
        if magic != MAGIC || !(100..=101).contains(&version) {
            return Err(
                cursor.damaged(format!("magic {magic:#x} and version {version} are no rwkv.cpp file"))
            );
        }
        let mut header = Self { vocabulary, n_embed, n_layers, specs: Vec::new(), places: BTreeMap::new() };
        while cursor.remaining() > 0 {
            header.read_array(&mut cursor, path)?;
        }
        let embedding = header.places.get("emb.weight").map(|place| &header.specs[place.ordinal].shape[..]);
        if embedding != Some(&[vocabulary as usize, n_embed as usize]) {
            return Err(IoError::damaged_array(
                path,
                "emb.weight",
                format!("the header says [{vocabulary}, {n_embed}], found {embedding:?}"),
            ));
        }
        Ok(header)
    }

    fn read_array(&mut self, cursor: &mut Cursor<'_>, path: &Path) -> Result<(), IoError> {
        let n_axes = cursor.u32("an array's axes")?;
        let name_bytes = cursor.u32("a name's length")?;
        let code = cursor.u32("an array's type")?;
        if n_axes > MOST_AXES || name_bytes > LONGEST_NAME_BYTES {
            return Err(
                cursor.damaged(format!("an array of {n_axes} axes with a name of {name_bytes} bytes"))
            );
        }
        let mut shape = Vec::new();
        for _ in 0..n_axes {
            shape.push(cursor.u32("an extent")? as usize);
        }
        let name = cursor.take(name_bytes as usize, "a name")?;
        let name = std::str::from_utf8(name).map_err(|error| cursor.damaged(error))?.to_owned();
        let damaged = |message: String| IoError::damaged_array(path, &name, message);
        let kind = kind_of_code(code).ok_or_else(|| IoError::UnknownDtype {
            path: path.to_owned(),
            array: name.clone(),
            dtype: code.to_string(),
            known: "0 (F32), 1 (F16), 2 (Q4_0), 3 (Q4_1), 7 (Q5_0), 8 (Q5_1), 9 (Q8_0)".to_owned(),
        })?;
        if kind.is_quantized() && !shape.first().is_some_and(|row| row.is_multiple_of(kind.block_elements()))
        {
            return Err(damaged(format!(
                "rows of {:?} are no whole blocks of {}",
                shape.first(),
                kind.name()
            )));
        }
        shape.reverse();
        let spec =
            ArraySpec::new(name.clone(), shape, if kind == GgmlType::F16 { Dtype::F16 } else { Dtype::F32 });
        let size_bytes = spec
            .checked_len()
            .and_then(|length| kind.size_bytes(length))
            .filter(|&size| size <= cursor.remaining())
            .ok_or_else(|| {
                damaged(format!(
                    "{} {:?} needs more than the {} bytes that are left",
                    kind.name(),
                    spec.shape,
                    cursor.remaining()
                ))
            })?;
        let start = cursor.position();
        cursor.take(size_bytes, "an array")?;
        let place = Place { ordinal: self.specs.len(), start, size_bytes, kind };
        if self.places.insert(name.clone(), place).is_some() {
            return Err(damaged("its name stands twice".to_owned()));
        }
        self.specs.push(spec);
        Ok(())
    }
}

/// rwkv.cpp's own numbering, which is not GGUF's.
fn kind_of_code(code: u32) -> Option<GgmlType> {
    Some(match code {
        0 => GgmlType::F32,
        1 => GgmlType::F16,
        2 => GgmlType::Q4_0,
        3 => GgmlType::Q4_1,
        7 => GgmlType::Q5_0,
        8 => GgmlType::Q5_1,
        9 => GgmlType::Q8_0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(name: &str) -> Option<RwkvCppFile> {
        Some(RwkvCppFile::open(crate::test_data(&format!("lm/rwkv/tiny-rwkv-{name}.bin"))?).unwrap())
    }

    #[test]
    fn configurations_come_from_the_arrays() {
        let cases = [
            ("5v2-730K-FP32", 5, 731_904, 64, 256),
            ("6v0-1m-FP32", 6, 1_028_352, 64, 224),
            ("6v0-3m-Q5_1", 6, 3_334_656, 128, 448),
        ];
        for (name, generation, weights, hidden, intermediate) in cases {
            let Some(file) = open(name) else {
                return;
            };
            assert_eq!(file.generation(), generation);
            assert_eq!(file.arrays().iter().map(ArraySpec::len).sum::<usize>(), weights);
            let config = file.config();
            assert_eq!(config["hidden_size"], hidden);
            assert_eq!(config["num_hidden_layers"], 12);
            assert_eq!(config["intermediate_size"], intermediate);
            assert_eq!(config["head_dim"], 8);
        }
    }

    #[test]
    fn quantised_files_are_near_the_plain_one() {
        let Some(plain) = open("5v2-730K-FP32") else {
            return;
        };
        for (name, bound) in [("5v2-730K-FP16", 1e-3), ("5v2-730K-Q5_0", 0.07), ("5v2-730K-Q5_1", 0.07)] {
            let Some(other) = open(name) else {
                return;
            };
            for spec in plain.arrays() {
                let expected = plain.array(&spec.name).unwrap().to_f32().unwrap();
                let found = other.array(&spec.name).unwrap().to_f32().unwrap();
                let largest = expected.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
                for (expected, found) in expected.iter().zip(&found) {
                    assert!((expected - found).abs() <= bound * largest, "{} in {name}", spec.name);
                }
            }
        }
    }

    #[test]
    fn cuts_and_flips_are_errors_or_the_same_extents() {
        let Some(file) = open("5v2-730K-Q5_0") else {
            return;
        };
        let path = Path::new("x.bin");
        let bytes = &file.map[..];
        let starts: Vec<usize> = file.header.places.values().map(|place| place.start).collect();
        for start in starts.iter().copied().filter(|&start| start < 60_000) {
            for length in start.saturating_sub(40)..start + 3 {
                assert!(Header::read(&bytes[..length], path).is_err());
            }
            let mut flipped = bytes.to_vec();
            for bit in (start - 30) * 8..start * 8 {
                flipped[bit / 8] ^= 1 << (bit % 8);
                if let Ok(header) = Header::read(&flipped, path) {
                    for place in header.places.values() {
                        assert!(place.start + place.size_bytes <= bytes.len());
                    }
                }
                flipped[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
