//! GGUF out: what is written reads back, error feedback pays, and threads change nothing.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it cannot go on, and says what it measured"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use lamella_codec::{Silent, TensorSource};
use lamella_io::{GgmlType, GgufFile, ModelDirectory};
use lamella_lm::Model;
use lamella_lm::statistics::SequenceOptions;
use lamella_math::SecondMoment;
use lamella_weights::compressed_tensors::{self, Scheme, SchemeRule};
use lamella_weights::gguf::{Calibration, Export, ExportError, TypeRule, export, quantize};

const KINDS: [GgmlType; 12] = [
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::IQ4_NL,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::IQ4_XS,
];

/// Numbers that look normal: the sum of four even ones.
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut even = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (even() + even() + even() + even()) * 1.7).collect()
}

/// Inputs that share a common part, so that errors can be hidden.
fn correlated_inputs(features: usize) -> (Arc<SecondMoment>, Vec<f32>) {
    let tokens = 2 * features;
    let mut inputs = normal(tokens * features, 5);
    for row in inputs.chunks_exact_mut(features) {
        let common = row[0];
        row.iter_mut()
            .enumerate()
            .for_each(|(i, value)| *value = *value * 0.5 + common * (1.0 + (i % 3) as f32));
    }
    let mut moment = SecondMoment::new(features);
    moment.accumulate(&inputs);
    (Arc::new(moment), inputs)
}

fn output_error(weights: &[f32], found: &[f32], inputs: &[f32], features: usize) -> f64 {
    let mut sum = 0.0;
    for (weights, found) in weights.chunks_exact(features).zip(found.chunks_exact(features)) {
        for row in inputs.chunks_exact(features) {
            let output: f32 = row.iter().zip(weights.iter().zip(found)).map(|(x, (a, b))| x * (a - b)).sum();
            sum += f64::from(output) * f64::from(output);
        }
    }
    sum
}

#[test]
fn error_feedback_lowers_the_error_of_outputs_in_every_type() {
    let (rows, features) = (10, 256);
    let weights = normal(rows * features, 1);
    let (moment, inputs) = correlated_inputs(features);
    for kind in KINDS {
        let plain = kind.dequantize(&quantize(&weights, features, kind, None).unwrap());
        let swept = kind.dequantize(&quantize(&weights, features, kind, Some(&moment)).unwrap());
        let (plain, swept) = (
            output_error(&weights, &plain, &inputs, features),
            output_error(&weights, &swept, &inputs, features),
        );
        assert!(swept < 0.7 * plain, "{kind:?}: {swept} with feedback, {plain} without");
    }
}

#[test]
fn the_plain_error_is_what_the_bits_allow() {
    let weights = normal(4 * 512, 9);
    let energy: f32 = weights.iter().map(|value| value * value).sum();
    // Relative squared error on normal numbers, a little above what the types reach.
    let bounds = [1e-4, 0.01, 0.01, 0.0025, 0.0025, 0.01, 0.13, 0.04, 0.01, 0.0025, 6e-4, 0.01];
    for (kind, bound) in KINDS.into_iter().zip(bounds) {
        let found = kind.dequantize(&quantize(&weights, 512, kind, None).unwrap());
        let error: f32 = weights.iter().zip(&found).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!(error / energy < bound, "{kind:?}: {}", error / energy);
    }
}

#[test]
fn threads_change_no_byte() {
    let weights = normal(130 * 256, 3);
    let (moment, _) = correlated_inputs(256);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| quantize(&weights, 256, GgmlType::Q3_K, Some(&moment)).unwrap())
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn extreme_values_stay_finite() {
    for kind in KINDS {
        for value in [0.0f32, 1e-38, -3e4] {
            let found = kind.dequantize(&quantize(&[value; 256], 256, kind, None).unwrap());
            assert!(found.iter().all(|found| found.is_finite()), "{kind:?} {value}");
            assert!(
                found.iter().all(|found| (found - value).abs() <= 0.02 * value.abs() + 1e-6),
                "{kind:?} {value}"
            );
        }
    }
}

