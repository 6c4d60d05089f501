"""Compares measured allocation with one relative step for all arrays, and writes docs/results/allocation.md.

    python3 tools/measure_allocation.py --program target/release/lamella --minilm DIR --data DIR
"""

import argparse
import datetime
import os
import tempfile

from measure_house import PROTOCOL_MINILM, processor, run


def jobs(options):
    """Name, model, options of `compress` for some bits, options of `eval`, name of the loss."""
    valid, text = (os.path.join(options.data, "text", name) for name in ("wikitext2_valid.txt", "wikitext2_eval.txt"))
    wiki5m = os.path.join(options.data, "lm/wiki5m")
    yield ("MiniLM", options.minilm, lambda bits: ["--recipe", f"house(bits={bits})", "--keep", "*embeddings*"],
           valid, ["--text", valid], "embedding_mse")
    yield ("wiki5m", wiki5m, lambda bits: ["--bits", str(bits)], valid,
           ["--text", text, "--context", "256", "--stride", "128"], "kl")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--bits", type=float, nargs="*", default=[2.5, 3.0, 4.0])
    parser.add_argument("--only", choices=("MiniLM", "wiki5m"), help="one of the two models")
    parser.add_argument("--out", default="docs/results/allocation.md")
    options = parser.parse_args()
    lines = ["# Allocation: measured sensitivities against one relative step", "",
             f"Written by `python3 tools/measure_allocation.py` on {datetime.date.today()}, {processor()}. MiniLM: "
             f"{PROTOCOL_MINILM}; embedding mse at coded bits per linear weight, embeddings exact. wiki5m: every tensor "
             "coded, mean KL in nats at bits per weight; statistics from the first 32,768 tokens of wikitext2_valid, "
             "sensitivities from windows behind them, loss on wikitext2_eval. *uniform*: one relative step, embeddings at "
             "0.28 of it (`--allocate uniform`). *measured*: the default, "
             "with its polish; seconds are of the measured run.", "",
             "| model | bits | uniform: bytes | loss | measured: bytes | loss | ratio | seconds |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as scratch:
        out = os.path.join(scratch, "candidate.lam")
        plans = []
        for name, model, arguments, calibration, judging, loss in jobs(options):
            if options.only not in (None, name):
                continue
            for bits in options.bits:
                found = {}
                if bits == options.bits[len(options.bits) // 2]:
                    plan = run(options.program, "plan", model, *arguments(bits), "--calibrate", calibration)
                    plans.append(f"{name} at {bits} bits {plan['seconds']:.0f} s")
                for allocate in ("uniform", "measured"):
                    report = run(options.program, "compress", model, *arguments(bits), "--calibrate", calibration,
                                 "-o", out, "--overwrite", "--allocate", allocate)
                    judged = run(options.program, "eval", out, "--against", model, "--no-noise-floor", *judging)
                    found[allocate] = (judged["bytes"], judged[loss], report["seconds"])
                (before, high, _), (after, low, seconds) = found["uniform"], found["measured"]
                lines.append(f"| {name} | {bits} | {before} | {high:.5f} | {after} | {low:.5f} | {low / high:.3f} | {seconds:.0f} |")
                print(lines[-1], flush=True)
                # After each row: a run that is stopped leaves the rows it has.
                with open(options.out, "w", encoding="utf-8") as file:
                    file.write("\n".join([*lines, "", f"`lamella plan` alone: {', '.join(plans)}."]) + "\n")


if __name__ == "__main__":
    main()
