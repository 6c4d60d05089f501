#!/usr/bin/env python3
"""Runs coded weights beside llama.cpp, with the same threads, and writes docs/results/execution.md.

    python3 tools/measure_execution.py --program target/release/lamella --llama DIR --scratch DIR \\
        wiki5m=../shared/data/lm/wiki5m,wiki5m-f32.gguf random-1b=random-1b,random-1b-f16.gguf

`--llama` holds llama-quantize and llama-bench. Each model is NAME=DIRECTORY,GGUF: the checkpoint that `lamella compress`
reads and the same weights for llama.cpp (`tools/llama_to_gguf.py`, or `lamella export --to gguf --type f16`; random ones from
`tools/make_random_llama.py`). Files that exist in `--scratch` are used again.

Turns of both programs alternate, and the best of each is taken: on a machine that does other work too, the best turn is
the one that was disturbed least. The ratio is that of the best turns; the median stands beside it.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        text = info.read()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next(line for line in text.splitlines() if line.startswith("flags")).split()
    wide = [flag for flag in ("avx2", "avx512bw", "avx512_vnni") if flag in flags]
    return f"{len(names)} x {names[0]} ({', '.join(wide)})"


def lamella(args, *arguments):
    command = [args.program, *arguments, "--json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def ours(args, file, prompt, threads):
    """The prompt by itself, then tokens behind next to nothing: llama-bench decodes from an empty context, too."""
    read = lamella(args, "run", file, prompt, "--max-tokens", "1", "--threads", str(threads))
    ran = lamella(args, "run", file, "The", "--max-tokens", str(args.tokens + 1), "--threads", str(threads))
    return read["prompt_tokens"], read["prompt_tokens_per_second"], ran["tokens_per_second"], ran["resident_bytes"]


def theirs(args, file, n_prompt, threads):
    command = [os.path.join(args.llama, "llama-bench"), "-m", file, "-p", str(n_prompt), "-n", str(args.tokens),
               "-t", str(threads), "-r", "1", "-o", "json"]
    environment = dict(os.environ, LD_LIBRARY_PATH=args.llama)
    runs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    speed = {bool(run["n_prompt"]): run["avg_ts"] for run in runs}
    return n_prompt, speed[True], speed[False], runs[0]["model_size"]


def prepare(args, name, directory, gguf):
    """The files that are compared: ours by recipe, theirs by type."""
    files = {}
    for label, recipe, bits in (("house(execute=int4)", "house(execute=int4)", args.bits), ("house(execute=int8)", "house(execute=int8)", 4.5),
                                ("house", "house", args.bits)):
        if label not in args.recipes:
            continue
        out = os.path.join(args.scratch, f"{name}-{label.replace('(', '-').replace(')', '').replace('=', '-')}.lam")
        if not os.path.exists(out):
            extra = ["--calibrate", args.calibrate] if args.calibrate else []
            report = lamella(args, "compress", directory, "--recipe", recipe, "--bits", str(bits), "--allocate", "uniform",
                             "--tokens", "8192", "-o", out, *extra)
            print(f"{out}: {report['bytes']} bytes", file=sys.stderr)
        files[f"lamella `{label}`"] = (out, True)
    for kind in ("Q4_0", "Q4_K"):
        out = os.path.join(args.scratch, f"{name}-{kind}.gguf")
        if not os.path.exists(out):
            environment = dict(os.environ, LD_LIBRARY_PATH=args.llama)
            subprocess.run([os.path.join(args.llama, "llama-quantize"), gguf, out, kind], check=True, capture_output=True, env=environment)
        files[f"llama.cpp {kind}"] = (out, False)
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--llama", required=True)
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--calibrate", help="calibration text")
    parser.add_argument("--prompt", help="text whose start is the prompt; llama.cpp reads as many tokens")
    parser.add_argument("--recipes", nargs="+", default=["house(execute=int4)", "house(execute=int8)", "house"])
    parser.add_argument("--bits", type=float, default=3.5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", default="docs/results/execution.md")
    args = parser.parse_args()
    text = "The history of the city began in the north of the island, where a river meets the sea. " * 12
    if args.prompt:
        with open(args.prompt, encoding="utf-8") as file:
            text = file.read()
    lines = ["# Coded weights at work", "",
             f"Written by `python3 tools/measure_execution.py` on {datetime.date.today()}: {processor()}. {args.turns} turns of each program in "
             f"alternation, {args.tokens} tokens decoded from a context of one word (llama-bench: from an empty one). Speeds are those of the best "
             "turn, in brackets the median; both programs shared the machine with other work, so look at ratios. *Ratio* is to llama.cpp "
             "Q4_0 with the same threads. Bytes in memory are those of the weights: `resident_bytes` of ours, `model_size` of llama-bench.", ""]
    for entry in args.models:
        name, paths = entry.split("=", 1)
        directory, gguf = paths.split(",", 1)
        files = prepare(args, name, directory, gguf)
        prompt = text[:300] if "random" in name else text[:900]
        lines += [f"## {name}", "",
                  "| | file bytes | bytes in memory | threads | prompt tokens/s | ratio | decode tokens/s | ratio |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
        for threads in args.threads:
            seen = {label: [] for label in files}
            n_prompt = 128
            for _ in range(args.turns):
                for label, (file, is_ours) in files.items():
                    found = ours(args, file, prompt, threads) if is_ours else theirs(args, file, n_prompt, threads)
                    n_prompt = found[0]
                    seen[label].append(found)
            best = {label: (max(r[1] for r in runs), max(r[2] for r in runs)) for label, runs in seen.items()}
            for label, runs in seen.items():
                middle = [statistics.median(run[at] for run in runs) for at in (1, 2)]
                cells = []
                for at in (0, 1):
                    cells += [f"{best[label][at]:.1f} ({middle[at]:.1f})", f"{best[label][at] / best['llama.cpp Q4_0'][at]:.2f}"]
                size = os.path.getsize(files[label][0])
                lines.append(f"| {label} | {size} | {runs[0][3]} | {threads} | {' | '.join(cells)} |")
            print("\n".join(lines[-len(seen):]), file=sys.stderr)
        lines.append("")
    with open(args.output, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


if __name__ == "__main__":
    main()
