//! Hugging Face configurations, family by family.

use serde_json::Value;

use crate::config::{FeedForwardConfig, Mixer, Naming, NormKind, NormOrder, Positions, TransformerConfig};
use crate::elementwise::Activation;
use crate::fields::Fields;
use crate::rope::RopeConfig;
use crate::{Family, LmError};

/// The architecture's name in a configuration: `model_type`, else the first of `architectures`.
pub(crate) fn model_type(config: &Value) -> String {
    let fields = Fields(config);
    if let Some(kind) = fields.text("model_type") {
        return kind.to_owned();
    }
    let name = architecture(config);
    for (prefix, kind) in [
        ("LlamaFor", "llama"),
        ("LlamaModel", "llama"),
        ("MistralFor", "mistral"),
        ("Qwen2MoeFor", "qwen2_moe"),
        ("Qwen3MoeFor", "qwen3_moe"),
        ("Qwen2For", "qwen2"),
        ("Qwen3For", "qwen3"),
        ("MixtralFor", "mixtral"),
        ("GPT2", "gpt2"),
        ("Bert", "bert"),
        ("Roberta", "roberta"),
        ("XLMRoberta", "xlm-roberta"),
    ] {
        if name.starts_with(prefix) {
            return kind.to_owned();
        }
    }
    name
}

/// What errors call the network.
pub(crate) fn architecture(config: &Value) -> String {
    let fields = Fields(config);
    fields
        .get("architectures")
        .and_then(|list| list.get(0)?.as_str())
        .or_else(|| fields.text("model_type"))
        .unwrap_or("(none named)")
        .to_owned()
}

