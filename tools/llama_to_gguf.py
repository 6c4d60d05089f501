#!/usr/bin/env python3
"""A Llama checkpoint with a byte-level BPE tokenizer (wiki5m is one) as a GGUF file in f32, for comparisons with llama.cpp.

    pip install numpy safetensors gguf
    python tools/llama_to_gguf.py ../shared/data/lm/wiki5m wiki5m-f32.gguf

Only what such a comparison needs: one shard, default RoPE, tied or untied head. llama.cpp's `llama`
architecture rotates adjacent pairs (2i, 2i + 1) of a head where `transformers` rotates (i, i + head_dim / 2),
so the rows of q and k are reordered within each head; the logits are the same.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def gguf_name(name):
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, block, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{block}.{NAMES[module]}.weight"


def adjacent_pairs(weight, heads):
    """Rows (head, half, i) to (head, i, half)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_tokenizer(writer, source, vocab_size, config):
    model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    by_id = {index: text for text, index in model["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in model["added_tokens"]}
    by_id.update(special)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)])
    writer.add_token_types([gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL if index in by_id
                            else gguf.TokenType.UNUSED for index in range(vocab_size)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def main(source, target):
    source = Path(source)
    config = json.loads((source / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(source.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    write_tokenizer(writer, source, config["vocab_size"], config)
    for name, weight in sorted(load_file(source / "model.safetensors").items()):
        weight = weight.astype(np.float32)
        if "q_proj" in name or "k_proj" in name:
            weight = adjacent_pairs(weight, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
