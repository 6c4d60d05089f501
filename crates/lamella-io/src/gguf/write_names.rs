//! Which tensors a GGUF file has, and which Hugging Face arrays each is made of.

use std::collections::{BTreeMap, BTreeSet};

use lamella_codec::ArraySpec;

use super::GgufWriteError;

/// A tensor to write and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufSource {
    /// GGUF's name.
    pub name: String,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// The arrays, stacked on the first axis where there are several (experts).
    pub parts: Vec<String>,
    /// Heads whose rows must be moved from rotary halves to adjacent pairs; 0 where rows stay.
    pub reordered_heads: usize,
    /// Whether llama.cpp wants it as `f32` whatever the file's type: vectors and routers.
    pub is_small: bool,
}

impl GgufSource {
    /// Moves a part's rows from the order of Hugging Face (rotary halves) to llama.cpp's (adjacent pairs).
    /// `values` is `[rows, any]`, numbers or bytes of whole rows; nothing happens where the rows stay.
    pub fn reorder<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        let rows = self.shape.first().copied().unwrap_or(0);
        if self.reordered_heads == 0 || rows == 0 {
            return values;
        }
        let columns = values.len() / rows;
        let half = rows / self.reordered_heads / 2;
        let mut out = Vec::with_capacity(values.len());
        for head in 0..self.reordered_heads {
            for pair in 0..half {
                for part in 0..2 {
                    let row = head * 2 * half + part * half + pair;
                    out.extend_from_slice(&values[row * columns..(row + 1) * columns]);
                }
            }
        }
        out
    }
}

/// What decides names.
pub(super) struct Naming {
    pub(super) reorders: bool,
    pub(super) query_heads: usize,
    pub(super) key_heads: usize,
    pub(super) is_tied: bool,
}

/// GGUF's part of a layer's module, and what happens to it.
fn module(name: &str) -> Option<(&'static str, bool)> {
    Some(match name {
        "input_layernorm" => ("attn_norm", false),
        "post_attention_layernorm" => ("ffn_norm", false),
        "self_attn.q_proj" => ("attn_q", false),
        "self_attn.k_proj" => ("attn_k", false),
        "self_attn.v_proj" => ("attn_v", false),
        "self_attn.o_proj" => ("attn_output", false),
        "self_attn.q_norm" => ("attn_q_norm", false),
        "self_attn.k_norm" => ("attn_k_norm", false),
        "mlp.gate_proj" => ("ffn_gate", false),
        "mlp.up_proj" => ("ffn_up", false),
        "mlp.down_proj" => ("ffn_down", false),
        "block_sparse_moe.gate" | "mlp.gate" => ("ffn_gate_inp", true),
        "mlp.shared_expert.gate_proj" => ("ffn_gate_shexp", false),
        "mlp.shared_expert.up_proj" => ("ffn_up_shexp", false),
        "mlp.shared_expert.down_proj" => ("ffn_down_shexp", false),
        "mlp.shared_expert_gate" => ("ffn_gate_inp_shexp", true),
        _ => return None,
    })
}

/// `mlp.experts.3.up_proj` to `ffn_up_exps` and 3.
fn expert(name: &str) -> Option<(&'static str, usize)> {
    let rest =
        name.strip_prefix("block_sparse_moe.experts.").or_else(|| name.strip_prefix("mlp.experts."))?;
    let (number, projection) = rest.split_once('.')?;
    let base = match projection {
        "w1" | "gate_proj" => "ffn_gate_exps",
        "w2" | "down_proj" => "ffn_down_exps",
        "w3" | "up_proj" => "ffn_up_exps",
        _ => return None,
    };
    Some((base, number.parse().ok()?))
}

/// Every tensor of the file, in the arrays' order (stacked experts where their first one stands).
pub(super) fn tensors(specs: &[ArraySpec], naming: &Naming) -> Result<Vec<GgufSource>, GgufWriteError> {
    let mut tensors: Vec<GgufSource> = Vec::new();
    let mut stacked: BTreeMap<String, (usize, BTreeMap<usize, String>)> = BTreeMap::new();
    for spec in specs {
        let refuse = |message: &str| {
            Err(GgufWriteError::Array { array: spec.name.clone(), message: message.to_owned() })
        };
        if !spec.dtype.is_float() {
            return refuse("it holds no floating-point numbers");
        }
        if spec.name.ends_with("rotary_emb.inv_freq") || (naming.is_tied && spec.name == "lm_head.weight") {
            continue;
        }
        let plain = |name: String, is_small: bool| GgufSource {
            name,
            shape: spec.shape.clone(),
            parts: vec![spec.name.clone()],
            reordered_heads: 0,
            is_small: is_small || spec.shape.len() < 2,
        };
        let outside = match spec.name.as_str() {
            "model.embed_tokens.weight" => Some("token_embd.weight"),
            "model.norm.weight" => Some("output_norm.weight"),
            "lm_head.weight" => Some("output.weight"),
            _ => None,
        };
        if let Some(name) = outside {
            tensors.push(plain(name.to_owned(), false));
            continue;
        }
        let inside = spec.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let parsed = inside.and_then(|(layer, rest)| {
            let (path, ending) = rest.rsplit_once('.')?;
            let is_known = layer.parse::<u32>().is_ok() && ["weight", "bias"].contains(&ending);
            is_known.then_some((layer, path, ending))
        });
        let Some((layer, path, ending)) = parsed else {
            return refuse("its name has no place in this architecture");
        };
        if let Some((part, is_small)) = module(path) {
            let mut tensor = plain(format!("blk.{layer}.{part}.{ending}"), is_small);
            if part == "ffn_gate_inp_shexp" {
                tensor.shape = vec![spec.len()];
            }
            let heads = match part {
                "attn_q" => naming.query_heads,
                "attn_k" => naming.key_heads,
                _ => 0,
            };
            if naming.reorders && heads > 0 {
                if !spec.shape.first().is_some_and(|rows| rows.is_multiple_of(2 * heads)) {
                    return refuse(&format!("its rows are not pairs of {heads} heads"));
                }
                tensor.reordered_heads = heads;
            }
            tensors.push(tensor);
        } else if let Some((part, number)) = expert(path) {
            let name = format!("blk.{layer}.{part}.{ending}");
            let at = tensors.len();
            let (at, experts) = stacked.entry(name.clone()).or_insert_with(|| (at, BTreeMap::new()));
            experts.insert(number, spec.name.clone());
            if *at == tensors.len() {
                tensors.push(plain(name, false));
            } else if tensors[*at].shape != spec.shape {
                return refuse("its shape is not that of the layer's other experts");
            }
        } else {
            return refuse("its name has no place in this architecture");
        }
    }
    for (name, (at, experts)) in stacked {
        if experts.keys().copied().ne(0..experts.len()) {
            return Err(GgufWriteError::Array { array: name, message: "an expert is missing".to_owned() });
        }
        tensors[at].shape.insert(0, experts.len());
        tensors[at].parts = experts.into_values().collect();
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(GgufWriteError::Array {
            array: twice.parts[0].clone(),
            message: format!("a second array becomes `{}`", twice.name),
        });
    }
    Ok(tensors)
}