impl TransformerConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// Known `model_type`s: llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe, gpt2, bert, roberta,
    /// xlm-roberta, camembert; and rwkv5, rwkv6, rwkv7 for rwkv.cpp's arrays.
    ///
    /// # Errors
    /// [`LmError::UnknownArchitecture`] for every other; [`LmError::Config`] where a field is missing or out of
    /// range.
    pub fn from_json(config: &Value) -> Result<Self, LmError> {
        let parsed = match model_type(config).as_str() {
            kind @ ("llama" | "mistral" | "mixtral" | "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe") => {
                Self::llama_like(config, kind)?
            }
            "gpt2" => Self::gpt2(config)?,
            kind @ ("rwkv5" | "rwkv6" | "rwkv7") => Self::rwkv(config, kind)?,
            kind @ ("bert" | "roberta" | "xlm-roberta" | "camembert") => Self::bert_like(config, kind)?,
            _ => return Err(LmError::UnknownArchitecture { architecture: architecture(config) }),
        };
        parsed.checked()
    }

    fn checked(self) -> Result<Self, LmError> {
        let bad = |field: &str, message: String| Err(LmError::Config { field: field.to_owned(), message });
        if !self.n_heads.is_multiple_of(self.kv_heads) {
            return bad(
                "num_key_value_heads",
                format!("{} does not divide {} query heads", self.kv_heads, self.n_heads),
            );
        }
        if matches!(self.positions, Positions::Rotary(_)) && !self.head_dim.is_multiple_of(2) {
            return bad("head_dim", format!("{} is odd, rotation pairs features", self.head_dim));
        }
        if self.n_heads.saturating_mul(self.head_dim) > 1 << 28 {
            return bad("head_dim", format!("{} heads of {} are too wide", self.n_heads, self.head_dim));
        }
        for feed_forward in &self.feed_forward {
            if let FeedForwardConfig::Experts { n_experts, experts_per_token, .. } = feed_forward
                && (*n_experts > 1 << 16 || experts_per_token > n_experts)
            {
                return bad(
                    "num_experts_per_tok",
                    format!("{experts_per_token} of {n_experts} experts cannot be chosen"),
                );
            }
        }
        Ok(self)
    }

    fn llama_like(config: &Value, kind: &str) -> Result<Self, LmError> {
        let fields = Fields(config);
        let is_qwen = kind.starts_with("qwen");
        let hidden_size = fields.extent("hidden_size")?;
        let n_blocks = blocks(fields, "num_hidden_layers")?;
        let n_heads = fields.extent("num_attention_heads")?;
        let head_dim = match kind {
            "qwen3" => fields.extent_or("head_dim", Some(128))?,
            _ => fields.extent_or("head_dim", Some((hidden_size / n_heads).max(1)))?,
        };
        let context_length = fields.extent_or("max_position_embeddings", Some(2048))?;
        let attention_bias = fields.flag_or("attention_bias", false)?;
        let (has_query_key_value_bias, has_output_bias) = match kind {
            "llama" | "qwen3" | "qwen3_moe" => (attention_bias, attention_bias),
            "qwen2" => (true, false),
            "qwen2_moe" => (fields.flag_or("qkv_bias", true)?, false),
            _ => (false, false),
        };
        let default_theta = if kind == "mixtral" { 1e6 } else { 1e4 };
        Ok(Self {
            architecture: architecture(config),
            family: Family::Decoder,
            mixer: Mixer::Attention,
            naming: if kind == "mixtral" { Naming::Mixtral } else { Naming::Llama },
            hidden_size,
            n_blocks,
            n_heads,
            kv_heads: fields.extent_or("num_key_value_heads", Some(n_heads))?,
            head_dim,
            vocab_size: fields.extent("vocab_size")?,
            context_length,
            type_vocab_size: 0,
            norm: NormKind::RootMeanSquare,
            norm_epsilon: fields.positive_or("rms_norm_eps", if kind == "mixtral" { 1e-5 } else { 1e-6 })?
                as f32,
            norm_order: NormOrder::Before,
            positions: Positions::Rotary(RopeConfig::from_json(
                config,
                head_dim,
                context_length,
                default_theta,
            )?),
            windows: windows(fields, kind, n_blocks)?,
            has_query_key_norm: matches!(kind, "qwen3" | "qwen3_moe"),
            has_query_key_value_bias,
            has_output_bias,
            has_feed_forward_bias: !is_qwen && kind == "llama" && fields.flag_or("mlp_bias", false)?,
            is_gated: true,
            activation: activation(fields, "hidden_act", "silu")?,
            feed_forward: feed_forward(fields, kind, n_blocks)?,
            is_tied: fields.flag_or("tie_word_embeddings", false)?,
        })
    }

    fn gpt2(config: &Value) -> Result<Self, LmError> {
        let fields = Fields(config);
        let hidden_size = fields.extent("n_embd")?;
        let n_heads = fields.extent("n_head")?;
        let n_blocks = blocks(fields, "n_layer")?;
        let context_length = fields.extent_or("n_positions", Some(1024))?;
        for (field, expected) in [
            ("scale_attn_weights", true),
            ("scale_attn_by_inverse_layer_idx", false),
            ("add_cross_attention", false),
        ] {
            if fields.flag_or(field, expected)? != expected {
                return Err(LmError::Config {
                    field: field.to_owned(),
                    message: format!("is {}, only {expected} is built", !expected),
                });
            }
        }
        divides(n_heads, hidden_size, "n_head", "n_embd")?;
        Ok(Self {
            architecture: architecture(config),
            family: Family::Decoder,
            naming: Naming::Gpt2,
            mixer: Mixer::Attention,
            hidden_size,
            n_blocks,
            n_heads,
            kv_heads: n_heads,
            head_dim: hidden_size / n_heads,
            vocab_size: fields.extent("vocab_size")?,
            context_length,
            type_vocab_size: 0,
            norm: NormKind::Layer,
            norm_epsilon: fields.positive_or("layer_norm_epsilon", 1e-5)? as f32,
            norm_order: NormOrder::Before,
            positions: Positions::Learned { rows: context_length, offset: 0 },
            windows: vec![None; n_blocks],
            has_query_key_norm: false,
            has_query_key_value_bias: true,
            has_output_bias: true,
            has_feed_forward_bias: true,
            is_gated: false,
            activation: activation(fields, "activation_function", "gelu_new")?,
            feed_forward: vec![
                FeedForwardConfig::Dense {
                    intermediate_size: fields.extent_or("n_inner", Some(4 * hidden_size))?
                };
                n_blocks
            ],
            is_tied: fields.flag_or("tie_word_embeddings", true)?,
        })
    }

    fn rwkv(config: &Value, kind: &str) -> Result<Self, LmError> {
        let fields = Fields(config);
        let hidden_size = fields.extent("hidden_size")?;
        let n_heads = fields.extent("num_attention_heads")?;
        let n_blocks = blocks(fields, "num_hidden_layers")?;
        divides(n_heads, hidden_size, "num_attention_heads", "hidden_size")?;
        let version = match kind {
            "rwkv5" => 5,
            "rwkv6" => 6,
            _ => 7,
        };
        Ok(Self {
            architecture: architecture(config),
            family: Family::Decoder,
            naming: Naming::Rwkv,
            mixer: Mixer::Rwkv(version),
            hidden_size,
            n_blocks,
            n_heads,
            kv_heads: n_heads,
            head_dim: hidden_size / n_heads,
            vocab_size: fields.extent("vocab_size")?,
            // Nothing limits it; this is how long the published networks' training texts were at least.
            context_length: fields.extent_or("max_position_embeddings", Some(1024))?,
            type_vocab_size: 0,
            norm: NormKind::Layer,
            norm_epsilon: fields.positive_or("layer_norm_epsilon", 1e-5)? as f32,
            norm_order: NormOrder::Before,
            positions: Positions::Order,
            windows: vec![None; n_blocks],
            has_query_key_norm: false,
            has_query_key_value_bias: false,
            has_output_bias: false,
            has_feed_forward_bias: false,
            is_gated: false,
            activation: Activation::Relu,
            feed_forward: vec![
                FeedForwardConfig::ChannelMix {
                    intermediate_size: fields.extent("intermediate_size")?
                };
                n_blocks
            ],
            is_tied: false,
        })
    }

    fn bert_like(config: &Value, kind: &str) -> Result<Self, LmError> {
        let fields = Fields(config);
        let hidden_size = fields.extent("hidden_size")?;
        let n_heads = fields.extent("num_attention_heads")?;
        let n_blocks = blocks(fields, "num_hidden_layers")?;
        let rows = fields.extent_or("max_position_embeddings", Some(512))?;
        if fields.flag_or("is_decoder", false)? {
            return Err(LmError::Config {
                field: "is_decoder".to_owned(),
                message: "is true, only encoders of this family are built".to_owned(),
            });
        }
        if let Some(embedding) = fields.text("position_embedding_type").filter(|&name| name != "absolute") {
            return Err(LmError::Config {
                field: "position_embedding_type".to_owned(),
                message: format!("is `{embedding}`, only `absolute` is built"),
            });
        }
        divides(n_heads, hidden_size, "num_attention_heads", "hidden_size")?;
        // RoBERTa counts positions from the row after the padding token's.
        let offset = if kind == "bert" { 0 } else { fields.count_or("pad_token_id", Some(1))? + 1 };
        if offset >= rows {
            return Err(LmError::Config {
                field: "max_position_embeddings".to_owned(),
                message: format!("{rows} rows leave no position after row {offset}"),
            });
        }
        Ok(Self {
            architecture: architecture(config),
            family: Family::Encoder,
            naming: Naming::Bert,
            mixer: Mixer::Attention,
            hidden_size,
            n_blocks,
            n_heads,
            kv_heads: n_heads,
            head_dim: hidden_size / n_heads,
            vocab_size: fields.extent("vocab_size")?,
            context_length: rows - offset,
            type_vocab_size: fields.extent_or("type_vocab_size", Some(2))?,
            norm: NormKind::Layer,
            norm_epsilon: fields.positive_or("layer_norm_eps", 1e-12)? as f32,
            norm_order: NormOrder::After,
            positions: Positions::Learned { rows, offset },
            windows: vec![None; n_blocks],
            has_query_key_norm: false,
            has_query_key_value_bias: true,
            has_output_bias: true,
            has_feed_forward_bias: true,
            is_gated: false,
            activation: activation(fields, "hidden_act", "gelu")?,
            feed_forward: vec![
                FeedForwardConfig::Dense {
                    intermediate_size: fields.extent("intermediate_size")?
                };
                n_blocks
            ],
            is_tied: false,
        })
    }
}

