#!/usr/bin/env python3
"""Checks that our GGUF files mean to others what they mean to us.

    pip install numpy gguf safetensors [llama-cpp-python]
    python tools/check_gguf.py --program target/release/lamella MODEL [--text TEXT] [TYPE ...]

For each type `lamella export --to gguf` writes a file and `lamella export --to safetensors` expands it again. Every
tensor as the `gguf` package dequantises it must have the same bits as ours. Where `llama_cpp` is installed, its logits
on some tokens are compared with those of our evaluation (`transformers` on the expanded directory stands for it, which
the tests hold to ours within 2e-5).
"""

import argparse
import os
import subprocess
import tempfile

import gguf
import numpy as np
from safetensors.numpy import load_file

TYPES = ["f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_0", "q5_1", "q4_k", "q4_0", "q4_1", "iq4_nl", "iq4_xs", "q3_k", "q2_k"]


def bits_of(path):
    """The multiset of all tensors' numbers, tensor by tensor in the order of sorted sums: names and row orders differ."""
    found = []
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        found.append(np.sort(values.reshape(-1)))
    return sorted(found, key=lambda values: (len(values), values.tobytes()))


def logits_of(directory, tokens):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].double().numpy()


def llama_logits(path, tokens):
    import llama_cpp

    model = llama_cpp.Llama(path, n_ctx=len(tokens) + 8, logits_all=True, verbose=False, n_threads=1)
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)], dtype=np.float64)


def divergence(reference, other):
    log_p = reference - np.logaddexp.reduce(reference, -1, keepdims=True)
    log_q = other - np.logaddexp.reduce(other, -1, keepdims=True)
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("model")
    parser.add_argument("types", nargs="*", default=TYPES)
    options = parser.parse_args()
    for kind in options.types:
        with tempfile.TemporaryDirectory() as scratch:
            path, plain = os.path.join(scratch, "model.gguf"), os.path.join(scratch, "plain")
            run = [options.program, "export", "--quiet"]
            subprocess.run([*run, options.model, "--to", "gguf", "-o", path, "--type", kind], check=True, stdout=subprocess.DEVNULL)
            subprocess.run([*run, path, "--to", "safetensors", "-o", plain], check=True, stdout=subprocess.DEVNULL)
            ours = [np.sort(v.astype(np.float32).reshape(-1)) for v in load_file(os.path.join(plain, "model.safetensors")).values()] if kind != "bf16" else None
            note = ""
            if ours is not None:
                theirs = bits_of(path)
                ours.sort(key=lambda values: (len(values), values.tobytes()))
                assert len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs)), kind
                note = f"{len(theirs)} tensors bit-equal"
            if not options.no_llama:
                tokens = [3 + 7 * i % 500 for i in range(64)]
                note += f"; KL of llama.cpp's logits {divergence(logits_of(plain, tokens), llama_logits(path, tokens)):.1e}"
            print(f"{kind}: {note}", flush=True)


if __name__ == "__main__":
    main()
