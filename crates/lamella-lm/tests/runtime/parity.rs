//! Parity with `transformers` (golden files by `tools/golden.py`).

use lamella_lm::{Family, LmError, Network, Tokenizer};
use serde_json::{Value, json};

use crate::support::{
    arrays, floats, golden, json, largest_difference, minilm, network, shared, standard_deviation, tokens,
};

/// Output of a random model: logits, or an encoder's last rows.
fn output(name: &str, config: &Value) -> Result<Vec<f32>, LmError> {
    let directory = golden(name);
    let network = Network::open(config, arrays(directory.join("model.safetensors")))?;
    let input = json(directory.join("tokens.json"));
    let sequence = vec![tokens(&input["tokens"])];
    let mut hidden = match input.get("token_types") {
        Some(types) => network.begin_with_types(&sequence, &[tokens(types)])?,
        None => network.begin(&sequence)?,
    };
    for index in 0..network.n_blocks() {
        network.block(index, &mut hidden, None)?;
    }
    match network.family() {
        Family::Decoder => network.logits(&hidden, None),
        Family::Encoder => Ok(hidden.values().to_vec()),
    }
}

fn expected(name: &str) -> Vec<f32> {
    let logits = golden(name).join("logits.bin");
    floats(if logits.exists() { logits } else { golden(name).join("hidden.bin") })
}

/// Error over the output's standard deviation.
fn relative_error(name: &str, config: &Value) -> Result<f32, LmError> {
    let expected = expected(name);
    Ok(largest_difference(&output(name, config)?, &expected) / standard_deviation(&expected))
}

const MODELS: [&str; 17] = [
    "llama",
    "llama_bias",
    "llama_rope_linear",
    "llama_rope_dynamic",
    "llama_rope_llama3",
    "llama_rope_yarn",
    "mistral",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "gpt2",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "bert",
    "roberta",
    "rwkv7",
];

#[test]
fn random_models_of_every_architecture_agree_with_transformers() {
    for name in MODELS {
        let error = relative_error(name, &json(golden(name).join("config.json"))).unwrap();
        println!("{name}: {error:.1e}");
        assert!(error <= 1e-4, "{name}: {error}");
    }
}

/// A configuration with one field changed; `null` takes it out.
fn changed(name: &str, field: &str, value: Value) -> Value {
    let mut config = json(golden(name).join("config.json"));
    config[field] = value;
    config
}

#[test]
fn switching_off_a_feature_breaks_parity() {
    let default_rope = json!({"rope_type": "default", "rope_theta": 10_000.0});
    for (name, field, value) in [
        ("llama_bias", "attention_bias", json!(false)),
        ("llama_bias", "mlp_bias", json!(false)),
        ("llama_rope_linear", "rope_scaling", Value::Null),
        ("llama_rope_linear", "rope_parameters", default_rope.clone()),
        ("llama_rope_dynamic", "rope_parameters", default_rope.clone()),
        ("llama_rope_llama3", "rope_parameters", default_rope.clone()),
        ("llama_rope_yarn", "rope_parameters", default_rope.clone()),
        ("mistral", "sliding_window", Value::Null),
        ("qwen2_window", "use_sliding_window", json!(false)),
        ("qwen2", "model_type", json!("llama")),
        ("qwen3", "model_type", json!("llama")),
        ("mixtral", "num_experts_per_tok", json!(1)),
        ("qwen2_moe", "norm_topk_prob", json!(true)),
        ("qwen2_moe", "qkv_bias", json!(false)),
        ("qwen3_moe", "norm_topk_prob", json!(false)),
        ("gpt2", "activation_function", json!("relu")),
        ("bert", "hidden_act", json!("gelu_new")),
        ("roberta", "pad_token_id", json!(0)),
    ] {
        let config = json(golden(name).join("config.json"));
        if field == "rope_scaling" && config.get(field).is_none() {
            continue;
        }
        match relative_error(name, &changed(name, field, value)) {
            Ok(error) => assert!(error > 3e-4, "{name} without {field}: {error}"),
            Err(LmError::UnexpectedArray { .. }) => {}
            Err(error) => panic!("{name} without {field}: {error}"),
        }
    }
}

#[test]
fn wiki5m_agrees_with_transformers() {
    let Some(directory) = shared("lm/wiki5m") else { return };
    let input = json(golden("wiki5m/tokens.json"));
    let tokenizer = Tokenizer::from_file(directory.join("tokenizer.json")).unwrap();
    let text = tokenizer.encode(input["text"].as_str().unwrap(), false).unwrap();
    assert_eq!(text, tokens(&input["text_tokens"]));
    let network = network(&directory);
    let hidden = network.forward(&[tokens(&input["tokens"])]).unwrap();
    let expected = floats(golden("wiki5m/logits.bin"));
    let mut largest = 0f32;
    for (position, expected) in
        tokens(&input["positions"]).iter().zip(expected.chunks_exact(network.vocab_size()))
    {
        let row = *position as usize;
        let logits = network.logits_range(&hidden, row..row + 1, None).unwrap();
        largest = largest.max(largest_difference(&logits, expected));
    }
    println!("wiki5m: {largest:.1e}");
    assert!(largest <= 1e-4, "{largest}");
}

#[test]
fn minilm_agrees_with_transformers() {
    let Some(directory) = minilm() else { return };
    let network = network(&directory);
    let tokenizer = Tokenizer::from_file(directory.join("tokenizer.json")).unwrap();
    let sentences = json(golden("minilm/sentences.json"));
    let batch: Vec<Vec<u32>> = sentences
        .as_array()
        .unwrap()
        .iter()
        .map(|sentence| {
            let expected = tokens(&sentence["tokens"]);
            let mut found = tokenizer.encode(sentence["text"].as_str().unwrap(), true).unwrap();
            if expected.len() == 128 {
                // The reference cuts at 128 tokens and keeps the last special one.
                found.truncate(127);
                found.push(expected[127]);
            }
            assert_eq!(found, expected);
            expected
        })
        .collect();
    let embeddings = network.embed(&network.forward(&batch).unwrap()).concat();
    let error = largest_difference(&embeddings, &floats(golden("minilm/embeddings.bin")));
    println!("minilm: {error:.1e}");
    assert!(error <= 1e-4, "{error}");
}