/// Number of blocks: bounded before anything is allocated for each.
fn blocks(fields: Fields<'_>, field: &str) -> Result<usize, LmError> {
    match fields.extent(field)? {
        count @ ..=4096 => Ok(count),
        count => Err(LmError::Config { field: field.to_owned(), message: format!("{count} is above 4096") }),
    }
}

fn divides(part: usize, whole: usize, part_field: &str, whole_field: &str) -> Result<(), LmError> {
    if whole.is_multiple_of(part) {
        return Ok(());
    }
    Err(LmError::Config {
        field: part_field.to_owned(),
        message: format!("{part} does not divide `{whole_field}` of {whole}"),
    })
}

fn activation(fields: Fields<'_>, field: &str, default: &str) -> Result<Activation, LmError> {
    let name = fields.text(field).unwrap_or(default);
    Activation::from_name(name).ok_or_else(|| LmError::Config {
        field: field.to_owned(),
        message: format!("`{name}` is not known (silu, gelu, gelu_new, gelu_pytorch_tanh, relu are)"),
    })
}

/// Sliding windows by block. Mistral and Mixtral use one everywhere; Qwen names its blocks, or starts at
/// `max_window_layers`.
fn windows(fields: Fields<'_>, kind: &str, n_blocks: usize) -> Result<Vec<Option<usize>>, LmError> {
    let everywhere = |is_used: bool| -> Result<Option<usize>, LmError> {
        if is_used && fields.get("sliding_window").is_some() {
            return Ok(Some(fields.extent("sliding_window")?));
        }
        Ok(None)
    };
    if kind == "llama" {
        return Ok(vec![None; n_blocks]);
    }
    if !kind.starts_with("qwen") {
        return Ok(vec![everywhere(true)?; n_blocks]);
    }
    let window = everywhere(fields.flag_or("use_sliding_window", false)?)?;
    if kind == "qwen3_moe" {
        return Ok(vec![window; n_blocks]);
    }
    let first = fields.count_or("max_window_layers", Some(28))?;
    let named = fields.get("layer_types").and_then(Value::as_array);
    if let Some(named) = named
        && named.len() != n_blocks
    {
        return Err(LmError::Config {
            field: "layer_types".to_owned(),
            message: format!("names {} blocks, the network has {n_blocks}", named.len()),
        });
    }
    Ok((0..n_blocks)
        .map(|index| {
            let slides = match named {
                Some(named) => named[index].as_str() == Some("sliding_attention"),
                None if kind == "qwen2_moe" => index % 2 == 0 && index < first,
                None => index >= first,
            };
            window.filter(|_| slides)
        })
        .collect())
}

