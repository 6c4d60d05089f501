//! Small decoders from nothing.

use lamella_codec::{Array, ArraySpec, Dtype, TensorMap};
use serde_json::{Value, json};

use super::{Random, TrainError};

/// A small Llama or, with experts, a small Mixtral; its head is the token embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub n_blocks: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub kv_heads: usize,
    /// Width of a feed-forward network (of each expert).
    pub intermediate_size: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Experts; 0 for one network for every token.
    pub n_experts: usize,
    /// Experts each token goes through.
    pub experts_per_token: usize,
    /// Tokens of context.
    pub context: usize,
}

impl Shape {
    /// Refuses what makes no network.
    ///
    /// # Errors
    /// [`TrainError::Field`] with the field, its value and what is allowed.
    pub fn check(&self) -> Result<(), TrainError> {
        let bad = |field, found: usize, allowed: String| {
            Err(TrainError::Field { field, found: found.to_string(), allowed })
        };
        for (field, found, most) in [
            ("dim", self.hidden_size, 1 << 14),
            ("layers", self.n_blocks, 1 << 10),
            ("heads", self.n_heads, 1 << 10),
            ("kv-heads", self.kv_heads, 1 << 10),
            ("feed-forward", self.intermediate_size, 1 << 16),
            ("context", self.context, 1 << 16),
        ] {
            if found == 0 || found > most {
                return bad(field, found, format!("it takes 1 to {most}"));
            }
        }
        if self.context < 2 {
            return bad("context", self.context, "a window needs 2 tokens or more".to_owned());
        }
        if !self.hidden_size.is_multiple_of(2 * self.n_heads) {
            let allowed = format!("{} heads of an even width must share it evenly", self.n_heads);
            return bad("dim", self.hidden_size, allowed);
        }
        if !self.n_heads.is_multiple_of(self.kv_heads) {
            return bad("kv-heads", self.kv_heads, format!("it must divide {} heads", self.n_heads));
        }
        if self.n_experts > 1 << 10 || self.n_experts == 1 {
            return bad("experts", self.n_experts, "it takes 0 (none) or 2 to 1024".to_owned());
        }
        if self.n_experts > 0 && !(1..=self.n_experts).contains(&self.experts_per_token) {
            let allowed = format!("it takes 1 to {} experts", self.n_experts);
            return bad("top-k", self.experts_per_token, allowed);
        }
        Ok(())
    }

    /// A Hugging Face `config.json`. Token 0 begins and ends texts.
    pub fn config(&self) -> Value {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.n_blocks,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden_size / self.n_heads,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": false,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": true,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "use_cache": true,
        });
        if self.n_experts > 0 {
            for (field, value) in [
                ("architectures", json!(["MixtralForCausalLM"])),
                ("model_type", json!("mixtral")),
                ("num_local_experts", json!(self.n_experts)),
                ("num_experts_per_tok", json!(self.experts_per_token)),
                ("sliding_window", Value::Null),
                ("output_router_logits", json!(false)),
                ("router_aux_loss_coef", json!(0.01)),
            ] {
                config[field] = value;
            }
        }
        config
    }

    /// Names and shapes of all arrays in the order of a checkpoint.
    fn arrays(&self) -> Vec<(String, Vec<usize>)> {
        let (d, wide) = (self.hidden_size, self.intermediate_size);
        let keys = d / self.n_heads * self.kv_heads;
        let mut arrays = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for block in 0..self.n_blocks {
            let mut add = |name: &str, shape: Vec<usize>| {
                arrays.push((format!("model.layers.{block}.{name}.weight"), shape));
            };
            add("input_layernorm", vec![d]);
            for (name, width) in [("q", d), ("k", keys), ("v", keys), ("o", d)] {
                add(&format!("self_attn.{name}_proj"), vec![width, d]);
            }
            add("post_attention_layernorm", vec![d]);
            if self.n_experts == 0 {
                add("mlp.gate_proj", vec![wide, d]);
                add("mlp.up_proj", vec![wide, d]);
                add("mlp.down_proj", vec![d, wide]);
            } else {
                add("block_sparse_moe.gate", vec![self.n_experts, d]);
                for expert in 0..self.n_experts {
                    add(&format!("block_sparse_moe.experts.{expert}.w1"), vec![wide, d]);
                    add(&format!("block_sparse_moe.experts.{expert}.w2"), vec![d, wide]);
                    add(&format!("block_sparse_moe.experts.{expert}.w3"), vec![wide, d]);
                }
            }
        }
        arrays.push(("model.norm.weight".to_owned(), vec![d]));
        arrays
    }

    /// First weights: norms 1, matrices normal with a variance that keeps rows' lengths, those that write into the
    /// residual stream smaller by the root of their number.
    ///
    /// # Errors
    /// Shapes too large to hold.
    pub fn weights(&self, seed: u64) -> Result<TensorMap, TrainError> {
        let mut weights = TensorMap::default();
        for (index, (name, shape)) in self.arrays().into_iter().enumerate() {
            let mut random = Random::of(&[seed, 1, index as u64]);
            let length: usize = shape.iter().product();
            let values: Vec<f32> = if shape.len() == 1 {
                vec![1.0; length]
            } else {
                let mut deviation = 0.7 / (shape[1] as f32).sqrt();
                if [".o_proj.", ".down_proj.", ".w2."].iter().any(|part| name.contains(part)) {
                    deviation /= (2.0 * self.n_blocks as f32).sqrt();
                }
                (0..length).map(|_| deviation * random.normal()).collect()
            };
            weights.insert(Array::from_f32(ArraySpec::new(name, shape, Dtype::F32), &values)?);
        }
        Ok(weights)
    }
}
