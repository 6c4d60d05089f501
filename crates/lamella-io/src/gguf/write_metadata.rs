//! GGUF's metadata out of `config.json`, `tokenizer.json` and what stands beside them.

use std::collections::BTreeMap;

use lamella_codec::ArraySpec;
use serde_json::Value;

use super::names::{GgufSource, Naming, tensors};
use super::{GgufField, GgufWriteError, tokenizer};

const KNOWN: &str = "llama, mistral, mixtral, qwen2, qwen2_moe, qwen3 and qwen3_moe";

/// What a GGUF file of a model holds.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GgufPlan {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// All metadata but `general.file_type`, in the order it is written.
    pub fields: Vec<(String, GgufField)>,
    /// The tensors, in the order they are written.
    pub tensors: Vec<GgufSource>,
    /// `rope_freqs.weight`: the divisors of Llama 3's frequencies, where the model scales them so.
    pub rope_divisors: Option<Vec<f32>>,
    /// What the user should know: metadata that GGUF has no place for.
    pub warnings: Vec<String>,
}

impl GgufPlan {
    /// Plans the file of a model called `name` with these arrays and side files.
    ///
    /// # Errors
    /// An architecture, array or tokenizer that has no form in GGUF; a missing or contradicting configuration.
    pub fn new(
        name: &str,
        specs: &[ArraySpec],
        side_files: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, GgufWriteError> {
        let config = json(side_files, "config.json")?
            .ok_or_else(|| GgufWriteError::Config { message: "is missing".to_owned() })?;
        let model_type = config["model_type"].as_str().unwrap_or("");
        let architecture = match model_type {
            "llama" | "mistral" | "mixtral" => "llama",
            "qwen2" => "qwen2",
            "qwen3" => "qwen3",
            "qwen2_moe" => "qwen2moe",
            "qwen3_moe" => "qwen3moe",
            _ => {
                let model_type = model_type.to_owned();
                return Err(GgufWriteError::Architecture { model_type, known: KNOWN });
            }
        };
        let count = |field: &str| config[field].as_u64().and_then(|value| u32::try_from(value).ok());
        let need = |field: &str| {
            count(field)
                .filter(|&value| value > 0)
                .ok_or_else(|| GgufWriteError::Config { message: format!("has no usable `{field}`") })
        };
        let (width, heads) = (need("hidden_size")?, need("num_attention_heads")?);
        let key_heads = count("num_key_value_heads").filter(|&heads| heads > 0).unwrap_or(heads);
        let head_width = count("head_dim").filter(|&width| width > 0).unwrap_or(width / heads);
        let vocabulary = specs
            .iter()
            .find(|spec| spec.name == "model.embed_tokens.weight")
            .and_then(|spec| spec.shape.first().copied())
            .ok_or_else(|| GgufWriteError::Array {
                array: "model.embed_tokens.weight".to_owned(),
                message: "it is missing".to_owned(),
            })?;
        let is_mixture_of_qwen = architecture.ends_with("moe");
        let dense = config["mlp_only_layers"].as_array().is_some_and(|layers| !layers.is_empty());
        if is_mixture_of_qwen && (dense || count("decoder_sparse_step").is_some_and(|step| step != 1)) {
            let message =
                "has layers without experts, which llama.cpp does not read in this architecture".to_owned();
            return Err(GgufWriteError::Config { message });
        }
        let naming = Naming {
            reorders: architecture == "llama",
            query_heads: heads as usize,
            key_heads: key_heads as usize,
            is_tied: config["tie_word_embeddings"].as_bool().unwrap_or(false),
        };
        let mut plan = Self {
            architecture,
            fields: Vec::new(),
            tensors: tensors(specs, &naming)?,
            rope_divisors: None,
            warnings: Vec::new(),
        };
        plan.put("general.architecture", GgufField::Text(architecture.to_owned()));
        plan.put("general.type", GgufField::Text("model".to_owned()));
        plan.put("general.name", GgufField::Text(name.to_owned()));
        plan.put("general.quantization_version", GgufField::U32(2));
        plan.own_count("context_length", count("max_position_embeddings"));
        plan.own_count("embedding_length", Some(width));
        plan.own_count("block_count", Some(need("num_hidden_layers")?));
        let feed_forward = count("intermediate_size").or_else(|| count("moe_intermediate_size"));
        plan.own_count("feed_forward_length", feed_forward);
        plan.own_count("attention.head_count", Some(heads));
        plan.own_count("attention.head_count_kv", Some(key_heads));
        plan.own_count("attention.key_length", Some(head_width));
        plan.own_count("attention.value_length", Some(head_width));
        plan.own_count("rope.dimension_count", Some(head_width));
        plan.own_count("vocab_size", u32::try_from(vocabulary).ok());
        let epsilon = config["rms_norm_eps"].as_f64().unwrap_or(1e-6);
        plan.own("attention.layer_norm_rms_epsilon", GgufField::F32(epsilon as f32));
        let uses_window = config["use_sliding_window"].as_bool().unwrap_or(model_type == "mistral");
        if let Some(window) = count("sliding_window").filter(|&window| window > 0 && uses_window) {
            plan.own_count("attention.sliding_window", Some(window));
            if count("max_position_embeddings").is_none_or(|context| context > window) {
                plan.warnings.push(format!(
                    "llama.cpp runs `{architecture}` without the sliding window of {window} tokens: results differ \
                     behind it"
                ));
            }
        }
        let experts = count("num_local_experts").or_else(|| count("num_experts")).filter(|&count| count > 0);
        if let Some(experts) = experts {
            plan.own_count("expert_count", Some(experts));
            plan.own_count("expert_used_count", Some(need("num_experts_per_tok")?));
            if is_mixture_of_qwen {
                plan.own_count("expert_feed_forward_length", count("moe_intermediate_size"));
                plan.own_count("expert_shared_feed_forward_length", count("shared_expert_intermediate_size"));
            }
        }
        plan.rope(&config, head_width as usize)?;
        tokenizer::fields(&mut plan, &config, side_files, vocabulary)?;
        Ok(plan)
    }

    pub(super) fn put(&mut self, key: &str, field: GgufField) {
        self.fields.push((key.to_owned(), field));
    }

    fn own(&mut self, key: &str, field: GgufField) {
        let key = format!("{}.{key}", self.architecture);
        self.fields.push((key, field));
    }

    fn own_count(&mut self, key: &str, count: Option<u32>) {
        if let Some(count) = count {
            self.own(key, GgufField::U32(count));
        }
    }

    /// Rotary base and scaling. Older configurations have `rope_theta` and `rope_scaling`, newer ones
    /// `rope_parameters`.
    fn rope(&mut self, config: &Value, head_width: usize) -> Result<(), GgufWriteError> {
        let scaling = match &config["rope_scaling"] {
            Value::Null => &config["rope_parameters"],
            scaling => scaling,
        };
        let base = config["rope_theta"].as_f64().or_else(|| config["rope_parameters"]["rope_theta"].as_f64());
        let base = base.unwrap_or(10_000.0);
        self.own("rope.freq_base", GgufField::F32(base as f32));
        let kind = scaling["rope_type"].as_str().or_else(|| scaling["type"].as_str()).unwrap_or("default");
        let number = |field: &str| scaling[field].as_f64().filter(|value| value.is_finite());
        let factor = number("factor").filter(|&factor| factor > 0.0);
        let need = |value: Option<f64>, field: &str| {
            value.ok_or_else(|| GgufWriteError::Config {
                message: format!("has no usable `{field}` for its `{kind}` rope scaling"),
            })
        };
        match kind {
            "default" => {}
            "linear" | "yarn" => {
                self.own("rope.scaling.type", GgufField::Text(kind.to_owned()));
                self.own("rope.scaling.factor", GgufField::F32(need(factor, "factor")? as f32));
                if kind == "yarn" {
                    let original = number("original_max_position_embeddings")
                        .or_else(|| config["max_position_embeddings"].as_f64());
                    let original = need(original, "original_max_position_embeddings")?;
                    self.own_count("rope.scaling.original_context_length", Some(original as u32));
                    if ["beta_fast", "beta_slow", "attention_factor", "mscale"].iter().any(|key| {
                        let ordinary = match *key {
                            "beta_fast" => 32.0,
                            "beta_slow" => 1.0,
                            _ => f64::NAN,
                        };
                        number(key).is_some_and(|value| value != ordinary)
                    }) {
                        self.warnings.push(
                            "YaRN's own betas and attention factor are left out: llama.cpp uses its defaults"
                                .to_owned(),
                        );
                    }
                }
            }
            "llama3" => {
                let factor = need(factor, "factor")?;
                let low = need(number("low_freq_factor"), "low_freq_factor")?;
                let high = need(number("high_freq_factor"), "high_freq_factor")?;
                let original =
                    need(number("original_max_position_embeddings"), "original_max_position_embeddings")?;
                if high <= low {
                    return Err(GgufWriteError::Config {
                        message: "has `high_freq_factor` not over `low_freq_factor`".to_owned(),
                    });
                }
                let divisor = |i: usize| {
                    let frequency = base.powf(-2.0 * i as f64 / head_width as f64);
                    let turns = original * frequency / std::f64::consts::TAU;
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
                };
                self.rope_divisors = Some((0..head_width / 2).map(divisor).collect());
            }
            "dynamic" => self.warnings.push(
                "`dynamic` rope scaling has no form in GGUF and is left out: results differ only behind the \
                 model's context length"
                    .to_owned(),
            ),
            other => {
                let message = format!("asks for `{other}` rope scaling, which has no form in GGUF");
                return Err(GgufWriteError::Config { message });
            }
        }
        Ok(())
    }
}

/// A side file as JSON.
pub(super) fn json(
    side_files: &BTreeMap<String, Vec<u8>>,
    name: &str,
) -> Result<Option<Value>, GgufWriteError> {
    let parse = |bytes: &Vec<u8>| {
        serde_json::from_slice(bytes).map_err(|error| GgufWriteError::Config {
            message: format!("or `{name}` beside it is no JSON: {error}"),
        })
    };
    side_files.get(name).map(parse).transpose()
}
