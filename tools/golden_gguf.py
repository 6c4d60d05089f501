#!/usr/bin/env python3
"""One GGUF file with every block format of ggml and what the `gguf` package dequantises it to.

    pip install numpy gguf
    python tools/golden_gguf.py OUT.gguf        # about 62 KB, the same bytes on every run

For each type T the file holds `coded.T`, 512 weights of random blocks, and `expected.T`, the same as f32.
Blocks are random bytes, so that every bit of every field matters; blocks whose scales come out as NaN,
infinite or huge are drawn again.
"""

import sys
import zlib

import gguf
import numpy as np
from gguf.quants import _type_traits

WEIGHTS = 512


def random_blocks(kind):
    """[n_blocks, block_bytes] u8 whose dequantised values are all finite, their f32 beside them."""
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(kind.name.encode())))
    chosen = []
    while len(chosen) * block_weights < WEIGHTS:
        block = draw.integers(0, 256, block_bytes, dtype=np.uint8)
        with np.errstate(all="ignore"):
            values = gguf.dequantize(block[None], kind)
        if np.isfinite(values).all() and 1e-6 < np.abs(values).max() < 1e6:
            chosen.append(block)
    # one row: the package writes rows of bytes, GGUF's shape counts weights
    row = np.concatenate(chosen)[None]
    return row, gguf.dequantize(row, kind).astype(np.float32)


def main(target):
    writer = gguf.GGUFWriter(target, "golden")
    for kind in [gguf.GGMLQuantizationType.F16, *_type_traits]:
        row, expected = random_blocks(kind)
        assert expected.shape == (1, WEIGHTS), (kind, expected.shape)
        if kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(f"coded.{kind.name}", row.view(np.float16))
        else:
            writer.add_tensor(f"coded.{kind.name}", row, raw_dtype=kind)
        writer.add_tensor(f"expected.{kind.name}", expected)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
