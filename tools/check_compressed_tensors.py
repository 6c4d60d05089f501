#!/usr/bin/env python3
"""Checks that compressed-tensors checkpoints mean to others what they mean to us.

    pip install torch transformers safetensors compressed-tensors
    python tools/check_compressed_tensors.py --program target/release/lamella MODEL [SCHEME ...]

For each scheme `lamella export MODEL --to compressed-tensors` writes a checkpoint. Three things are compared with what
`lamella export --to safetensors` expands it to: each linear as the `compressed-tensors` package decompresses it (bit by
bit), and the logits of `transformers` on the quantised and on the expanded directory.
"""

import argparse
import json
import os
import subprocess
import tempfile

import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

SCHEMES = ["int4", "int8", "int8-channel", "fp8"]


def decompressed(directory, config):
    """Every quantised linear, by the package."""
    arrays = load_file(os.path.join(directory, "model.safetensors"))
    modules = {name.rsplit(".", 1)[0] for name in arrays if name.endswith("weight_scale")}
    found = {}
    for module in modules:
        parts = {name.rsplit(".", 1)[1]: value for name, value in arrays.items() if name.rsplit(".", 1)[0] == module}
        (scheme,) = [group for group in config.config_groups.values() if group.targets == ["Linear"] or module in group.targets]
        compressor = PackedQuantizationCompressor if "weight_packed" in parts else NaiveQuantizationCompressor
        found[f"{module}.weight"] = compressor.decompress(parts, scheme)["weight"]
    return found


def logits(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokens = torch.arange(3, 67).remainder(model.config.vocab_size)[None]
    with torch.no_grad():
        return model(tokens).logits[0].float()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--group-size", default="32")
    parser.add_argument("model")
    parser.add_argument("schemes", nargs="*", default=SCHEMES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for scheme in options.schemes:
        with tempfile.TemporaryDirectory() as scratch:
            coded, plain = os.path.join(scratch, "coded"), os.path.join(scratch, "plain")
            run = [options.program, "export", "--quiet"]
            subprocess.run([*run, options.model, "--to", "compressed-tensors", "-o", coded, "--scheme", scheme, "--group-size", options.group_size], check=True, stdout=subprocess.DEVNULL)
            subprocess.run([*run, coded, "--to", "safetensors", "-o", plain], check=True, stdout=subprocess.DEVNULL)
            with open(os.path.join(coded, "config.json"), encoding="utf-8") as text:
                config = QuantizationConfig.model_validate(json.load(text)["quantization_config"])
            ours, theirs = load_file(os.path.join(plain, "model.safetensors")), decompressed(coded, config)
            assert theirs, "nothing was quantised"
            for name, value in theirs.items():
                assert value.dtype == ours[name].dtype and torch.equal(value, ours[name]), name
            quantised, expanded = logits(coded), logits(plain)
            divergence = torch.nn.functional.kl_div(quantised.log_softmax(-1), expanded.log_softmax(-1), reduction="batchmean", log_target=True)
            print(f"{scheme}: {len(theirs)} linears bit-equal; logits differ by at most {(quantised - expanded).abs().max():.2e}, KL {divergence:.2e}")


if __name__ == "__main__":
    main()