fn story() -> (Model, Arc<ModelDirectory>, BTreeMap<String, Vec<u8>>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/stories260k");
    let directory = Arc::new(ModelDirectory::open(path).unwrap());
    let side_files: BTreeMap<String, Vec<u8>> = directory.side_files().unwrap().into_iter().collect();
    let model = Model::open(directory.clone(), &side_files).unwrap();
    (model, directory, side_files)
}

fn request(output: std::path::PathBuf, kind: Option<GgmlType>) -> Export {
    Export {
        output,
        name: "story".to_owned(),
        kind,
        rules: Vec::new(),
        size: None,
        sequential: true,
        dry_run: false,
    }
}

#[test]
fn a_file_without_quantisation_reads_back_bit_for_bit() {
    let (model, source, side_files) = story();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("story.gguf");
    let report = export(&model, &side_files, None, &request(path.clone(), None), &Silent).unwrap();
    assert_eq!(report.bytes, std::fs::metadata(&path).unwrap().len());
    let file = GgufFile::open(&path).unwrap();
    for spec in file.arrays() {
        let (found, expected) = (file.array(&spec.name).unwrap(), source.array(&spec.name).unwrap());
        assert_eq!(found.spec.shape, expected.spec.shape, "{}", spec.name);
        assert_eq!(found.to_f32().unwrap(), expected.to_f32().unwrap(), "{}", spec.name);
    }
    let config = file.config().unwrap();
    for field in ["hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "rms_norm_eps"] {
        assert_eq!(config[field], model.config[field], "{field}");
    }
    // The tokenizer says the same of a text.
    let made = file.tokenizer_json().unwrap().to_string();
    let made = lamella_lm::Tokenizer::from_bytes(made.as_bytes()).unwrap();
    let text = "Once upon a time, there was a little girl named Lily. She said \"héllo\"!";
    let own = model.tokenizer.as_ref().unwrap();
    assert_eq!(made.encode(text, false).unwrap(), own.encode(text, false).unwrap());
}

#[test]
fn rows_that_are_no_whole_blocks_fall_back_and_rules_are_followed() {
    let (model, _, side_files) = story();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("story.gguf");
    let mut request = request(path.clone(), Some(GgmlType::Q4_K));
    request.rules.push(TypeRule { pattern: "*embed*".to_owned(), kind: GgmlType::F16 });
    export(&model, &side_files, None, &request, &Silent).unwrap();
    let file = GgufFile::open(&path).unwrap();
    // 64 columns are no block of 256 but two of 32; 172 are neither.
    let stored = |name: &str| file.stored_as(name).unwrap();
    assert_eq!(stored("model.layers.0.self_attn.q_proj.weight"), GgmlType::Q4_0);
    assert_eq!(stored("model.layers.0.mlp.down_proj.weight"), GgmlType::F16);
    assert_eq!(stored("model.embed_tokens.weight"), GgmlType::F16);
    assert_eq!(stored("model.norm.weight"), GgmlType::F32);
}

/// Statistics of 512 tokens of the asset's own text.
fn calibration(model: &Model) -> Calibration {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/stories260k/calibration.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let options = SequenceOptions { max_tokens: 512, context_length: 128, ..SequenceOptions::default() };
    Calibration::take(model, &text, &options, &Silent).unwrap()
}

#[test]
fn a_size_is_met_by_a_mix_of_types() {
    let (model, source, side_files) = story();
    let calibration = calibration(&model);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("story.gguf");
    let mut request = request(path.clone(), None);
    let size = 300_000;
    request.size = Some(size);
    assert!(matches!(export(&model, &side_files, None, &request, &Silent), Err(ExportError::SizeNeedsText)));
    let report = export(&model, &side_files, Some(&calibration), &request, &Silent).unwrap();
    let written = std::fs::metadata(&path).unwrap().len();
    assert_eq!(report.bytes, written);
    assert!(written <= size && written > size * 95 / 100, "{written} of {size}");
    let kinds: std::collections::BTreeSet<&str> =
        report.tensors.iter().map(|row| row.kind).filter(|kind| kind.contains('Q')).collect();
    assert!(kinds.len() > 1, "{kinds:?}");
    // Every number is near the original's.
    let file = GgufFile::open(&path).unwrap();
    for spec in file.arrays() {
        let found = file.array(&spec.name).unwrap().to_f32().unwrap();
        let expected = source.array(&spec.name).unwrap().to_f32().unwrap();
        let energy: f32 = expected.iter().map(|value| value * value).sum();
        let error: f32 = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!(error < 0.1 * energy, "{}: {}", spec.name, error / energy);
    }
    request.size = Some(100_000);
    let refused = export(&model, &side_files, Some(&calibration), &request, &Silent).unwrap_err();
    assert!(matches!(refused, ExportError::TooSmall { missing } if missing > 0), "{refused}");
}

