//! llama2.c checkpoints, versions 0 and 1, as a Hugging Face Llama.
//!
//! Version 0 begins with seven `i32` (dim, hidden dim, layers, heads, key-value heads, vocabulary, context); a
//! negative vocabulary says that the output head is stored apart. Version 1 begins with `ak42`, the number 1, the
//! same seven numbers and a byte that is 1 where the head is shared, padded to 256 bytes. The arrays follow as
//! `f32` in one fixed order per version.
//!
//! Two things differ from a Hugging Face checkpoint. Names are given here (`model.layers.0.mlp.up_proj.weight`).
//! And llama2.c rotates *adjacent* pairs of each query and key (elements 2i and 2i + 1), Hugging Face the two
//! *halves* (i and i + head_dim / 2); so the rows of both projections are reordered, row 2i to i and row 2i + 1 to
//! i + head_dim / 2, on reading. Attention scores are sums over all rows and do not change.

use std::collections::BTreeMap;
use std::path::Path;

use lamella_codec::{Array, ArraySpec, Dtype, SourceError, TensorSource};
use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, MadeTokenizer};
use crate::cursor::Cursor;
use crate::mapped::MappedFile;
use crate::{IoError, LeftOut};

mod tokenizer;

pub use tokenizer::{ScoredPieces, llama2c_pieces, llama2c_tokenizer_json};

const MAGIC: u32 = 0x616b_3432;
const HEADER_BYTES_V1: usize = 256;

/// An open llama2.c checkpoint with Hugging Face names.
#[derive(Debug)]
pub struct Llama2cFile {
    map: MappedFile,
    shape: Shape,
    specs: Vec<ArraySpec>,
    places: BTreeMap<String, Place>,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    vocabulary: usize,
    context: usize,
    shares_head: bool,
    version: u32,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    ordinal: usize,
    start: usize,
    /// Heads whose rows are reordered; 0 for arrays that are borrowed as they lie.
    reordered_heads: usize,
}

impl Llama2cFile {
    /// Whether a file begins like version 1, or is as long as a version 0 header says.
    pub(crate) fn is_one(file: &[u8]) -> bool {
        let path = Path::new("");
        file.starts_with(&MAGIC.to_le_bytes())
            || Shape::read(file, path).is_ok_and(|(shape, start)| shape.check(file, start, path).is_ok())
    }

    /// Maps a file and checks its header against its length.
    ///
    /// # Errors
    /// The file cannot be opened, has another version (the quantised version 2 is not read), or its length is not
    /// what its header asks for.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IoError> {
        let path = path.as_ref();
        let map = MappedFile::open(path)?;
        let (shape, start) = Shape::read(&map, path)?;
        let blocks = shape.check(&map, start, path)?;
        Ok(Self::lay_out(map, shape, &blocks))
    }

    /// Names and places of all arrays, in the order of a Hugging Face checkpoint. `blocks` are the file's stacked
    /// arrays with their first byte.
    fn lay_out(map: MappedFile, shape: Shape, blocks: &BTreeMap<&'static str, usize>) -> Self {
        let mut file = Self { map, shape, specs: Vec::new(), places: BTreeMap::new() };
        let Shape { dim, hidden_dim, vocabulary, n_heads, n_kv_heads, .. } = shape;
        let kv_dim = shape.kv_dim();
        let start = |block: &str| blocks.get(block).copied().unwrap_or(0);
        file.add("model.embed_tokens.weight".to_owned(), vec![vocabulary, dim], start("tok_emb"), 0);
        for layer in 0..shape.n_layers {
            let parts: [(&str, &str, Vec<usize>, usize); 9] = [
                ("input_layernorm", "rms_att", vec![dim], 0),
                ("mlp.down_proj", "w2", vec![dim, hidden_dim], 0),
                ("mlp.gate_proj", "w1", vec![hidden_dim, dim], 0),
                ("mlp.up_proj", "w3", vec![hidden_dim, dim], 0),
                ("post_attention_layernorm", "rms_ffn", vec![dim], 0),
                ("self_attn.k_proj", "wk", vec![kv_dim, dim], n_kv_heads),
                ("self_attn.o_proj", "wo", vec![dim, dim], 0),
                ("self_attn.q_proj", "wq", vec![dim, dim], n_heads),
                ("self_attn.v_proj", "wv", vec![kv_dim, dim], 0),
            ];
            for (name, block, extents, reordered_heads) in parts {
                let size_bytes = 4 * extents.iter().product::<usize>();
                let at = start(block) + layer * size_bytes;
                file.add(format!("model.layers.{layer}.{name}.weight"), extents, at, reordered_heads);
            }
        }
        file.add("model.norm.weight".to_owned(), vec![dim], start("rms_final"), 0);
        if !shape.shares_head {
            file.add("lm_head.weight".to_owned(), vec![vocabulary, dim], start("wcls"), 0);
        }
        file
    }

    fn add(&mut self, name: String, extents: Vec<usize>, start: usize, reordered_heads: usize) {
        self.places.insert(name.clone(), Place { ordinal: self.specs.len(), start, reordered_heads });
        self.specs.push(ArraySpec::new(name, extents, Dtype::F32));
    }

    /// A Hugging Face `config.json` for this checkpoint.
    pub fn config(&self) -> Value {
        let shape = &self.shape;
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": shape.dim,
            "intermediate_size": shape.hidden_dim,
            "num_hidden_layers": shape.n_layers,
            "num_attention_heads": shape.n_heads,
            "num_key_value_heads": shape.n_kv_heads,
            "head_dim": shape.dim / shape.n_heads,
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": shape.context,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": null,
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": shape.shares_head,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "float32",
        })
    }
    /// Version of the file format, 0 or 1.
    pub fn version(&self) -> u32 {
        self.shape.version
    }
    /// Number of tokens.
    pub fn vocabulary_size(&self) -> usize {
        self.shape.vocabulary
    }
}

