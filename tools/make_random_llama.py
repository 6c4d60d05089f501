#!/usr/bin/env python3
"""Writes a random Llama checkpoint in bfloat16, array by array, so that it needs no more memory than one array.

    pip install numpy
    python tools/make_random_llama.py random-1b                       # TinyLlama's shapes, 1.1 billion weights, 2.2 GB
    python tools/make_random_llama.py random-2 --blocks 2

Weights are Gaussian with the deviation of a trained model's (0.02; norms are 1), the tokenizer is one of bytes. What
such a model says means nothing; its shapes cost what a real one's do, in memory and time.
"""

import argparse
import json
import os

import numpy as np


def shapes(args):
    keys = args.hidden // args.heads * args.kv_heads
    yield "model.embed_tokens.weight", (args.vocabulary, args.hidden)
    for block in range(args.blocks):
        base = f"model.layers.{block}."
        yield base + "input_layernorm.weight", (args.hidden,)
        for name, rows, columns in (
            ("self_attn.q_proj", args.hidden, args.hidden), ("self_attn.k_proj", keys, args.hidden),
            ("self_attn.v_proj", keys, args.hidden), ("self_attn.o_proj", args.hidden, args.hidden),
        ):
            yield f"{base}{name}.weight", (rows, columns)
        yield base + "post_attention_layernorm.weight", (args.hidden,)
        yield base + "mlp.gate_proj.weight", (args.feed_forward, args.hidden)
        yield base + "mlp.up_proj.weight", (args.feed_forward, args.hidden)
        yield base + "mlp.down_proj.weight", (args.hidden, args.feed_forward)
    yield "model.norm.weight", (args.hidden,)
    yield "lm_head.weight", (args.vocabulary, args.hidden)


def bfloat16(numbers):
    """Upper halves of 32-bit floats, rounded to nearest."""
    bits = numbers.astype("<f4", copy=False).view("<u4")
    return ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2")


def byte_tokenizer(vocabulary):
    """Byte-level BPE without merges: the 256 bytes as `transformers` spells them, then names that never come up."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    spelled, others = {byte: chr(byte) for byte in printable}, 0
    for byte in range(256):
        if byte not in spelled:
            spelled[byte] = chr(256 + others)
            others += 1
    vocab = {spelled[byte]: byte for byte in range(256)}
    vocab.update({f"<{token}>": token for token in range(256, vocabulary)})
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    for name, default in (("blocks", 22), ("hidden", 2048), ("feed-forward", 5632), ("heads", 32), ("kv-heads", 4),
                          ("vocabulary", 32000), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    os.makedirs(args.directory, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": args.vocabulary,
        "hidden_size": args.hidden, "intermediate_size": args.feed_forward, "num_hidden_layers": args.blocks,
        "num_attention_heads": args.heads, "num_key_value_heads": args.kv_heads, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }
    for name, value in (("config.json", config), ("tokenizer.json", byte_tokenizer(args.vocabulary))):
        with open(os.path.join(args.directory, name), "w", encoding="utf-8") as file:
            json.dump(value, file)
    header, offset = {}, 0
    for name, shape in shapes(args):
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(args.seed)
    path = os.path.join(args.directory, "model.safetensors")
    with open(path + ".part", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes(args):
            if len(shape) == 1:
                file.write(bfloat16(np.ones(shape, "<f4")).tobytes())
                continue
            for first in range(0, shape[0], 2048):
                rows = min(2048, shape[0] - first)
                file.write(bfloat16(random.standard_normal((rows, shape[1]), dtype="<f4") * np.float32(0.02)).tobytes())
    os.replace(path + ".part", path)
    print(f"{path}: {offset / 1e9:.2f} GB, {offset // 2} weights")


if __name__ == "__main__":
    main()
