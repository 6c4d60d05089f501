//! RWKV against golden logits of its reference implementation.

use std::path::Path;
use std::sync::Arc;

use lamella_codec::{Array, ArraySpec, Dtype, TensorMap};
use lamella_lm::Network;
use serde_json::json;

use crate::support::{floats, largest_difference, shared};

/// A plain reader of rwkv.cpp files that hold `f32` and `f16` arrays only.
fn read(path: &Path) -> (u32, u32, u32, TensorMap) {
    let bytes = fs_err::read(path).unwrap();
    let mut at = 0;
    let word = |at: &mut usize| {
        *at += 4;
        u32::from_le_bytes(bytes[*at - 4..*at].try_into().unwrap())
    };
    let header: Vec<u32> = (0..6).map(|_| word(&mut at)).collect();
    assert_eq!(header[0], 0x6767_6d66);
    let mut map = TensorMap::default();
    while at < bytes.len() {
        let (axes, name_bytes, kind) = (word(&mut at), word(&mut at) as usize, word(&mut at));
        let mut shape: Vec<usize> = (0..axes).map(|_| word(&mut at) as usize).collect();
        shape.reverse();
        let name = std::str::from_utf8(&bytes[at..at + name_bytes]).unwrap().to_owned();
        at += name_bytes;
        let dtype = if kind == 0 { Dtype::F32 } else { Dtype::F16 };
        let spec = ArraySpec::new(name, shape, dtype);
        let size = spec.checked_size_bytes().unwrap();
        map.insert(Array::new(spec, bytes[at..at + size].to_vec()).unwrap());
        at += size;
    }
    (header[2], header[3], header[4], map)
}

fn open(path: &Path, version: u32, intermediate: usize) -> Network {
    let (vocabulary, hidden, blocks, map) = read(path);
    let config = json!({
        "model_type": format!("rwkv{version}"), "vocab_size": vocabulary, "hidden_size": hidden,
        "num_hidden_layers": blocks, "num_attention_heads": 8, "intermediate_size": intermediate,
    });
    Network::open(&config, Arc::new(map)).unwrap()
}

const PROMPT: &[u8] = b"\"in";

#[test]
fn logits_agree_with_the_reference() {
    for (name, expected, version, intermediate, bound) in [
        ("tiny-rwkv-5v2-730K-FP32", "expected-logits-5v2-730K", 5, 256, 1e-3),
        ("tiny-rwkv-6v0-1m-FP32", "expected-logits-6v0-1m", 6, 224, 1e-3),
        ("tiny-rwkv-5v2-730K-FP16", "expected-logits-5v2-730K", 5, 256, 0.5),
    ] {
        let Some(path) = shared(&format!("lm/rwkv/{name}.bin")) else { return };
        let network = open(&path, version, intermediate);
        let prompt: Vec<u32> = PROMPT.iter().map(|&b| u32::from(b)).collect();
        let hidden = network.forward(std::slice::from_ref(&prompt)).unwrap();
        let logits = network.logits_range(&hidden, 2..3, None).unwrap();
        let expected = floats(path.with_file_name(format!("{expected}.bin")));
        let error = largest_difference(&logits, &expected);
        println!("{name}: {error:.1e}");
        assert!(error <= bound, "{name}: {error}");

        let mut caches = [network.cache()];
        let mut last = Vec::new();
        for token in prompt {
            let hidden = network.extend(&[vec![token]], &mut caches).unwrap();
            last = network.logits(&hidden, None).unwrap();
        }
        assert!(largest_difference(&logits, &last) < 1e-4, "{name}: token by token");
    }
}
