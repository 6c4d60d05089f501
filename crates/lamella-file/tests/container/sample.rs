//! Files to test with.
#![allow(clippy::unwrap_used, reason = "test data that cannot be built is a failed test")]

use lamella_codec::{ArraySpec, Dtype, EncodedLayer};
use lamella_file::{ArrayEntry, LayerEntry, Manifest, Shard, SideFiles, Storage, to_bytes};

/// A manifest, packed side files and payloads that make one file.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) manifest: Manifest,
    pub(crate) side: SideFiles,
    pub(crate) payloads: Vec<Vec<u8>>,
}

impl Sample {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        to_bytes(&self.manifest, &self.side.bytes, &self.payloads).unwrap()
    }
    pub(crate) fn push(&mut self, target: usize, payload: Vec<u8>, distortion: f64, is_mapped: bool) {
        let layer = EncodedLayer { payload, distortion, is_mapped };
        self.manifest.layers.push(LayerEntry::of(target, &layer));
        self.payloads.push(layer.payload);
    }
}

/// A fixed sequence of bytes without structure.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

pub(crate) fn entry(name: &str, shape: &[usize], dtype: Dtype, storage: Storage) -> ArrayEntry {
    ArrayEntry { spec: ArraySpec::new(name, shape.to_vec(), dtype), recipe: 0, shard: 0, storage }
}

fn shard(name: &str) -> Shard {
    Shard { name: name.to_owned(), metadata: vec![("format".to_owned(), "pt".to_owned())] }
}

/// Two matrices (three and two layers, one of them mapped), a bundle of two norms, a tied array, two side files.
pub(crate) fn small() -> Sample {
    let mut gated = entry("blocks.1.up.weight", &[3, 5], Dtype::BF16, Storage::Own);
    gated.recipe = 1;
    let side = SideFiles::pack(&[
        ("config.json".to_owned(), br#"{"hidden_size": 5}"#.to_vec()),
        ("sub/merges.txt".to_owned(), b"a b\nc d\n".to_vec()),
    ])
    .unwrap();
    let manifest = Manifest {
        recipes: vec!["exact".to_owned(), "house(bits=3)".to_owned()],
        arrays: vec![
            entry("embed.weight", &[4, 5], Dtype::F32, Storage::Own),
            entry("blocks.0.norm", &[5], Dtype::F32, Storage::Bundle(0)),
            gated,
            entry("blocks.1.norm", &[5], Dtype::F32, Storage::Bundle(0)),
            entry("head.weight", &[4, 5], Dtype::F32, Storage::AliasOf(0)),
        ],
        shards: vec![shard("model.safetensors")],
        side: side.table.clone(),
        budget: "--size 1KB".to_owned(),
        metadata: vec![("seed".to_owned(), "7".to_owned())],
        layers: Vec::new(),
    };
    let mut sample = Sample { manifest, side, payloads: Vec::new() };
    sample.push(0, noise(1, 30), 4.0, false);
    sample.push(1, noise(2, 11), 0.0, false);
    sample.push(2, noise(3, 20), 2.5, true);
    sample.push(2, noise(4, 9), 1.25, false);
    sample.push(0, noise(5, 17), 2.0, true);
    sample.push(0, Vec::new(), 1.9, false);
    sample
}

/// Arrays named, shaped and bundled like those of a small language model of `blocks` decoder blocks, with `layers`
/// layers for each matrix.
pub(crate) fn language_model(blocks: usize, layers: usize) -> Sample {
    let norm = |name: &str| entry(name, &[64], Dtype::F32, Storage::Bundle(0));
    let matrix = |name: &str, shape: [usize; 2]| {
        let mut array = entry(name, &shape, Dtype::F32, Storage::Own);
        array.recipe = 1;
        array
    };
    let mut arrays = vec![matrix("model.embed_tokens.weight", [512, 64])];
    for block in 0..blocks {
        let name = |part: &str| format!("model.layers.{block}.{part}.weight");
        arrays.push(norm(&name("input_layernorm")));
        arrays.push(matrix(&name("mlp.down_proj"), [64, 172]));
        arrays.push(matrix(&name("mlp.gate_proj"), [172, 64]));
        arrays.push(matrix(&name("mlp.up_proj"), [172, 64]));
        arrays.push(norm(&name("post_attention_layernorm")));
        arrays.push(matrix(&name("self_attn.k_proj"), [32, 64]));
        arrays.push(matrix(&name("self_attn.o_proj"), [64, 64]));
        arrays.push(matrix(&name("self_attn.q_proj"), [64, 64]));
        arrays.push(matrix(&name("self_attn.v_proj"), [32, 64]));
    }
    arrays.push(norm("model.norm.weight"));
    let side = SideFiles::pack(&[
        ("config.json".to_owned(), br#"{"model_type": "llama"}"#.repeat(20)),
        ("generation_config.json".to_owned(), b"{}".to_vec()),
        (
            "tokenizer.json".to_owned(),
            (0..512).flat_map(|i| format!("\"piece{i}\": {i},\n").into_bytes()).collect(),
        ),
        ("tokenizer_config.json".to_owned(), b"{}".to_vec()),
    ])
    .unwrap();
    let manifest = Manifest {
        recipes: vec!["exact".to_owned(), "house(step=0.3125)".to_owned()],
        arrays,
        shards: vec![shard("model.safetensors")],
        side: side.table.clone(),
        budget: "--size 100KB".to_owned(),
        metadata: vec![
            ("lamella".to_owned(), "0.1.0".to_owned()),
            (
                "calibration".to_owned(),
                "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned(),
            ),
            ("seed".to_owned(), "0".to_owned()),
        ],
        layers: Vec::new(),
    };
    let mut sample = Sample { manifest, side, payloads: Vec::new() };
    let targets = sample.manifest.validate().unwrap();
    for ordinal in 0..layers {
        for target in 0..targets.len() {
            let is_bundle = targets.members(target).len() > 1;
            if is_bundle && ordinal > 0 {
                continue;
            }
            let elements = targets.spec(target, &sample.manifest.arrays).unwrap().len();
            let bytes = if is_bundle { elements * 2 } else { elements * 3 / 8 / layers };
            let seed = (target * 31 + ordinal) as u64;
            sample.push(target, noise(seed, bytes), 1.0 / (3 * target + ordinal + 7) as f64, false);
        }
    }
    sample
}

/// The example of docs/format.md: one array of two bfloat16 numbers, one layer of four bytes.
pub(crate) fn one() -> Sample {
    let manifest = Manifest {
        recipes: vec!["exact".to_owned()],
        arrays: vec![entry("w", &[2], Dtype::BF16, Storage::Own)],
        shards: vec![Shard { name: "m.safetensors".to_owned(), metadata: Vec::new() }],
        budget: "--size 1KB".to_owned(),
        ..Manifest::default()
    };
    let mut sample = Sample { manifest, side: SideFiles::default(), payloads: Vec::new() };
    sample.push(0, vec![0x80, 0x3f, 0x00, 0xc0], 0.0, false);
    sample
}