impl TensorSource for Llama2cFile {
    fn arrays(&self) -> &[ArraySpec] {
        &self.specs
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        let place = self.places.get(name).ok_or_else(|| SourceError::Missing { name: name.to_owned() })?;
        let spec = self.specs[place.ordinal].clone();
        let bytes = &self.map[place.start..place.start + 4 * spec.len()];
        let array = if place.reordered_heads == 0 {
            Array::new(spec, bytes)
        } else {
            let (rows, columns) = spec.matrix().unwrap_or((1, spec.len()));
            let reordered = pairs_to_halves(bytes, place.reordered_heads, rows, 4 * columns);
            Array::new(spec, reordered)
        };
        array.map_err(|error| SourceError::Unreadable { name: name.to_owned(), source: Box::new(error) })
    }
    fn spec(&self, name: &str) -> Option<&ArraySpec> {
        self.places.get(name).map(|place| &self.specs[place.ordinal])
    }
}

impl Checkpoint for Llama2cFile {
    fn config(&self) -> Option<Value> {
        Some(Llama2cFile::config(self))
    }
    fn size_bytes(&self) -> u64 {
        self.map.len() as u64
    }
    /// Out of a `tokenizer.bin` beside the checkpoint, where it has the same number of tokens.
    fn tokenizer(&self) -> Result<MadeTokenizer, IoError> {
        let path = self.map.path().with_file_name("tokenizer.bin");
        if !path.is_file() {
            return Ok(MadeTokenizer::Absent);
        }
        let bytes = fs_err::read(&path)?;
        let pieces = llama2c_pieces(&bytes, &path)?;
        if pieces.len() == self.shape.vocabulary {
            return Ok(MadeTokenizer::Made(llama2c_tokenizer_json(&pieces).to_string()));
        }
        Ok(MadeTokenizer::LeftOut(LeftOut {
            name: "tokenizer.bin".to_owned(),
            size_bytes: bytes.len() as u64,
            reason: format!("has {} tokens, the model {}", pieces.len(), self.shape.vocabulary),
        }))
    }
}

