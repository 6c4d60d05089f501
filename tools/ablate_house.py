"""Measures what each part of the house recipe buys on MiniLM, and writes docs/results/house.md.

    python3 tools/ablate_house.py --program target/release/lamella --minilm DIR --data DIR
"""

import argparse
import datetime
import os
import tempfile

from measure_house import PROTOCOL_MINILM, processor, run

# Name, recipe arguments beside `bits`, further options. Every row changes one thing of the row named in it.
VARIANTS = [
    ("rounding by code lengths off (`lambda=0`), no trellis, one pass", "lambda=0, trellis=0, passes=1", ["--allocate", "uniform"]),
    ("+ rounding by code lengths (`lambda=0.1`)", "lambda=0.1, trellis=0, passes=1", ["--allocate", "uniform"]),
    ("+ second pass: centroids and learned code lengths", "lambda=0.1, trellis=0, passes=2", ["--allocate", "uniform"]),
    ("+ trellis of 8 states", "trellis=3", ["--allocate", "uniform"]),
    ("+ trellis of 64 states", "trellis=6", ["--allocate", "uniform"]),
    ("+ trellis of 128 states", "trellis=7", ["--allocate", "uniform"]),
    ("+ measured allocation: **the default**", "", []),
    ("default behind quantised blocks (`--sequential`)", "", ["--sequential"]),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--bits", type=float, nargs="*", default=[2.25])
    parser.add_argument("--out", default="docs/results/house.md")
    options = parser.parse_args()
    text = os.path.join(options.data, "text/wikitext2_valid.txt")
    lines = ["# The house recipe: what each part buys", "",
             f"Written by `python3 tools/ablate_house.py` on {datetime.date.today()}, {processor()}. MiniLM, {PROTOCOL_MINILM}; "
             "embedding mse at coded bits per linear weight, every byte counted. Differences of 2 % are noise.", "",
             "| variant | " + " | ".join(f"mse at {bits}" for bits in options.bits) + " | seconds |",
             "|---|" + "---|" * (len(options.bits) + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        for name, arguments, extra in VARIANTS:
            cells, seconds = [], 0.0
            for bits in options.bits:
                recipe = f"house(bits={bits}{', ' + arguments if arguments else ''})"
                out = os.path.join(scratch, "m.lam")
                report = run(options.program, "compress", options.minilm, "--recipe", recipe, "--keep", "*embeddings*",
                             "--calibrate", text, "-o", out, "--overwrite", *extra)
                judged = run(options.program, "eval", out, "--against", options.minilm, "--text", text, "--no-noise-floor")
                cells.append(f"{judged['embedding_mse']:.4f} ({judged['linear_bits_per_weight']:.3f})")
                seconds = max(seconds, report["seconds"])
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} |")
            print(lines[-1], flush=True)
    with open(options.out, "w", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
