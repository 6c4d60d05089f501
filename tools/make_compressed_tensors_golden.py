#!/usr/bin/env python3
"""A tiny compressed-tensors checkpoint and what the `compressed-tensors` package decompresses it to.

    pip install torch safetensors compressed-tensors
    python tools/make_compressed_tensors_golden.py crates/lamella-io/tests/golden/compressed_tensors

One linear of each format that Lamella reads, in bf16 and f32, packed and expanded by the package itself; the test
`compressed_tensors_expand_as_their_package_does` of lamella-io reads both files.
"""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

SHAPE = (6, 64)


def main(target):
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    stored, expected, groups = {}, {}, {}
    for name, compressor, form, bits, kind, group in (
        ("int4", PackedQuantizationCompressor, "pack-quantized", 4, "int", 32),
        ("int8", PackedQuantizationCompressor, "pack-quantized", 8, "int", 32),
        ("channel", NaiveQuantizationCompressor, "int-quantized", 8, "int", None),
        ("fp8", NaiveQuantizationCompressor, "float-quantized", 8, "float", None),
    ):
        arguments = QuantizationArgs(num_bits=bits, type=kind, symmetric=True, strategy="group" if group else "channel", group_size=group)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        for dtype in (torch.bfloat16, torch.float32):
            module = f"{name}_{'bf16' if dtype == torch.bfloat16 else 'f32'}"
            weight = torch.randn(SHAPE).to(dtype)
            largest = weight.float().reshape(SHAPE[0], -1, group or SHAPE[1]).abs().amax(-1)
            scale = (largest / {4: 7.5, 8: 448.0 if kind == "float" else 127.5}[bits]).to(dtype)
            packed = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
            expanded = compressor.decompress(packed, scheme)["weight"]
            stored |= {f"{module}.{key}": value.contiguous() for key, value in packed.items()}
            expected[f"{module}.weight"] = expanded.contiguous()
        groups[name] = {"targets": [f"{name}_bf16", f"{name}_f32"], "weights": json.loads(arguments.model_dump_json()), "format": form}
    stored["norm.weight"] = expected["norm.weight"] = torch.randn(SHAPE[1])
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    save_file(expected, target / "expected.safetensors", metadata={"format": "pt"})
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed",
                                      "config_groups": groups, "ignore": []}}
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
