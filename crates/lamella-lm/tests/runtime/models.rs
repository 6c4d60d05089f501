//! Opening of models: side files, prefixes of array names, changed weights.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamella_codec::{Array, TensorMap, TensorSource};
use lamella_lm::{Family, Model, Network};
use serde_json::json;

use crate::support::{arrays, golden, json, network, shared, tokens};

/// The same arrays under other names.
fn renamed(source: &dyn TensorSource, rename: impl Fn(&str) -> String) -> Arc<dyn TensorSource> {
    let mut map = TensorMap::default();
    for spec in source.arrays() {
        let mut array = source.array(&spec.name).unwrap().into_owned();
        array.spec.name = rename(&spec.name);
        map.insert(array);
    }
    Arc::new(map)
}

#[test]
fn prefixes_of_array_names_are_found() {
    for (name, from, to) in [
        ("qwen3", "model.", ""),
        ("gpt2", "transformer.", ""),
        ("bert", "", "bert."),
        ("roberta", "", "roberta."),
    ] {
        let expected = network(&golden(name));
        let source = renamed(&**expected.source(), |array| match array.strip_prefix(from) {
            Some(rest) => format!("{to}{rest}"),
            None => array.to_owned(),
        });
        let other = Network::open(&json(golden(name).join("config.json")), source).unwrap();
        assert!(other.linears()[0].weight.starts_with(to));
        let text = vec![tokens(&json(golden(name).join("tokens.json"))["tokens"])];
        let rows = |network: &Network| network.forward(&text).unwrap().values().to_vec();
        assert_eq!(rows(&expected), rows(&other), "{name}");
    }
}

