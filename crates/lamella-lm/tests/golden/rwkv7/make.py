#!/usr/bin/env python3
"""Makes the golden files of this directory: a small random RWKV-7 and its logits by the `rwkv` package (0.8.32).

    RWKV_V7_ON=1 python make.py

The weights are written under the names and in the shapes that rwkv.cpp's converter gives them.
"""

import json
import os
from pathlib import Path

os.environ["RWKV_V7_ON"] = "1"
os.environ["RWKV_JIT_ON"] = "0"

import numpy as np
import torch
from rwkv.model import RWKV
from safetensors.torch import save_file

VOCABULARY, HIDDEN, HEADS, BLOCKS, INTERMEDIATE, TOKENS = 48, 32, 4, 3, 64, 40
RANKS = {"w": 8, "a": 8, "v": 4, "g": 16}
HERE = Path(__file__).parent

random = np.random.default_rng(7)


def normal(*shape, scale=1.0, mean=0.0):
    return torch.tensor(mean + scale * random.standard_normal(shape), dtype=torch.float32)


def norm(weights, name, width):
    weights[f"{name}.weight"] = normal(width, scale=0.3, mean=1.0)
    weights[f"{name}.bias"] = normal(width, scale=0.3)


def matrix(rows, columns, gain=1.0):
    return normal(rows, columns, scale=gain / columns**0.5)


weights = {"emb.weight": normal(VOCABULARY, HIDDEN)}
for block in range(BLOCKS):
    base = f"blocks.{block}."
    for name in ["ln0", "ln1", "ln2"] if block == 0 else ["ln1", "ln2"]:
        norm(weights, base + name, HIDDEN)
    att = base + "att."
    for letter in "rwkvag":
        weights[f"{att}x_{letter}"] = torch.tensor(random.uniform(0, 1, (1, 1, HIDDEN)), dtype=torch.float32)
    for letter, rank in RANKS.items():
        if letter != "g":
            weights[f"{att}{letter}0"] = normal(1, 1, HIDDEN)
        weights[f"{att}{letter}1"] = matrix(rank, HIDDEN, 1.5).t().contiguous()
        weights[f"{att}{letter}2"] = matrix(HIDDEN, rank, 1.5).t().contiguous()
    weights[f"{att}k_k"] = normal(1, 1, HIDDEN, scale=0.3, mean=0.8)
    weights[f"{att}k_a"] = normal(1, 1, HIDDEN, scale=0.3, mean=1.0)
    weights[f"{att}r_k"] = normal(HEADS, HIDDEN // HEADS, scale=0.3)
    for name in ["receptance", "key", "value", "output"]:
        weights[f"{att}{name}.weight"] = matrix(HIDDEN, HIDDEN, 1.5)
    norm(weights, att + "ln_x", HIDDEN)
    ffn = base + "ffn."
    weights[f"{ffn}x_k"] = torch.tensor(random.uniform(0, 1, (1, 1, HIDDEN)), dtype=torch.float32)
    weights[f"{ffn}key.weight"] = matrix(INTERMEDIATE, HIDDEN)
    weights[f"{ffn}value.weight"] = matrix(HIDDEN, INTERMEDIATE)
norm(weights, "ln_out", HIDDEN)
weights["head.weight"] = matrix(VOCABULARY, HIDDEN, 2.0)

checkpoint = HERE / "temporary"
torch.save(weights, f"{checkpoint}.pth")
tokens = random.integers(0, VOCABULARY, TOKENS).tolist()
with torch.no_grad():
    logits, _ = RWKV(model=str(checkpoint), strategy="cpu fp32").forward(tokens, None, full_output=True)
os.remove(f"{checkpoint}.pth")

stored = {}
for name, tensor in weights.items():
    if ".att.x_" in name:
        name = name[: name.rindex("x_")] + "x_rwkvag"
        tensor = torch.cat([stored[name], tensor]) if name in stored else tensor
    elif any(name.endswith(f".{letter}{end}") for letter in RANKS for end in "12"):
        tensor = tensor.t()
    stored[name] = tensor.contiguous()
save_file(stored, HERE / "model.safetensors")
config = {
    "model_type": "rwkv7",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "head_dim": HIDDEN // HEADS,
    "intermediate_size": INTERMEDIATE,
}
(HERE / "config.json").write_text(json.dumps(config, indent=2) + "\n")
(HERE / "tokens.json").write_text(json.dumps({"tokens": tokens}) + "\n")
logits.numpy().astype("<f4").tofile(HERE / "logits.bin")
print("standard deviation of the logits:", logits.std().item(), "shape", list(logits.shape))