/// Reorders the rows of each head from adjacent rotary pairs to rotary halves.
pub(crate) fn pairs_to_halves(bytes: &[u8], n_heads: usize, rows: usize, row_bytes: usize) -> Vec<u8> {
    let half = rows / n_heads / 2;
    let mut reordered = Vec::with_capacity(bytes.len());
    for head in 0..n_heads {
        for parity in 0..2 {
            for pair in 0..half {
                let row = head * 2 * half + 2 * pair + parity;
                reordered.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    reordered
}

impl Shape {
    /// The header, and where the arrays begin.
    fn read(file: &[u8], path: &Path) -> Result<(Self, usize), IoError> {
        let mut cursor = Cursor::new(file, path);
        let is_new = file.starts_with(&MAGIC.to_le_bytes());
        let version = if is_new {
            cursor.u32("the magic")?;
            cursor.u32("the version")?
        } else {
            0
        };
        if version != u32::from(is_new) {
            return Err(cursor.damaged(format!("llama2.c version {version} is not read, only 0 and 1")));
        }
        let mut fields = [0i32; 7];
        for field in &mut fields {
            *field = cursor.i32("the header")?;
        }
        let shares_head = if is_new { cursor.u8("the header")? != 0 } else { fields[5] > 0 };
        fields[5] = fields[5].saturating_abs();
        // Far above any model of this format and far below what could overflow a product of three.
        const LARGEST: i32 = 1 << 20;
        if let Some(field) = fields.iter().find(|&&field| !(1..=LARGEST).contains(&field)) {
            return Err(cursor.damaged(format!("a dimension of {field}, allowed are 1 to {LARGEST}")));
        }
        let [dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocabulary, context] =
            fields.map(|field| field as usize);
        if dim % (2 * n_heads) != 0 || n_heads % n_kv_heads != 0 {
            return Err(cursor.damaged(format!(
                "{n_heads} heads and {n_kv_heads} key-value heads do not divide {dim} dimensions"
            )));
        }
        let shape = Self {
            dim,
            hidden_dim,
            n_layers,
            n_heads,
            n_kv_heads,
            vocabulary,
            context,
            shares_head,
            version,
        };
        Ok((shape, if is_new { HEADER_BYTES_V1 } else { cursor.position() }))
    }

    fn kv_dim(&self) -> usize {
        self.dim / self.n_heads * self.n_kv_heads
    }

    /// Where each stacked array begins, if the file has exactly the length that all of them need.
    fn check(
        &self,
        file: &[u8],
        start: usize,
        path: &Path,
    ) -> Result<BTreeMap<&'static str, usize>, IoError> {
        let Shape { dim, hidden_dim, n_layers, vocabulary, context, .. } = *self;
        let (kv_dim, half_head) = (self.kv_dim(), dim / self.n_heads / 2);
        let norms = [("rms_att", n_layers * dim), ("rms_ffn", n_layers * dim), ("rms_final", dim)];
        let attention = [
            ("wq", [n_layers, dim, dim]),
            ("wk", [n_layers, kv_dim, dim]),
            ("wv", [n_layers, kv_dim, dim]),
            ("wo", [n_layers, dim, dim]),
        ];
        let feed_forward = [
            ("w1", [n_layers, hidden_dim, dim]),
            ("w2", [n_layers, dim, hidden_dim]),
            ("w3", [n_layers, hidden_dim, dim]),
        ];
        let product = |extents: [usize; 3]| extents.iter().product::<usize>();
        let attention = attention.map(|(name, extents)| (name, product(extents)));
        let feed_forward = feed_forward.map(|(name, extents)| (name, product(extents)));
        let embedding = ("tok_emb", vocabulary * dim);
        let rope = context * half_head;
        let mut order = Vec::new();
        if self.version == 0 {
            order.extend([embedding, norms[0]]);
            order.extend(attention);
            order.push(norms[1]);
            order.extend(feed_forward);
            order.extend([norms[2], ("freq_cos", rope), ("freq_sin", rope)]);
        } else {
            order.extend(norms);
            order.push(embedding);
            order.extend(attention);
            order.extend(feed_forward);
        }
        if !self.shares_head {
            order.push(("wcls", vocabulary * dim));
        }
        let mut places = BTreeMap::new();
        let mut position = start;
        for (name, length) in order {
            places.insert(name, position);
            position = position.saturating_add(length.saturating_mul(4));
        }
        if position != file.len() {
            return Err(IoError::damaged(
                path,
                format!("a llama2.c file of these dimensions has {position} bytes, found {}", file.len()),
            ));
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(name: &str) -> Option<std::path::PathBuf> {
        crate::test_data(&format!("lm/stories260K/{name}"))
    }

    #[test]
    fn both_versions_hold_the_same_arrays() {
        let (Some(old), Some(new)) = (data("stories260K.bin"), data("stories260K_v1.bin")) else {
            return;
        };
        let (old, new) = (Llama2cFile::open(old).unwrap(), Llama2cFile::open(new).unwrap());
        assert_eq!((old.version(), new.version()), (0, 1));
        assert_eq!(old.arrays(), new.arrays());
        assert_eq!(old.arrays().len(), 2 + 9 * 5);
        assert_eq!(old.config(), new.config());
        assert_eq!(old.arrays().iter().map(ArraySpec::len).sum::<usize>(), 260_032);
        for spec in old.arrays() {
            assert_eq!(old.array(&spec.name).unwrap(), new.array(&spec.name).unwrap());
        }
        assert!(matches!(old.tokenizer().unwrap(), MadeTokenizer::Made(_)));
    }

    #[test]
    fn rows_move_from_pairs_to_halves_within_their_head() {
        let rows: Vec<u8> = (0..8).collect();
        assert_eq!(pairs_to_halves(&rows, 2, 8, 1), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn cuts_and_flipped_headers_are_errors() {
        let Some(path) = data("stories260K_v1.bin") else {
            return;
        };
        let bytes = fs_err::read(path).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.bin");
        for length in [0, 3, 7, 20, 36, 255, 256, 1000, bytes.len() - 1] {
            fs_err::write(&path, &bytes[..length]).unwrap();
            assert!(Llama2cFile::open(&path).is_err(), "{length}");
        }
        for bit in 0..36 * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // The context length is in no array of version 1.
            let is_context = (32..36).contains(&(bit / 8));
            let read = Shape::read(&flipped, &path);
            let checked = read.and_then(|(shape, start)| shape.check(&flipped, start, &path));
            assert!(is_context || checked.is_err(), "bit {bit}");
        }
    }
}
