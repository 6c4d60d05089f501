"""Writes the golden files of lamella-io's GGUF reader with the `gguf` package.

    pip install gguf numpy
    python tools/make_gguf_golden.py crates/lamella-io/tests/golden

* `ggml.txt`: per quantised type, the SHA-256 of what pseudo-random blocks decode to.
* `tiny_llama.gguf`: a Llama of two layers with random weights in several types, with tokenizer arrays and the
  reordered query and key rows that llama.cpp's converter writes; `tiny_llama.txt`: per Hugging Face name the
  shape and the SHA-256 of the array in `f32`.
* `tiny_mixtral.gguf` and `.txt`: stacked experts, and the divisors of Llama 3's RoPE scaling.
"""

import hashlib
import pathlib
import sys

import gguf
import numpy as np

# Bytes of a block whose sixth bit is cleared, so that no `f16` scale is infinite or NaN.
FINITE = {
    "Q4_0": [1], "Q4_1": [1, 3], "Q5_0": [1], "Q5_1": [1, 3], "Q8_0": [1],
    "Q2_K": [81, 83], "Q3_K": [109], "Q4_K": [1, 3], "Q5_K": [1, 3], "Q6_K": [209],
    "IQ1_S": [1], "IQ1_M": [55], "IQ2_XXS": [1], "IQ2_XS": [1], "IQ2_S": [1], "IQ3_XXS": [1], "IQ3_S": [1],
    "IQ4_NL": [1], "IQ4_XS": [1], "TQ1_0": [53], "TQ2_0": [65], "MXFP4": [], "NVFP4": [],
}
N_BLOCKS = 64
MASK = (1 << 64) - 1


def pseudo_random_bytes(seed, length):
    """splitmix64."""
    out = bytearray()
    while len(out) < length:
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out += (z ^ (z >> 31)).to_bytes(8, "little")
    return bytes(out[:length])


def sha256(values):
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def write_types(path):
    lines = ["# type, code, blocks, bytes with a cleared bit, SHA-256 of the decoded f32"]
    for name, finite in FINITE.items():
        kind = gguf.GGMLQuantizationType[name]
        _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        raw = np.frombuffer(pseudo_random_bytes(int(kind), N_BLOCKS * block_bytes), np.uint8)
        raw = raw.reshape(N_BLOCKS, block_bytes).copy()
        raw[:, finite] &= 0xBF
        values = gguf.quants.dequantize(raw, kind)
        places = ",".join(map(str, finite)) or "-"
        lines.append(f"{name} {int(kind)} {N_BLOCKS} {places} {sha256(values)}")
    path.write_text("\n".join(lines) + "\n", newline="\n")


def halves_to_pairs(weight, n_heads):
    """What llama.cpp's converter does to query and key rows."""
    rows = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write_llama(directory):
    random = np.random.default_rng(1)
    dim, hidden, heads, kv_heads, context = 32, 64, 2, 1, 128
    kv_dim = dim // heads * kv_heads
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + list("▁abcdet") + ["▁a", "be", "▁abe"]
    writer = gguf.GGUFWriter(directory / "tiny_llama.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(dim)
    writer.add_block_count(2)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(dim // heads)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(pieces) - 259)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    lines = []

    def add(hugging_face, own, shape, kind, n_heads=0):
        values = random.standard_normal(shape).astype(np.float32)
        stored = halves_to_pairs(values, n_heads) if n_heads else values
        kind = gguf.GGMLQuantizationType[kind]
        raw = gguf.quants.quantize(stored, kind)
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            writer.add_tensor(own, raw)
        else:
            writer.add_tensor(own, raw, raw_dtype=kind)
        decoded = gguf.quants.dequantize(raw, kind)
        if n_heads:
            # Back to halves, so that the hash is of the Hugging Face array.
            rows = decoded.reshape(n_heads, shape[0] // n_heads // 2, 2, *shape[1:])
            decoded = rows.swapaxes(1, 2).reshape(shape)
        lines.append(f"{hugging_face} {'x'.join(map(str, shape))} {sha256(decoded)}")

    add("model.embed_tokens.weight", "token_embd.weight", (len(pieces), dim), "Q8_0")
    for layer in range(2):
        hf, own = f"model.layers.{layer}", f"blk.{layer}"
        add(f"{hf}.input_layernorm.weight", f"{own}.attn_norm.weight", (dim,), "F32")
        add(f"{hf}.self_attn.q_proj.weight", f"{own}.attn_q.weight", (dim, dim), "Q4_0", heads)
        add(f"{hf}.self_attn.k_proj.weight", f"{own}.attn_k.weight", (kv_dim, dim), "F16", kv_heads)
        add(f"{hf}.self_attn.v_proj.weight", f"{own}.attn_v.weight", (kv_dim, dim), "Q5_1")
        add(f"{hf}.self_attn.o_proj.weight", f"{own}.attn_output.weight", (dim, dim), "BF16")
        add(f"{hf}.post_attention_layernorm.weight", f"{own}.ffn_norm.weight", (dim,), "F32")
        add(f"{hf}.mlp.gate_proj.weight", f"{own}.ffn_gate.weight", (hidden, dim), "Q5_0")
        add(f"{hf}.mlp.up_proj.weight", f"{own}.ffn_up.weight", (hidden, dim), "Q4_1")
        add(f"{hf}.mlp.down_proj.weight", f"{own}.ffn_down.weight", (dim, hidden), "MXFP4")
    add("model.norm.weight", "output_norm.weight", (dim,), "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (directory / "tiny_llama.txt").write_text("\n".join(lines) + "\n", newline="\n")


def write_mixtral(directory):
    random = np.random.default_rng(2)
    dim, hidden, n_experts, head_dim, base, factor = 32, 32, 3, 32, 500000.0, 8.0
    writer = gguf.GGUFWriter(directory / "tiny_mixtral.gguf", "llama")
    writer.add_context_length(131072)
    writer.add_embedding_length(dim)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(base)
    writer.add_expert_count(n_experts)
    writer.add_expert_used_count(2)
    lines = []

    def add(names, own, shape, kind):
        values = random.standard_normal(shape).astype(np.float32)
        raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(own, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        decoded = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
        for name, part in zip(names, decoded if len(names) > 1 else [decoded]):
            lines.append(f"{name} {'x'.join(map(str, part.shape))} {sha256(part)}")

    mixture = "model.layers.0.block_sparse_moe"
    add(["model.embed_tokens.weight"], "token_embd.weight", (5, dim), "Q8_0")
    add([f"{mixture}.gate.weight"], "blk.0.ffn_gate_inp.weight", (n_experts, dim), "F32")
    for own, part in [("ffn_gate_exps", "w1"), ("ffn_down_exps", "w2"), ("ffn_up_exps", "w3")]:
        names = [f"{mixture}.experts.{expert}.{part}.weight" for expert in range(n_experts)]
        add(names, f"blk.0.{own}.weight", (n_experts, hidden, dim), "Q4_0")
    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((8192 * frequencies / (2 * np.pi) - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    divisors = (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
    writer.add_tensor("rope_freqs.weight", divisors)
    lines.append(f"rope_freqs.weight {head_dim // 2} {sha256(divisors)}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (directory / "tiny_mixtral.txt").write_text("\n".join(lines) + "\n", newline="\n")


def main():
    directory = pathlib.Path(sys.argv[1])
    write_types(directory / "ggml.txt")
    write_llama(directory)
    write_mixtral(directory)


if __name__ == "__main__":
    main()
