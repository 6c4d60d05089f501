//! Tests on `tests/golden/tiny_llama.gguf`, which `tools/make_gguf_golden.py` wrote with the `gguf` package.

use sha2::{Digest, Sha256};

use super::*;

const GOLDEN: &[u8] = include_bytes!("../../tests/golden/tiny_llama.gguf");

fn open(bytes: &[u8]) -> Result<GgufFile, IoError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    fs_err::write(&path, bytes).unwrap();
    GgufFile::open(&path)
}

fn check_arrays(file: &GgufFile, expected: &str) {
    assert_eq!(expected.lines().count(), file.arrays().len());
    for line in expected.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let array = file.array(fields[0]).unwrap();
        let shape: Vec<String> = array.spec.shape.iter().map(usize::to_string).collect();
        assert_eq!(shape.join("x"), fields[1], "{}", fields[0]);
        let mut hasher = Sha256::new();
        array.to_f32().unwrap().iter().for_each(|value| hasher.update(value.to_le_bytes()));
        let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, fields[2], "{}", fields[0]);
    }
}

#[test]
fn experts_are_handed_out_one_by_one_and_llama3_scaling_is_recognised() {
    let file = open(include_bytes!("../../tests/golden/tiny_mixtral.gguf")).unwrap();
    check_arrays(&file, include_str!("../../tests/golden/tiny_mixtral.txt"));
    let config = file.config().unwrap();
    assert_eq!((&config["model_type"], &config["num_local_experts"]), (&"mixtral".into(), &3.into()));
    let scaling = &config["rope_scaling"];
    assert_eq!((&scaling["rope_type"], &scaling["factor"]), (&"llama3".into(), &8.0.into()));
}

#[test]
fn arrays_have_the_bits_and_names_of_the_reference() {
    let file = open(GOLDEN).unwrap();
    check_arrays(&file, include_str!("../../tests/golden/tiny_llama.txt"));
    assert_eq!(file.stored_as("model.layers.1.mlp.down_proj.weight"), Some(GgmlType::MXFP4));
}

#[test]
fn configuration_and_tokenizer_come_from_the_metadata() {
    let file = open(GOLDEN).unwrap();
    let config = file.config().unwrap();
    assert_eq!(config["model_type"], "llama");
    assert_eq!(config["rms_norm_eps"], 1e-6);
    assert_eq!(config["rope_theta"], 50000.0);
    assert_eq!(config["num_key_value_heads"], 1);
    assert_eq!(config["vocab_size"], 269);
    assert_eq!(config["tie_word_embeddings"], true);
    let tokenizer: tokenizers::Tokenizer = file.tokenizer_json().unwrap().to_string().parse().unwrap();
    let encoded = tokenizer.encode("abe x", true).unwrap();
    assert_eq!(encoded.get_tokens(), ["<s>", "▁abe", "▁", "<0x78>"]);
    assert_eq!(tokenizer.decode(encoded.get_ids(), true).unwrap(), "abe x");
    assert_eq!(file.numbers("tokenizer.ggml.token_type").unwrap()[..4], [2.0, 3.0, 3.0, 6.0]);
}

