//! The network with gradients says what the runtime says, for every architecture with golden files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamella_io::ModelDirectory;
use lamella_lm::{Family, Network};
use lamella_nn::{Pooling, Reference, Trained, read};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../lamella-lm/tests/golden")
}

fn open(name: &str) -> (Arc<ModelDirectory>, Network) {
    let directory = Arc::new(ModelDirectory::open(golden().join(name)).unwrap());
    let network = Network::open(&directory.config().unwrap(), directory.clone()).unwrap();
    (directory, network)
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / values.len() as f32).sqrt()
}

fn tokens(network: &Network) -> Vec<u32> {
    let length = network.context_length().min(70);
    (0..length).map(|i| ((i * i * 7 + 3 * i + 1) % network.vocab_size()) as u32).collect()
}

#[test]
fn decoders_agree_with_the_runtime() {
    for name in [
        "llama",
        "llama_bias",
        "llama_rope_dynamic",
        "llama_rope_linear",
        "llama_rope_llama3",
        "llama_rope_yarn",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen2_window",
        "qwen3",
        "qwen3_moe",
        "gpt2",
    ] {
        let (directory, network) = open(name);
        let tokens = tokens(&network);
        let hidden = network.forward(std::slice::from_ref(&tokens)).unwrap();
        let theirs = network.logits(&hidden, None).unwrap();
        for trained in [Trained::Vectors, Trained::Everything] {
            let own = read(&network, &*directory, tokens.len(), Pooling::Mean, trained).unwrap();
            let ours = own.network.logits(&tokens).unwrap().unwrap();
            let allowed = 1e-4 * deviation(&theirs);
            assert_eq!(ours.len(), theirs.len());
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert!((ours - theirs).abs() < allowed, "{name}: {ours} against {theirs}");
            }
        }
    }
}

#[test]
fn encoders_agree_with_the_runtime() {
    for name in ["bert", "roberta"] {
        let (directory, network) = open(name);
        assert_eq!(network.family(), Family::Encoder);
        let tokens = tokens(&network);
        let theirs = network.embed(&network.forward(std::slice::from_ref(&tokens)).unwrap()).concat();
        let agrees = [Pooling::Mean, Pooling::First].iter().any(|&pooling| {
            let own = read(&network, &*directory, tokens.len(), pooling, Trained::Everything).unwrap();
            let Reference::Embedding(ours) = own.network.reference(&tokens).unwrap() else { return false };
            ours.iter().zip(&theirs).all(|(ours, theirs)| (ours - theirs).abs() < 1e-5)
        });
        assert!(agrees, "{name}");
    }
}

#[test]
fn every_parameter_goes_back_to_its_array() {
    for name in ["gpt2", "qwen2_moe"] {
        let (directory, network) = open(name);
        let own = read(&network, &*directory, 8, Pooling::Mean, Trained::Everything).unwrap();
        for (parameter, values) in own.parameters.iter().zip(own.network.parameters()) {
            let array = lamella_codec::TensorSource::array(&*directory, &parameter.name).unwrap();
            assert_eq!(parameter.stored(values), array.to_f32().unwrap(), "{name}: {}", parameter.name);
        }
        assert_eq!(own.parameters.len(), lamella_codec::TensorSource::arrays(&*directory).len(), "{name}");
    }
}

#[test]
fn recurrent_networks_are_refused() {
    let (directory, network) = open("rwkv7");
    let error = read(&network, &*directory, 8, Pooling::Mean, Trained::Everything).unwrap_err();
    assert!(error.to_string().contains("recurrent"), "{error}");
}
