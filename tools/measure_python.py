"""Measures the Python package: import time, and decoding to NumPy beside decoding in Rust; writes docs/results/python.md.

    cargo build --release -p lamella --example decode_file
    python3 tools/measure_python.py FILE.lam [FILE.lam ...]

Run by an interpreter in which `lamella` is installed. Rust and Python take turns, so that what else the machine does
meets both; medians are compared.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time

from measure_house import processor

ROUNDS = 9


def import_seconds(statement):
    """What an interpreter that runs `statement` takes more than one that runs nothing, medians of alternated runs."""
    found = {"pass": [], statement: []}
    for _ in range(2 * ROUNDS):
        for code, seconds in found.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds.append(time.perf_counter() - started)
    return statistics.median(found[statement]) - statistics.median(found["pass"])


def decode_seconds(path):
    import lamella

    with lamella.open(path) as file:
        started = time.perf_counter()
        for name in file:
            file[name]
        return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--decoder", default="target/release/examples/decode_file")
    parser.add_argument("--out", default="docs/results/python.md")
    options = parser.parse_args()
    lines = ["# The Python package", "",
             f"Written by `python3 tools/measure_python.py` on {datetime.date.today()}, {processor()}, "
             f"Python {sys.version.split()[0]}. Medians of alternated runs.", "",
             "| statement | seconds more than an interpreter that does nothing |", "|---|---:|"]
    for statement in ("import lamella", "import numpy"):
        lines.append(f"| `{statement}` | {import_seconds(statement):.3f} |")
        print(lines[-1], flush=True)
    lines += ["", "Every array of a file, decoded one after the other:", "",
              "| file | MB of values | Rust, seconds | Python, seconds | Python over Rust |", "|---|---:|---:|---:|---:|"]
    for path in options.files:
        decode_seconds(path)
        rust, python = [], []
        for _ in range(ROUNDS):
            found = json.loads(subprocess.run([options.decoder, path, "1"], check=True, capture_output=True, text=True).stdout)
            rust.append(found["seconds"])
            python.append(decode_seconds(path))
        ours, theirs = statistics.median(python), statistics.median(rust)
        lines.append(f"| {os.path.basename(path)} | {found['bytes'] / 1e6:.1f} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.3f} |")
        print(lines[-1], flush=True)
    with open(options.out, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
