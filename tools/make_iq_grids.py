"""Writes crates/lamella-io/src/ggml/iq_grids.rs: the codebooks of ggml's IQ types, as the `gguf` package has them.

    pip install gguf numpy
    python tools/make_iq_grids.py crates/lamella-io/src/ggml/iq_grids.rs

An entry packs the level numbers of one group into 16 bits, first weight lowest: eight times 2 bits, or four
times 3 bits. The levels themselves are constants in `iq.rs`.
"""

import sys

import numpy as np
from gguf import quants

GRIDS = [
    ("IQ2_XXS", "256 groups of 8 for `IQ2_XXS`", 2),
    ("IQ2_XS", "512 groups of 8 for `IQ2_XS`", 2),
    ("IQ2_S", "1,024 groups of 8 for `IQ2_S`", 2),
    ("IQ3_XXS", "256 groups of 4 for `IQ3_XXS`", 3),
    ("IQ3_S", "512 groups of 4 for `IQ3_S`", 3),
    ("IQ1_S", "2,048 groups of 8 for `IQ1_S` and `IQ1_M`", 2),
]


def main():
    lines = [
        "//! Codebooks of the IQ types: constants of the format, written by `tools/make_iq_grids.py`.",
        "//!",
        "//! An entry packs the level numbers of one group, first weight lowest: eight times 2 bits or four times 3.",
    ]
    for name, text, bits in GRIDS:
        kind = getattr(quants, name)
        kind.init_grid()
        grid = kind.grid.reshape(kind.grid_shape)
        levels = np.argmax(grid[:, :, None] == np.array(kind.grid_map, np.float32), axis=-1)
        packed = (levels << (bits * np.arange(levels.shape[1]))).sum(axis=1)
        lines += ["", f"/// {text}.", "#[rustfmt::skip]", f"pub(super) static {name}: [u16; {len(packed)}] = ["]
        for start in range(0, len(packed), 16):
            lines.append("    " + ",".join(str(value) for value in packed[start : start + 16]) + ",")
        lines.append("];")
    with open(sys.argv[1], "w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
