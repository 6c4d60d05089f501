#!/usr/bin/env python3
"""Checks that our GGUF files mean to others what they mean to us.

    pip install numpy gguf safetensors [llama-cpp-python torch transformers]
    python tools/check_gguf.py --program target/release/lamella --random llama qwen2 --models DIR --out docs/results/gguf-readers.md

For each type `lamella export --to gguf` writes a file and `lamella export --to safetensors` expands it again. Every
tensor as the `gguf` package dequantises it must have the same bits as ours. Where `llama_cpp` is installed, its logits
on 64 tokens are compared with those of `transformers` on the expanded directory (which the tests of `lamella-lm` hold
to our own evaluation within 2e-5). llama.cpp multiplies quantised weights with activations that it rounds to 8 bits in
blocks of 32 or 256 (to halves of a word for f16 and bf16); the second figure rounds them the same way, so that what is
left is what the file means. `--random` makes small random models of architectures with the tokenizer of
`assets/stories260k`.
"""

import argparse
import datetime
import os
import shutil
import subprocess
import tempfile

import gguf
import numpy as np
from safetensors.numpy import load_file

TYPES = ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_0", "q5_1", "q4_k", "q4_0", "q4_1", "iq4_nl", "iq4_xs", "q3_k", "q2_k"]
MODULES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def random_model(kind, directory):
    """Random weights with attention that is not uniform and logits of deviation 1 or more, norms and biases random too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
                 head_dim=32, vocab_size=512, max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(0, 0.3)
            elif "embed" in name:
                weight.normal_(0, 1)
            else:
                weight.normal_(0, 1.5 / weight.shape[1] ** 0.5)
    model.save_pretrained(directory)
    tokenizer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../assets/stories260k")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if os.path.exists(os.path.join(tokenizer, name)):
            shutil.copy(os.path.join(tokenizer, name), directory)
    return directory


def bits_of(path):
    """The multiset of all tensors' numbers, tensor by tensor in the order of sorted sums: names and row orders differ."""
    found = []
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        found.append(np.sort(values.reshape(-1)))
    return sorted(found, key=lambda values: (len(values), values.tobytes()))


def rounded(kind, values):
    """Activations as llama.cpp's processor kernels round them for weights of a type."""
    import torch

    if kind in ("F32",):
        return values
    if kind == "F16":
        return values.half().float()
    if kind == "BF16":
        return values.bfloat16().float()
    is_super = kind.endswith("_K") or kind == "IQ4_XS"
    blocks = values.reshape(-1, 256 if is_super else 32)
    at = blocks.abs().argmax(-1, keepdim=True)
    peak = blocks.gather(-1, at)
    if is_super:
        scale = torch.where(peak == 0, torch.ones_like(peak), -127.0 / peak)
        return ((scale * blocks).round().clamp(max=127) / scale).reshape(values.shape)
    step = peak.abs() / 127
    codes = torch.where(step == 0, torch.zeros_like(blocks), (blocks / step).round())
    return (codes * step.half().float()).reshape(values.shape)


def logits_of(directory, tokens, types=None):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if types and isinstance(module, torch.nn.Linear):
            kind = types[name]
            module.register_forward_pre_hook(lambda _, inputs, kind=kind: (rounded(kind, inputs[0]),))
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].double().numpy()


def types_of(path):
    """The type of each linear by its name in `transformers`."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk" and parts[2] in MODULES:
            found[f"model.layers.{parts[1]}.{MODULES[parts[2]]}"] = tensor.tensor_type.name
        elif parts[0] == "output" or (parts[0] == "token_embd" and "lm_head" not in found):
            found["lm_head"] = tensor.tensor_type.name
    return found


def llama_logits(path, tokens):
    import llama_cpp

    # Keys and values stay floats: rounding them to halves would move activations over the edges of the next rounding.
    floats = llama_cpp.GGML_TYPE_F32
    model = llama_cpp.Llama(path, n_ctx=len(tokens) + 8, logits_all=True, verbose=False, n_threads=1,
                            type_k=floats, type_v=floats, flash_attn=False)
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)], dtype=np.float64)


def divergences(reference, other):
    """KL divergence at each token, in nats."""
    log_p = reference - np.logaddexp.reduce(reference, -1, keepdims=True)
    log_q = other - np.logaddexp.reduce(other, -1, keepdims=True)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def check(options, kind, scratch):
    path, plain = os.path.join(scratch, "model.gguf"), os.path.join(scratch, "plain")
    run = [options.program, "export", "--quiet"]
    subprocess.run([*run, options.model, "--to", "gguf", "-o", path, "--type", kind], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*run, path, "--to", "safetensors", "-o", plain], check=True, stdout=subprocess.DEVNULL)
    equal = "not compared"
    if kind != "bf16":
        theirs = bits_of(path)
        ours = [np.sort(v.astype(np.float32).reshape(-1)) for v in load_file(os.path.join(plain, "model.safetensors")).values()]
        ours.sort(key=lambda values: (len(values), values.tobytes()))
        assert len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs)), kind
        equal = f"all {len(theirs)}"
    figures = "not measured | | "
    if not options.no_llama:
        tokens = [3 + 7 * i % 500 for i in range(64)]
        theirs = llama_logits(path, tokens)
        exact, same = (divergences(logits_of(plain, tokens, types), theirs) for types in (None, types_of(path)))
        figures = f"{exact.mean():.1e} | {same.mean():.1e} | {max(np.median(same), 0):.1e}"
    return f"| {options.name} | {kind} | {equal} | {figures} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--random", nargs="*", default=[], choices=["llama", "qwen2", "qwen3"], help="small random models")
    parser.add_argument("--models", nargs="*", default=[], help="model directories")
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--out", help="a file for the table")
    options = parser.parse_args()
    rows = ["| model | type | tensors bit-equal | KL | KL, activations rounded alike | its median |", "|---|---|---|---:|---:|---:|"]
    print("\n".join(rows))
    with tempfile.TemporaryDirectory() as made:
        models = [(f"random {kind}", random_model(kind, os.path.join(made, kind))) for kind in options.random]
        for options.name, options.model in models + [(os.path.basename(path.rstrip("/")), path) for path in options.models]:
            for kind in options.types:
                with tempfile.TemporaryDirectory() as scratch:
                    rows.append(check(options, kind, scratch))
                    print(rows[-1], flush=True)
                write(options, rows)


def write(options, rows):
    if not options.out:
        return
    head = ["# GGUF files as others read them", "",
            f"Written by `python3 tools/check_gguf.py` on {datetime.date.today()}. *Bit-equal*: tensors that the `gguf` package "
            "dequantises to the bits we expand to. *KL*: of llama.cpp's logits (on a processor, keys and values as floats) from "
            "ours on the same file, mean over 64 tokens in nats. llama.cpp multiplies quantised weights with activations rounded "
            "to 8 bits; the next column rounds them in ours too (but not the sums that q4_1 and q5_1 round besides). What is left "
            "comes from activations at the edge between two codes, which fall differently by the last bit of a sum and move "
            "all that follows; where none does, the divergence is below 1e-11.", ""]
    with open(options.out, "w", encoding="utf-8") as out:
        out.write("\n".join(head + rows) + "\n")


if __name__ == "__main__":
    main()
