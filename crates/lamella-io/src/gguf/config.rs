//! `config.json` out of GGUF's metadata.

use lamella_codec::TensorSource;
use serde_json::{Value, json};

use super::GgufFile;
use super::names::Family;

/// Numbers that Llama 3 models share; GGUF keeps only the divisors that come out of them.
const LLAMA3_LOW_FREQUENCY: f64 = 1.0;
const LLAMA3_HIGH_FREQUENCY: f64 = 4.0;
const LLAMA3_ORIGINAL_CONTEXT: f64 = 8192.0;

pub(super) fn config(file: &GgufFile) -> Option<Value> {
    let architecture = file.text("general.architecture")?;
    let key = |name: &str| format!("{architecture}.{name}");
    let number = |name: &str| file.unsigned(&key(name));
    let n_experts = number("expert_count").unwrap_or(0);
    let family = Family::of(architecture, n_experts)?;
    let window = number("attention.sliding_window").filter(|&window| window > 0);
    let (model_type, class) = match (family, architecture) {
        (Family::Mixtral, _) => ("mixtral", "MixtralForCausalLM"),
        (Family::Llama, _) if window.is_some() => ("mistral", "MistralForCausalLM"),
        (Family::Llama, _) => ("llama", "LlamaForCausalLM"),
        (Family::Qwen, "qwen2moe") => ("qwen2_moe", "Qwen2MoeForCausalLM"),
        (Family::Qwen, "qwen3moe") => ("qwen3_moe", "Qwen3MoeForCausalLM"),
        (Family::Qwen, "qwen3") => ("qwen3", "Qwen3ForCausalLM"),
        (Family::Qwen, _) => ("qwen2", "Qwen2ForCausalLM"),
    };
    let width = number("embedding_length")?;
    let heads = number("attention.head_count").filter(|&heads| heads > 0)?;
    let embedding = file.spec("model.embed_tokens.weight")?;
    let has = |name: &str| file.spec(name).is_some();
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv").unwrap_or(heads),
        "head_dim": number("attention.key_length").unwrap_or(width / heads),
        "vocab_size": embedding.shape.first(),
        "max_position_embeddings": number("context_length"),
        "hidden_act": "silu",
        "rms_norm_eps": shortest(file.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5)),
        "rope_theta": shortest(file.float(&key("rope.freq_base")).unwrap_or(10000.0)),
        "rope_scaling": rope_scaling(file, architecture),
        "attention_bias": has("model.layers.0.self_attn.q_proj.bias"),
        "mlp_bias": has("model.layers.0.mlp.up_proj.bias"),
        "tie_word_embeddings": !has("lm_head.weight"),
        "bos_token_id": file.unsigned("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.unsigned("tokenizer.ggml.eos_token_id"),
    });
    if let Some(window) = window {
        config["sliding_window"] = json!(window);
    }
    if n_experts > 0 {
        let name = if family == Family::Mixtral { "num_local_experts" } else { "num_experts" };
        config[name] = json!(n_experts);
        config["num_experts_per_tok"] = json!(number("expert_used_count"));
        if family == Family::Qwen {
            config["moe_intermediate_size"] = json!(number("expert_feed_forward_length"));
            config["norm_topk_prob"] = json!(architecture == "qwen3moe");
            if let Some(shared) = number("expert_shared_feed_forward_length") {
                config["shared_expert_intermediate_size"] = json!(shared);
            }
        }
    }
    Some(config)
}

/// The number that a person wrote before it was rounded to `f32`: 1e-6 instead of 9.999999974752427e-7.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

fn rope_scaling(file: &GgufFile, architecture: &str) -> Value {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let factor = file.float(&key("factor")).filter(|&factor| factor > 0.0);
    match (file.text(&key("type")), factor) {
        (Some(kind @ ("linear" | "yarn")), Some(factor)) => {
            let mut scaling = json!({"rope_type": kind, "factor": shortest(factor)});
            if let Some(original) = file.unsigned(&key("original_context_length")) {
                scaling["original_max_position_embeddings"] = json!(original);
            }
            scaling
        }
        _ => llama3_scaling(file, architecture).unwrap_or(Value::Null),
    }
}

/// Llama 3.1's scaling, where `rope_freqs.weight` holds the divisors it gives.
fn llama3_scaling(file: &GgufFile, architecture: &str) -> Option<Value> {
    let divisors = file.array("rope_freqs.weight").ok()?.to_f32().ok()?;
    let factor = f64::from(divisors.iter().copied().fold(1.0f32, f32::max));
    let base = file.float(&format!("{architecture}.rope.freq_base")).unwrap_or(10000.0);
    let is_llama3 = divisors.iter().enumerate().all(|(i, &divisor)| {
        let frequency = base.powf(-(i as f64) / divisors.len() as f64);
        let turns = LLAMA3_ORIGINAL_CONTEXT * frequency / std::f64::consts::TAU;
        let smooth = (turns - LLAMA3_LOW_FREQUENCY) / (LLAMA3_HIGH_FREQUENCY - LLAMA3_LOW_FREQUENCY);
        let smooth = smooth.clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
        (f64::from(divisor) - expected).abs() <= 1e-3 * expected
    });
    is_llama3.then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LLAMA3_LOW_FREQUENCY,
            "high_freq_factor": LLAMA3_HIGH_FREQUENCY,
            "original_max_position_embeddings": LLAMA3_ORIGINAL_CONTEXT as u64
        })
    })
}
