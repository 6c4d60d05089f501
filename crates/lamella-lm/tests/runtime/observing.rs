//! What observers see, and what sources are asked for.

use std::collections::BTreeMap;

use lamella_lm::{LmError, Network, Observer};
use serde_json::json;

use crate::support::{arrays, golden, json, network, tokens};

/// Rows by input key.
#[derive(Default)]
struct Rows(BTreeMap<String, (usize, Vec<f32>)>);

impl Observer for Rows {
    fn observe(&mut self, input: &str, features: usize, rows: &[f32]) {
        let entry = self.0.entry(input.to_owned()).or_insert_with(|| (features, Vec::new()));
        assert_eq!(entry.0, features, "{input}");
        assert_eq!(rows.len() % features, 0, "{input}");
        entry.1.extend_from_slice(rows);
    }
}

fn observe(network: &Network, sequences: &[Vec<u32>]) -> Rows {
    let mut rows = Rows::default();
    let mut hidden = network.begin(sequences).unwrap();
    for index in 0..network.n_blocks() {
        network.block(index, &mut hidden, Some(&mut rows)).unwrap();
    }
    network.observe_head(&hidden, &mut rows).unwrap();
    rows
}

#[test]
fn every_linear_shows_each_input_row_once() {
    for name in ["llama", "qwen2_moe", "mixtral", "gpt2", "bert", "rwkv7"] {
        let network = network(&golden(name));
        let text = tokens(&json(golden(name).join("tokens.json"))["tokens"]);
        let rows = observe(&network, &[text[..20].to_vec(), text[20..].to_vec()]);
        let mut routed = BTreeMap::new();
        for site in network.linears() {
            let Some((features, values)) = rows.0.get(&site.input) else {
                assert!(site.expert.is_some(), "{name}: nobody saw `{}`", site.input);
                continue;
            };
            assert_eq!(*features, site.in_features, "{name}: {}", site.weight);
            let seen = values.len() / features;
            match site.expert {
                Some(_) => *routed.entry((site.block, site.role)).or_insert(0) += seen,
                None => assert_eq!(seen, text.len(), "{name}: {}", site.input),
            }
        }
        assert!(routed.values().all(|&seen| seen == 2 * text.len()), "{name}: two experts for every token");
    }
}

#[test]
fn observers_see_the_same_bits_at_any_thread_count() {
    let network = network(&golden("mixtral"));
    let text = tokens(&json(golden("mixtral/tokens.json"))["tokens"]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| observe(&network, &[text.clone(), text[..9].to_vec()]).0)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn what_does_not_fit_is_named() {
    let source = arrays(golden("llama/model.safetensors"));
    let config = json(golden("llama/config.json"));
    let open = |field: &str, value: serde_json::Value| {
        let mut config = config.clone();
        config[field] = value;
        Network::open(&config, source.clone()).unwrap_err().to_string()
    };
    assert_eq!(
        open("num_hidden_layers", json!(3)),
        "`LlamaForCausalLM` needs array `model.layers.2.input_layernorm.weight`, which the checkpoint does not hold"
    );
    assert_eq!(
        open("vocab_size", json!(49)),
        "array `model.embed_tokens.weight` has shape [48, 32], the configuration asks for [49, 32]"
    );
    assert_eq!(
        open("num_key_value_heads", json!(3)),
        "configuration field `num_key_value_heads`: 3 does not divide 4 query heads"
    );
    let odd = json!({"model_type": "spiral", "architectures": ["SpiralForCausalLM"]});
    let error = Network::open(&odd, source.clone()).unwrap_err();
    assert!(matches!(error, LmError::UnknownArchitecture { .. }));
    assert!(error.to_string().contains("SpiralForCausalLM"));

    let network = Network::open(&config, source).unwrap();
    assert_eq!(
        network.begin(&[vec![3, 48]]).unwrap_err().to_string(),
        "token 48 is outside the vocabulary of 48"
    );
    assert!(matches!(
        network.block(2, &mut network.begin(&[vec![1]]).unwrap(), None),
        Err(LmError::Block { index: 2, n_blocks: 2 })
    ));
}

#[test]
fn hostile_configurations_are_errors() {
    let config = json(golden("qwen3_moe/config.json"));
    let source = arrays(golden("qwen3_moe/model.safetensors"));
    let values = [
        json!(0),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!("x"),
        json!([]),
        json!({}),
        json!(1u64 << 28),
        json!(7),
        json!(0.5),
        json!(true),
    ];
    for field in config.as_object().unwrap().keys() {
        for value in &values {
            let mut config = config.clone();
            config[field] = value.clone();
            if let Ok(network) = Network::open(&config, source.clone()) {
                let _ = network.forward(&[vec![1, 2]]);
            }
        }
    }
}

#[test]
fn resident_bytes_count_tied_heads_once() {
    let network = network(&golden("qwen3"));
    assert_eq!(network.resident_bytes(), 0);
    let mut names: Vec<&str> = network.linears().iter().map(|site| site.weight.as_str()).collect();
    let tables = network.embeddings();
    names.extend(tables.iter().map(String::as_str));
    names.sort_unstable();
    names.dedup();
    let bytes: usize = names.iter().map(|name| network.source().spec(name).unwrap().len() * 4).sum();
    drop(names);
    assert_eq!(network.resident().unwrap().resident_bytes(), bytes);
}