fn feed_forward(fields: Fields<'_>, kind: &str, n_blocks: usize) -> Result<Vec<FeedForwardConfig>, LmError> {
    let dense = |field: &str| -> Result<FeedForwardConfig, LmError> {
        Ok(FeedForwardConfig::Dense { intermediate_size: fields.extent(field)? })
    };
    match kind {
        "mixtral" => {
            let experts = FeedForwardConfig::Experts {
                n_experts: fields.extent("num_local_experts")?,
                experts_per_token: fields.extent_or("num_experts_per_tok", Some(2))?,
                intermediate_size: fields.extent("intermediate_size")?,
                is_normalized: true,
                shared_intermediate_size: None,
            };
            Ok(vec![experts; n_blocks])
        }
        "qwen2_moe" | "qwen3_moe" => {
            let n_experts = match fields.get("num_experts") {
                Some(_) => fields.count_or("num_experts", None)?,
                None => fields.count_or("num_local_experts", None)?,
            };
            let step = fields.extent_or("decoder_sparse_step", Some(1))?;
            let dense_blocks = fields.counts("mlp_only_layers")?;
            (0..n_blocks)
                .map(|index| {
                    if dense_blocks.contains(&index) || n_experts == 0 || (index + 1) % step != 0 {
                        return dense("intermediate_size");
                    }
                    Ok(FeedForwardConfig::Experts {
                        n_experts,
                        experts_per_token: fields.extent("num_experts_per_tok")?,
                        intermediate_size: fields.extent("moe_intermediate_size")?,
                        is_normalized: fields.flag_or("norm_topk_prob", false)?,
                        shared_intermediate_size: if kind == "qwen2_moe" {
                            Some(fields.extent("shared_expert_intermediate_size")?)
                        } else {
                            None
                        },
                    })
                })
                .collect()
        }
        _ => Ok(vec![dense("intermediate_size")?; n_blocks]),
    }
}