#[test]
fn compressed_tensors_read_back_as_what_their_codes_stand_for() {
    let (model, source, side_files) = story();
    let calibration = calibration(&model);
    let directory = tempfile::tempdir().unwrap();
    let request = |name: &str, scheme| compressed_tensors::Export {
        output: directory.path().join(name),
        scheme,
        rules: Vec::new(),
        sequential: true,
        dynamic_activations: false,
        dry_run: false,
    };
    let schemes = [
        (Scheme::Int4 { group_size: 32 }, 0.1),
        (Scheme::Int8 { group_size: 32 }, 1e-3),
        (Scheme::Int8Channel, 2e-3),
        (Scheme::Fp8, 0.01),
    ];
    for (scheme, bound) in schemes {
        let request = request(scheme.name(), scheme);
        let report =
            compressed_tensors::export(&model, &side_files, Some(&calibration), &request, &Silent).unwrap();
        let read = ModelDirectory::open(&request.output).unwrap();
        assert_eq!(read.config(), source.config(), "the expanded model is not quantised");
        assert_eq!(read.arrays().len(), source.arrays().len());
        for spec in source.arrays() {
            let (found, expected) = (read.array(&spec.name).unwrap(), source.array(&spec.name).unwrap());
            assert_eq!(found.spec, expected.spec);
            let is_coded = report.linears.iter().any(|row| row.name == spec.name);
            if !is_coded {
                assert_eq!(found.bytes, expected.bytes, "{}", spec.name);
                continue;
            }
            let (found, expected) = (found.to_f32().unwrap(), expected.to_f32().unwrap());
            let energy: f32 = expected.iter().map(|value| value * value).sum();
            let error: f32 = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
            assert!(error < bound * energy, "{scheme:?} {}: {}", spec.name, error / energy);
        }
        // 172 columns are no groups of 32, so the down projections stay; rows take all columns.
        let is_grouped = matches!(scheme, Scheme::Int4 { .. } | Scheme::Int8 { .. });
        assert_eq!(report.linears.len(), if is_grouped { 30 } else { 35 });
    }
    let mut parted = request("parted", Scheme::Int8Channel);
    parted.rules.push(SchemeRule { pattern: "*.1.self_attn.k_proj.weight".to_owned(), scheme: None });
    let refused = compressed_tensors::export(&model, &side_files, None, &parted, &Silent).unwrap_err();
    assert!(refused.to_string().contains("layers.1.self_attn.k_proj"), "{refused}");
    assert!(!parted.output.exists());
}

#[test]
fn refusals_name_what_is_wrong() {
    let (model, _, side_files) = story();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("story.gguf");
    let fails = |request: &Export, side_files: &BTreeMap<String, Vec<u8>>| {
        export(&model, side_files, None, request, &Silent).unwrap_err()
    };
    let unwritten = fails(&request(path.clone(), Some(GgmlType::IQ1_S)), &side_files);
    assert!(matches!(unwritten, ExportError::Type { kind: "IQ1_S", .. }), "{unwritten}");
    let mut wrong = request(path.clone(), None);
    wrong.rules.push(TypeRule { pattern: "nothing*".to_owned(), kind: GgmlType::F16 });
    assert!(fails(&wrong, &side_files).to_string().contains("nothing*"));
    let mut unknown = side_files.clone();
    unknown.insert("config.json".to_owned(), br#"{"model_type": "gpt2"}"#.to_vec());
    assert!(fails(&request(path.clone(), None), &unknown).to_string().contains("gpt2"));
    assert!(!path.exists());
}