#[test]
fn cuts_and_flips_give_errors_or_arrays_inside_the_file() {
    let path = Path::new("m.gguf");
    let whole = Header::read(GOLDEN, path).unwrap();
    let data_start = whole.tensors.iter().map(|tensor| tensor.start).min().unwrap();
    let last = whole.tensors.iter().map(|tensor| tensor.start + tensor.size_bytes).max().unwrap();
    for length in (0..data_start).chain((data_start..last).step_by(97)).chain([last - 1]) {
        let message = Header::read(&GOLDEN[..length], path).unwrap_err().to_string();
        assert!(message.contains("m.gguf"), "{message}");
    }
    let mut flipped = GOLDEN.to_vec();
    for bit in (0..data_start * 8).step_by(13) {
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(header) = Header::read(&flipped, path) {
            for tensor in &header.tensors {
                assert!(tensor.start + tensor.size_bytes <= GOLDEN.len());
            }
        }
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn flipped_files_that_open_still_hand_out_every_array() {
    let header = Header::read(GOLDEN, Path::new("m")).unwrap();
    let data_start = header.tensors.iter().map(|tensor| tensor.start).min().unwrap();
    let mut flipped = GOLDEN.to_vec();
    for bit in (0..data_start * 8).step_by(331) {
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(file) = open(&flipped) {
            for spec in file.arrays() {
                assert_eq!(file.array(&spec.name).unwrap().spec, *spec);
            }
            file.config();
            let _ = file.tokenizer_json();
        }
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
}

/// A header with one metadata value and one tensor.
fn header(kind: u32, value: &[u8], extents: &[u64], tensor_kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    bytes.extend_from_slice(&1u64.to_le_bytes());
    bytes.extend_from_slice(&1u64.to_le_bytes());
    text(&mut bytes, "k");
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(value);
    text(&mut bytes, "w");
    bytes.extend_from_slice(&(extents.len() as u32).to_le_bytes());
    extents.iter().for_each(|extent| bytes.extend_from_slice(&extent.to_le_bytes()));
    bytes.extend_from_slice(&tensor_kind.to_le_bytes());
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
    bytes
}

#[test]
fn huge_claims_are_refused() {
    let array = |kind: u32, length: u64| [&kind.to_le_bytes()[..], &length.to_le_bytes()].concat();
    let good = header(4, &[1, 0, 0, 0], &[16], 0, 0);
    assert!(Header::read(&good, Path::new("m")).is_ok());
    let cases = [
        (header(9, &array(0, u64::MAX), &[16], 0, 0), "an array"),
        (header(9, &array(8, u64::MAX), &[16], 0, 0), "a text"),
        (header(9, &array(9, 1), &[16], 0, 0), "kind 9"),
        (header(8, &u64::MAX.to_le_bytes(), &[16], 0, 0), "a text"),
        (header(13, &[], &[16], 0, 0), "unknown kind"),
        (header(4, &[1, 0, 0, 0], &[1 << 40, 1 << 40], 0, 0), "overflows"),
        (header(4, &[1, 0, 0, 0], &[16], 0, u64::MAX), "it was cut"),
        (header(4, &[1, 0, 0, 0], &[17], 0, 0), "it was cut"),
        (header(4, &[1, 0, 0, 0], &[16], 12, 0), "no whole blocks"),
        (header(4, &[1, 0, 0, 0], &[16], 99, 0), "unknown element type"),
        (header(4, &[1, 0, 0, 0], &[1, 1, 1, 1, 1], 0, 0), "axes"),
    ];
    for (bytes, part) in cases {
        let message = Header::read(&bytes, Path::new("m")).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

/// A GGUF file of metadata alone: texts and arrays of texts.
fn metadata_file(texts: &[(&str, &str)], arrays: &[(&str, Vec<String>)]) -> Vec<u8> {
    let put = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&((texts.len() + arrays.len()) as u64).to_le_bytes());
    for (key, text) in texts {
        put(&mut bytes, key);
        bytes.extend_from_slice(&8u32.to_le_bytes());
        put(&mut bytes, text);
    }
    for (key, values) in arrays {
        put(&mut bytes, key);
        bytes.extend_from_slice(&9u32.to_le_bytes());
        bytes.extend_from_slice(&8u32.to_le_bytes());
        bytes.extend_from_slice(&(values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| put(&mut bytes, value));
    }
    bytes
}

#[test]
fn byte_level_tokenizers_cut_text_as_their_family_does() {
    let (Some(vocabulary), Some(merges)) =
        (crate::test_data("lm/gpt2_tokenizer/vocab.json"), crate::test_data("lm/gpt2_tokenizer/merges.txt"))
    else {
        return;
    };
    let vocabulary: BTreeMap<String, usize> =
        serde_json::from_slice(&fs_err::read(vocabulary).unwrap()).unwrap();
    let mut tokens = vec![String::new(); vocabulary.len()];
    for (token, id) in vocabulary {
        tokens[id] = token;
    }
    let merges = fs_err::read_to_string(merges).unwrap();
    let merges: Vec<String> = merges
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .map(str::to_owned)
        .collect();
    let text = "Hello  world's 12345 dogs, naïve?\n\n x";
    // The first is GPT-2's known encoding; in the others numbers fall apart into three digits or one.
    let cases = [("gpt-2", 1, "Ġ12345"), ("llama-bpe", 2, "123"), ("qwen2", 5, "1")];
    for (pre, n_pieces, first) in cases {
        let texts = [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", pre)];
        let arrays = [("tokenizer.ggml.tokens", tokens.clone()), ("tokenizer.ggml.merges", merges.clone())];
        let file = open(&metadata_file(&texts, &arrays)).unwrap();
        let tokenizer: tokenizers::Tokenizer = file.tokenizer_json().unwrap().to_string().parse().unwrap();
        let encoded = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(encoded.get_ids(), true).unwrap(), text);
        let digits: Vec<&String> =
            encoded.get_tokens().iter().filter(|token| token.bytes().any(|b| b.is_ascii_digit())).collect();
        if pre == "gpt-2" {
            assert_eq!(encoded.get_ids()[..3], [15496, 220, 995]);
        } else {
            assert_eq!((digits.len(), digits[0].as_str()), (n_pieces, first), "{pre}");
        }
    }
    let texts = [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "unheard-of")];
    let file = open(&metadata_file(&texts, &[("tokenizer.ggml.tokens", tokens)])).unwrap();
    assert!(file.tokenizer_json().unwrap_err().contains("unheard-of"));
}
