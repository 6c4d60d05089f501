//! A network with what stands beside its weights: configuration, tokenizer, pooling.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamella_codec::TensorSource;
use serde_json::Value;

use crate::embedding::Pooling;
use crate::fields::Fields;
use crate::{LmError, Mixer, Network, Tokenizer};

/// A model as a directory holds it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Model {
    /// The network.
    pub network: Network,
    /// Its tokenizer, where there is a `tokenizer.json`.
    pub tokenizer: Option<Tokenizer>,
    /// `config.json`.
    pub config: Value,
    /// Tokens that end a generated text.
    pub stop_tokens: Vec<u32>,
    /// Tokens an encoder's texts are cut to (`sentence_bert_config.json`), else the network's context.
    pub max_sequence_length: usize,
}

/// Reads a side file as JSON, `None` where it does not exist.
fn json(side_files: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<Option<Value>, LmError> {
    side_files
        .get(name)
        .map(|bytes| {
            serde_json::from_slice(bytes)
                .map_err(|error| LmError::SideFile { name: name.to_owned(), message: error.to_string() })
        })
        .transpose()
}

/// A field that holds one token or a list of them.
fn tokens(config: Option<&Value>, field: &str) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    match config.and_then(|config| config.get(field)) {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

impl Model {
    /// Opens a model from its arrays and side files (`config.json` at least; names are paths relative to the
    /// model's directory).
    ///
    /// # Errors
    /// A missing or damaged `config.json`, and all of [`Network::open`].
    pub fn open(
        source: Arc<dyn TensorSource>,
        side_files: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, LmError> {
        let config = json(side_files, "config.json")?.ok_or_else(|| LmError::SideFile {
            name: "config.json".to_owned(),
            message: "is missing, so the architecture is not known".to_owned(),
        })?;
        Self::with_config(config, source, side_files)
    }

    /// As [`Model::open`] with a configuration that does not come from a side file: formats of one file carry theirs
    /// in a header. An RWKV network over 256 tokens without a tokenizer reads bytes.
    ///
    /// # Errors
    /// Damaged side files, and all of [`Network::open`].
    pub fn with_config(
        config: Value,
        source: Arc<dyn TensorSource>,
        side_files: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, LmError> {
        let mut network = Network::open(&config, source)?;
        if let Some(pooling) = json(side_files, "1_Pooling/config.json")? {
            network.set_pooling(Pooling::from_json(&pooling)?);
        }
        let generation = json(side_files, "generation_config.json")?;
        let mut stop_tokens = tokens(Some(&config), "eos_token_id");
        stop_tokens.extend(tokens(generation.as_ref(), "eos_token_id"));
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        let tokenizer = match side_files.get("tokenizer.json") {
            Some(bytes) => {
                let tokenizer = Tokenizer::from_bytes(bytes)?;
                let named = json(side_files, "tokenizer_config.json")?;
                let token = |field: &str, id: &str, guess: Option<u32>| {
                    let by_number = || tokens(Some(&config), id).first().copied().or(guess);
                    match named.as_ref().and_then(|named| named.get(field)) {
                        Some(Value::Null) => None,
                        Some(name) => name
                            .as_str()
                            .or_else(|| name.get("content")?.as_str())
                            .and_then(|name| tokenizer.token_id(name))
                            .or_else(by_number),
                        None => by_number(),
                    }
                };
                let bos = token("bos_token", "bos_token_id", tokenizer.bos());
                let eos = token("eos_token", "eos_token_id", tokenizer.eos());
                Some(tokenizer.with_special(bos, eos))
            }
            None if matches!(network.config().mixer, Mixer::Rwkv(_)) && network.vocab_size() == 256 => {
                Some(Tokenizer::bytes())
            }
            None => None,
        };
        let max_sequence_length = json(side_files, "sentence_bert_config.json")?
            .and_then(|config| Fields(&config).count_or("max_seq_length", None).ok())
            .unwrap_or(usize::MAX)
            .min(network.context_length());
        Ok(Self { network, tokenizer, config, stop_tokens, max_sequence_length })
    }
}
