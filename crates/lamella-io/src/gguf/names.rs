//! Hugging Face names for GGUF's tensor names.

use super::header::Tensor;

/// What a GGUF tensor is in a Hugging Face checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// One array of this name.
    One(String),
    /// Query or key rows that llama.cpp's converter moved from rotary halves to adjacent pairs.
    Reordered { name: String, is_query: bool },
    /// One row that stands as `[1, n]` there.
    AsRow(String),
    /// Experts stacked on the first axis; the array of expert `e` is `before`, `e`, `after`.
    Stacked { before: String, after: String },
    /// No name is known: GGUF's own is kept.
    Own,
}

/// Architectures whose names are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Llama, Mistral.
    Llama,
    /// Mixtral: GGUF calls it `llama` too.
    Mixtral,
    /// Qwen 2, 2.5 and 3, dense and with experts.
    Qwen,
}

impl Family {
    pub(super) fn of(architecture: &str, n_experts: u64) -> Option<Self> {
        match architecture {
            "llama" if n_experts > 0 => Some(Self::Mixtral),
            "llama" => Some(Self::Llama),
            "qwen2" | "qwen2moe" | "qwen3" | "qwen3moe" => Some(Self::Qwen),
            _ => None,
        }
    }

    /// What a tensor is called in this family.
    pub(super) fn name(self, tensor: &Tensor) -> Named {
        let own = tensor.name.as_str();
        match own {
            "token_embd.weight" => return Named::One("model.embed_tokens.weight".to_owned()),
            "output_norm.weight" => return Named::One("model.norm.weight".to_owned()),
            "output.weight" => return Named::One("lm_head.weight".to_owned()),
            _ => {}
        }
        let Some((layer, rest)) = own.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return Named::Own;
        };
        let Some((part, ending)) = rest.rsplit_once('.') else {
            return Named::Own;
        };
        let is_number = !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || !["weight", "bias"].contains(&ending) {
            return Named::Own;
        }
        let within = |module: &str| format!("model.layers.{layer}.{module}.{ending}");
        let is_reordered = self != Self::Qwen;
        let module = match part {
            "attn_norm" => "input_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "attn_q" if is_reordered => {
                return Named::Reordered { name: within("self_attn.q_proj"), is_query: true };
            }
            "attn_k" if is_reordered => {
                return Named::Reordered { name: within("self_attn.k_proj"), is_query: false };
            }
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            "ffn_gate_inp" if self == Self::Mixtral => "block_sparse_moe.gate",
            "ffn_gate_inp" => "mlp.gate",
            "ffn_gate_shexp" => "mlp.shared_expert.gate_proj",
            "ffn_up_shexp" => "mlp.shared_expert.up_proj",
            "ffn_down_shexp" => "mlp.shared_expert.down_proj",
            "ffn_gate_inp_shexp" => return Named::AsRow(within("mlp.shared_expert_gate")),
            _ => return self.expert(layer, part, ending, tensor.shape.len()),
        };
        Named::One(within(module))
    }

    /// `ffn_gate_exps` holds all experts; early files had `ffn_gate.0`, `ffn_gate.1` and so on.
    fn expert(self, layer: &str, part: &str, ending: &str, n_axes: usize) -> Named {
        let (base, expert) = match (part.strip_suffix("_exps"), part.split_once('.')) {
            (Some(base), _) if n_axes == 3 => (base, None),
            (None, Some((base, expert))) if expert.bytes().all(|byte| byte.is_ascii_digit()) => {
                (base, Some(expert))
            }
            _ => return Named::Own,
        };
        let is_mixtral = self == Self::Mixtral;
        let module = match (base, is_mixtral) {
            ("ffn_gate", true) => "w1",
            ("ffn_down", true) => "w2",
            ("ffn_up", true) => "w3",
            ("ffn_gate", false) => "gate_proj",
            ("ffn_down", false) => "down_proj",
            ("ffn_up", false) => "up_proj",
            _ => return Named::Own,
        };
        let mixture = if is_mixtral { "block_sparse_moe" } else { "mlp" };
        let before = format!("model.layers.{layer}.{mixture}.experts.");
        let after = format!(".{module}.{ending}");
        match expert {
            Some(expert) => Named::One(format!("{before}{expert}{after}")),
            None => Named::Stacked { before, after },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::GgmlType;

    fn tensor(name: &str, n_axes: usize) -> Tensor {
        Tensor { name: name.to_owned(), shape: vec![2; n_axes], kind: GgmlType::F32, start: 0, size_bytes: 0 }
    }

    #[test]
    fn names_follow_the_family() {
        let one = |name: &str| Named::One(name.to_owned());
        let cases = [
            (Family::Llama, "token_embd.weight", 2, one("model.embed_tokens.weight")),
            (
                Family::Llama,
                "blk.12.attn_k.weight",
                2,
                Named::Reordered {
                    name: "model.layers.12.self_attn.k_proj.weight".to_owned(),
                    is_query: false,
                },
            ),
            (Family::Qwen, "blk.0.attn_q.bias", 1, one("model.layers.0.self_attn.q_proj.bias")),
            (
                Family::Mixtral,
                "blk.1.ffn_down_exps.weight",
                3,
                Named::Stacked {
                    before: "model.layers.1.block_sparse_moe.experts.".to_owned(),
                    after: ".w2.weight".to_owned(),
                },
            ),
            (
                Family::Mixtral,
                "blk.1.ffn_up.7.weight",
                2,
                one("model.layers.1.block_sparse_moe.experts.7.w3.weight"),
            ),
            (Family::Llama, "rope_freqs.weight", 1, Named::Own),
            (Family::Llama, "blk.x.attn_q.weight", 2, Named::Own),
            (Family::Llama, "blk.0.weight", 2, Named::Own),
        ];
        for (family, own, n_axes, expected) in cases {
            assert_eq!(family.name(&tensor(own, n_axes)), expected, "{own}");
        }
    }
}
