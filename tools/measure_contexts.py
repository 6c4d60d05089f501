"""Measures what the adaptive coder of house layers gains over static class tables; writes docs/results/contexts.md.

    cargo build --release -p lamella -p lamella-weights --example house_contexts --bins
    python3 tools/measure_contexts.py --minilm DIR --data DIR

Compresses MiniLM's linears and wiki5m at three sizes each, and hands the files to the example `house_contexts`, which
decodes every layer's codes and counts them both ways.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import tempfile


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="target/release")
    parser.add_argument("--program", help="default: TARGET/lamella")
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--rows", type=int, default=6, help="only the first so many rows")
    parser.add_argument("--out", default="docs/results/contexts.md")
    options = parser.parse_args()
    program = options.program or os.path.join(options.target, "lamella")
    calibration = os.path.join(options.data, "text/wikitext2_valid.txt")
    lines = ["# Context coding of house symbols", "",
             f"Written by `python3 tools/measure_contexts.py` on {datetime.date.today()}, {processor()}.", "",
             "Bits per weight of the codes alone (signs included; steps, offsets and headers are the same on both sides). *One table*: a static "
             "12-bit table for each quantiser of the trellis. *Columns*: static tables for each class of columns, the best of 1 to 16 classes for each "
             "array. *Rows x columns*: classes of the product of row and column means. Static figures are ideal code lengths plus the "
             "bytes of tables and of class lists as the library codes them, without lane states. *Adaptive*: the bytes of the default coder.", "",
             "Why there is little more to gain: a context can only say how large a code will be, not its value. Error feedback "
             "leaves codes that are uncorrelated along a row, rows are independent given the inputs, and what differs is scale. "
             "The products of row and column means know the scale of every code in up to 16 classes; what the adaptive coder "
             "saves against them is what a finer knowledge of scale is worth.", "",
             "| layers | weights | one table | columns | rows x columns | adaptive | saved against columns | against rows x columns |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]
    runs = [(bits, name) for name in ("wiki5m", "MiniLM") for bits in ("2.25", "3.25", "4.25")]
    with tempfile.TemporaryDirectory() as scratch:
        for bits, name in runs[:options.rows]:
            if name == "MiniLM":
                model, extra = options.minilm, ["--recipe", f"house(bits={bits})", "--keep", "*embeddings*"]
            else:
                model, extra = os.path.join(options.data, "lm/wiki5m"), ["--bits", bits]
            out = os.path.join(scratch, "x.lam")
            subprocess.run([program, "compress", model, *extra, "--allocate", "uniform", "--calibrate", calibration, "-o", out, "--overwrite",
                            "--quiet", "--threads", options.threads], check=True, stdout=subprocess.DEVNULL)
            example = os.path.join(options.target, "examples/house_contexts")
            row = json.loads(subprocess.run([example, f"{name}={out}"], check=True, capture_output=True, text=True).stdout)
            per = {key: 8 * row[key] / row["weights"] for key in ("one", "columns", "both", "adaptive")}
            lines.append(f"| {name}, {bits} bits | {row['weights']} | {per['one']:.4f} | {per['columns']:.4f} | {per['both']:.4f} | {per['adaptive']:.4f} | "
                         f"{100 * (1 - per['adaptive'] / per['columns']):.2f} % | {100 * (1 - per['adaptive'] / per['both']):.2f} % |")
            print(lines[-1], flush=True)
            # A long run that is cut short leaves the rows it has.
            os.makedirs(os.path.dirname(options.out), exist_ok=True)
            with open(options.out, "w", encoding="utf-8") as written:
                written.write("\n".join(lines) + "\n")


main()