#[test]
fn side_files_complete_a_model() {
    let Some(directory) = shared("lm/wiki5m") else { return };
    let read = |name: &str| (name.to_owned(), fs_err::read(directory.join(name)).unwrap());
    let mut files: BTreeMap<String, Vec<u8>> =
        ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"].map(read).into();
    let source = arrays(directory.join("model.safetensors"));
    let model = Model::open(source.clone(), &files).unwrap();
    let tokenizer = model.tokenizer.as_ref().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1)));
    assert_eq!(model.stop_tokens, [1]);
    assert_eq!(model.max_sequence_length, 512);
    assert_eq!(model.network.family(), Family::Decoder);
    assert_eq!(model.network.unused_arrays(), &[] as &[String]);
    let text = "The river had risen in the night .";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap()).unwrap().trim(), text);
    assert_eq!(tokenizer.vocab_size(), model.network.vocab_size());

    files.insert("tokenizer_config.json".to_owned(), br#"{"bos_token": null, "eos_token": "</s>"}"#.to_vec());
    let model = Model::open(source.clone(), &files).unwrap();
    assert_eq!(model.tokenizer.unwrap().bos(), None);
    files.insert("generation_config.json".to_owned(), b"{".to_vec());
    let error = Model::open(source.clone(), &files).unwrap_err().to_string();
    assert!(error.starts_with("side file `generation_config.json`"), "{error}");
    assert!(Model::open(source, &BTreeMap::new()).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn byte_level_recurrent_models_read_bytes() {
    let source = arrays(golden("rwkv7/model.safetensors"));
    let model = Model::with_config(json(golden("rwkv7/config.json")), source, &BTreeMap::new()).unwrap();
    assert!(model.tokenizer.is_none(), "48 tokens are no bytes");
    assert_eq!(model.network.linears().last().unwrap().weight, "head.weight");
}

#[test]
fn a_block_runs_with_the_weights_of_another_source() {
    let network = network(&golden("llama")).resident().unwrap();
    let text = vec![tokens(&json(golden("llama/tokens.json"))["tokens"])];
    let source = network.source().clone();
    let mut changed = TensorMap::default();
    for spec in source.arrays() {
        let array = source.array(&spec.name).unwrap();
        let halved: Vec<f32> = array.to_f32().unwrap().iter().map(|x| x / 2.0).collect();
        changed.insert(Array::from_f32(spec.clone(), &halved).unwrap());
    }
    let mut own = network.begin(&text).unwrap();
    let mut same = own.clone();
    let mut other = own.clone();
    network.block(0, &mut own, None).unwrap();
    network.block_with(0, &*source, &mut same, None).unwrap();
    network.block_with(0, &changed, &mut other, None).unwrap();
    assert_eq!(own.values(), same.values());
    assert_ne!(own.values(), other.values());
    let last = own.n_tokens() - 1..own.n_tokens();
    let logits = network.logits_range(&own, last.clone(), None).unwrap();
    assert_eq!(logits, network.logits_with(&*source, &own, last.clone(), None).unwrap());
    assert_ne!(logits, network.logits_with(&changed, &own, last, None).unwrap());
    let halved = network.begin_with(&changed, &text).unwrap();
    assert!(halved.values().iter().zip(network.begin(&text).unwrap().values()).all(|(a, b)| *a == b / 2.0));
}

#[test]
fn coded_operators_take_the_place_of_weights() {
    use lamella_lm::CodedLinear;
    /// Multiplies with a weight of ones.
    struct Ones(usize, usize);
    impl CodedLinear for Ones {
        fn apply(&self, inputs: &[f32], tokens: usize, outputs: &mut [f32], stride: usize, column: usize) {
            for token in 0..tokens {
                let sum: f32 = inputs[token * self.0..][..self.0].iter().sum();
                outputs[token * stride + column..][..self.1].fill(sum);
            }
        }
        fn add_row(&self, _index: usize, target: &mut [f32]) {
            target.iter_mut().for_each(|x| *x += 1.0);
        }
        fn resident_bytes(&self) -> usize {
            7
        }
    }
    let plain = network(&golden("llama")).resident().unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    let coded = network(&golden("llama"))
        .resident_with(&|site| {
            let operator = || Arc::new(Ones(site.in_features, site.out_features)) as Arc<dyn CodedLinear>;
            (site.weight == name).then(operator)
        })
        .unwrap();
    let spec = plain.source().spec(name).unwrap();
    assert_eq!(plain.resident_bytes() - coded.resident_bytes(), spec.len() * 4 - 7);
    let mut ones = TensorMap::default();
    for spec in plain.source().arrays() {
        let array = match spec.name == name {
            true => Array::from_f32(spec.clone(), &vec![1.0; spec.len()]).unwrap(),
            false => plain.source().array(&spec.name).unwrap().into_owned(),
        };
        ones.insert(array);
    }
    let expected = Network::open(&json!(json(golden("llama/config.json"))), Arc::new(ones)).unwrap();
    let text = vec![vec![3, 1, 4]];
    let (a, b) = (coded.forward(&text).unwrap(), expected.forward(&text).unwrap());
    assert!(crate::support::largest_difference(a.values(), b.values()) < 1e-3);
}

#[test]
fn a_model_of_coded_operators_alone_runs() {
    use lamella_lm::CodedLinear;
    /// Multiplies in the plainest way; claims one byte of memory.
    struct Plain(Vec<f32>, usize);
    impl CodedLinear for Plain {
        fn apply(&self, inputs: &[f32], tokens: usize, outputs: &mut [f32], stride: usize, column: usize) {
            for token in 0..tokens {
                let row = &inputs[token * self.1..][..self.1];
                for (o, weight) in self.0.chunks_exact(self.1).enumerate() {
                    outputs[token * stride + column + o] = row.iter().zip(weight).map(|(a, b)| a * b).sum();
                }
            }
        }
        fn add_row(&self, index: usize, target: &mut [f32]) {
            target.iter_mut().zip(&self.0[index * self.1..]).for_each(|(x, w)| *x += w);
        }
        fn resident_bytes(&self) -> usize {
            1
        }
    }
    for name in ["qwen3", "mixtral"] {
        let lazy = network(&golden(name));
        let source = lazy.source().clone();
        let coded = network(&golden(name))
            .resident_with(&|site| {
                let numbers = source.array(&site.weight).unwrap().to_f32().unwrap();
                Some(Arc::new(Plain(numbers, site.in_features)))
            })
            .unwrap();
        let is_tied = coded.linears().last().unwrap().weight == coded.embeddings()[0];
        assert_eq!(coded.resident_bytes(), coded.linears().len() + usize::from(!is_tied));
        let text = vec![tokens(&json(golden(name).join("tokens.json"))["tokens"])];
        let logits = |network: &Network| network.logits(&network.forward(&text).unwrap(), None).unwrap();
        assert!(crate::support::largest_difference(&logits(&lazy), &logits(&coded)) < 1e-3, "{name}");
    }
}
