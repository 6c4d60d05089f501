"""Measures every system of the weight wing beside the baselines and the house recipe: docs/results/weights.md and .svg.

    python3 tools/measure_weights.py --program target/release/lamella --data DIR [--minilm DIR] [--work DIR] [--only MODEL]

from the project's root.

Loss against bits per weight of the whole file. Every figure comes from a file that a fresh process reads back. What is
measured is kept in WORK/weights.json and not measured again (delete it to begin anew), so that a run may be cut short;
rows that are missing are named in the document.
"""

import argparse
import datetime
import json
import math
import os
import subprocess

# Recipes of the linears, by system; embeddings of all but the house rows get EMBEDDINGS.
SYSTEMS = {
    "rtn": ["rtn(bits=%d, group_size=128)" % bits for bits in (2, 3, 4)],
    "gptq": ["gptq(bits=%d, group_size=128, order=activation)" % bits for bits in (2, 3, 4)]
    + ["gptq(bits=2, group_size=32, order=activation, groups=dynamic)"],
    "S056 spqr": ["spqr(bits=2)", "spqr", "spqr(bits=4)"],
    "S054 decoupleq": ["decoupleq", "decoupleq(group_size=64)", "decoupleq(bits=3)"],
    "S068 vptq": ["vptq(vector=4, centroids=256)", "vptq(vector=8, centroids=256)", "vptq(vector=4, centroids=64)",
                  "vptq(vector=2, centroids=64)", "vptq(vector=2, centroids=256)"],
    "S152 bitstack": ["bitstack(blocks=%d, rank=2)" % blocks for blocks in (2, 3, 1, 4)],
    "S138 elutq": ["elutq(bits=%d)" % bits for bits in (2, 3, 4, 1)],
    "S065 mixllm": ["mixllm(share=10%)", "mixllm(share=0)", "mixllm(share=30%)"],
    "S058 olive": ["olive"],
    "S044 bfp": ["bfp(bits=%d, block=32)" % bits for bits in (4, 3, 2)],
    "house": ["2.5", "3.5", "1.5", "4.5", "2", "3", "4", "1.25", "5"],
}
# On MiniLM, where each costs minutes.
SHORT = {"rtn": 3, "gptq": 3, "S056 spqr": 3, "S054 decoupleq": 3, "S068 vptq": 2, "S152 bitstack": 4, "S138 elutq": 4, "S065 mixllm": 2,
         "S058 olive": 1, "S044 bfp": 3, "house": 9}
# On the project's own model, whose matrices are 64 wide: codebooks and factors to match.
SMALL = {"S068 vptq": ["vptq(vector=2, centroids=%d)" % k for k in (16, 8, 64)], "S152 bitstack": ["bitstack(blocks=%d, rank=1)" % n for n in (1, 2, 3)]}
EMBEDDINGS = "house(bits=5)"
SLICE = 20_000
COLORS = ["#9a9a9a", "#555555", "#1b6ca8", "#c0392b", "#27866b", "#8e5aa8", "#d18f1d", "#0aa5b5", "#a0522d", "#7b8a1c", "#000000"]


def run(program, *arguments):
    done = subprocess.run([program, *arguments, "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{len(names)} x {names[0]}"


class Model:
    """A model with its protocol: what to calibrate and judge on, and how the loss is called."""

    def __init__(self, name, path, options):
        text = os.path.join(options.data, "text")
        self.name, self.path, self.work, self.program = name, path, options.work, options.program
        self.calibration = os.path.join(text, "wikitext2_valid.txt")
        if name == "wiki5m":
            judged = os.path.join(options.work, "slice.txt")
            with open(os.path.join(text, "wikitext2_eval.txt"), "rb") as whole, open(judged, "wb") as part:
                part.write(whole.read(SLICE))
            self.loss, self.systems = "kl", SYSTEMS
            self.judge = ["--text", judged, "--context", "256", "--stride", "256"]
            self.pattern = "*embed_tokens*"
            self.protocol = (f"KL divergence to the original in nats per token on the first {SLICE:,} bytes of a WikiText-2 test "
                             "slice (windows of 256); statistics of 32,768 tokens of WikiText-2 valid")
        elif name == "stories260k":
            self.calibration = os.path.join(path, "calibration.txt")
            self.loss, self.systems = "kl", {**SYSTEMS, **SMALL}
            self.judge = ["--text", os.path.join(path, "evaluation.txt"), "--context", "128", "--stride", "128"]
            self.pattern = "*embed_tokens*"
            self.protocol = ("KL divergence to the original in nats per token on `evaluation.txt` beside it (windows of 128); "
                             "statistics of its `calibration.txt`")
        else:
            self.loss = "embedding_mse"
            self.systems = {system: recipes[:SHORT[system]] for system, recipes in SYSTEMS.items() if SHORT.get(system)}
            self.judge = ["--text", self.calibration]
            self.pattern = "*_embeddings.weight"
            self.protocol = ("mean squared distance of embeddings on paragraphs 200 to 327 of WikiText-2 valid; statistics of its "
                             "first 96 paragraphs over 200 characters")

    def measure(self, system, recipe):
        out = os.path.join(self.work, "candidate.lam")
        common = ["compress", self.path, "--calibrate", self.calibration, "-o", out, "--overwrite",
                  "--statistics", os.path.join(self.work, self.name + ".statistics")]
        if system == "house":
            chosen = ["--bits", recipe, "--allocate", "uniform"]
        else:
            chosen = ["--recipe", recipe, "--rule", f"{self.pattern}={EMBEDDINGS}", "--allocate", "uniform"]
        written = run(self.program, *common, *chosen)
        judged = run(self.program, "eval", out, "--against", self.path, *self.judge)
        return {"bits": judged["bits_per_weight"], "linear_bits": judged["linear_bits_per_weight"], "loss": judged[self.loss],
                "seconds": written["seconds"]}


def front(rows):
    """Rows that no other row beats in both bits and loss, by rising bits."""
    best, found = math.inf, []
    for row in sorted(rows, key=lambda row: (row["bits"], row["loss"])):
        if row["loss"] < best:
            best = row["loss"]
            found.append(row)
    return found


def plot(rows, title, path):
    """Loss over bits, both axes logarithmic in the loss only, as an SVG of plain lines."""
    shown = [row for row in rows if row["bits"] <= 5.6 and row["loss"] > 0]
    low = math.floor(math.log10(min(row["loss"] for row in shown)))
    high = math.ceil(math.log10(max(row["loss"] for row in shown)))
    width, height, left, right, top, bottom = 820, 520, 70, 150, 40, 50
    def x(bits):
        return left + (bits - 1) / 4.6 * (width - left - right)
    def y(loss):
        return top + (high - math.log10(loss)) / (high - low) * (height - top - bottom)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="#ffffff"/>', f'<text x="{left}" y="22" font-size="14">{title}</text>']
    for bits in range(1, 6):
        parts.append(f'<line x1="{x(bits):.1f}" y1="{top}" x2="{x(bits):.1f}" y2="{height - bottom}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{x(bits):.1f}" y="{height - bottom + 18}" text-anchor="middle">{bits}</text>')
    for power in range(low, high + 1):
        parts.append(f'<line x1="{left}" y1="{y(10 ** power):.1f}" x2="{width - right}" y2="{y(10 ** power):.1f}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{left - 8}" y="{y(10 ** power) + 4:.1f}" text-anchor="end">{10.0 ** power:g}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 12}" text-anchor="middle">bits per weight of the file</text>')
    for index, system in enumerate(SYSTEMS):
        own = sorted((row for row in shown if row["system"] == system), key=lambda row: row["bits"])
        if not own:
            continue
        color, points = COLORS[index], " ".join(f"{x(row['bits']):.1f},{y(row['loss']):.1f}" for row in own)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{2.5 if system == "house" else 1.3}"/>')
        parts += [f'<circle cx="{x(row["bits"]):.1f}" cy="{y(row["loss"]):.1f}" r="3" fill="{color}"/>' for row in own]
        legend = top + 14 + 20 * index
        parts.append(f'<line x1="{width - right + 12}" y1="{legend - 4}" x2="{width - right + 32}" y2="{legend - 4}" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{width - right + 38}" y="{legend}">{system}</text>')
    parts.append("</svg>")
    with open(path, "w", encoding="utf-8") as out:
        out.write("\n".join(parts) + "\n")


def section(model, rows, folder, lines):
    """The plot and the table of one model."""
    known = {(row["system"], row["recipe"]) for row in rows}
    missing = [f"`house --bits {recipe}`" if system == "house" else f"`{recipe}`" for system, recipes in model.systems.items() for recipe in recipes if (system, recipe) not in known]
    picture = f"weights-{model.name.lower()}.svg"
    plot(rows, f"{model.name}: loss against file size", os.path.join(folder, picture))
    house = sorted((row for row in rows if row["system"] == "house"), key=lambda row: row["bits"])
    # Any file size can be asked of the house: its front is the line through its rows, not the rows alone.
    best = [row for row in front(rows) if row["system"] == "house" or row["loss"] <= (between(house, row["bits"]) or math.inf)]
    lines += ["", f"## {model.name}", "", model.protocol + ". Rows but the house's keep their embedding at "
              f"`{EMBEDDINGS}`; the house's are `--bits` with `--allocate uniform`, so that they know what the others know. The default "
              "also measures sensitivities and loses less (house-against-gptq.md).", "", f"![loss against bits]({picture})", "",
              "| system | recipe of the linears | bits per weight of the file | of the linears | loss | over the house's at these bits | on the front | s to compress |",
              "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        recipe = f"`--bits {row['recipe']} --allocate uniform`" if row["system"] == "house" else f"`{row['recipe']}`"
        over = between(house, row["bits"])
        ratio = "" if over is None or row["system"] == "house" else f"{row['loss'] / over:.2f}"
        lines.append(f"| {row['system']} | {recipe} | {row['bits']:.3f} | {row['linear_bits']:.3f} | {row['loss']:.5f} | {ratio} | "
                     f"{'yes' if row in best else ''} | {row['seconds']:.1f} |")
    owners = sorted({row["system"] for row in best})
    lines += ["", f"On the front: {', '.join(owners)}."]
    if missing:
        lines += ["", "Not measured in this run: " + ", ".join(missing) + "."]


def between(house, bits):
    """The house's loss at so many bits, on the line between its neighbours in the logarithm."""
    for a, b in zip(house, house[1:]):
        if a["bits"] <= bits <= b["bits"] and b["bits"] > a["bits"]:
            share = (bits - a["bits"]) / (b["bits"] - a["bits"])
            return math.exp((1 - share) * math.log(a["loss"]) + share * math.log(b["loss"]))
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--data", required=True)
    parser.add_argument("--minilm")
    parser.add_argument("--work", default="target/weights")
    parser.add_argument("--out", default="docs/results/weights.md")
    parser.add_argument("--only", help="one model: stories260k or wiki5m")
    parser.add_argument("--write-only", action="store_true", help="write the document from what was measured before")
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    kept = os.path.join(options.work, "weights.json")
    rows = []
    if os.path.exists(kept):
        with open(kept, encoding="utf-8") as file:
            rows = json.load(file)
    models = [Model("stories260k", "assets/stories260k", options), Model("wiki5m", os.path.join(options.data, "lm/wiki5m"), options)]
    if options.only:
        models = [model for model in models if model.name == options.only]
    if options.minilm:
        models.append(Model("MiniLM", options.minilm, options))
    for model in models:
        # The house, then the first recipe of every system, then the second: a run that is cut short has something of each.
        pairs = [(place, system, recipe) for system, recipes in model.systems.items() for place, recipe in enumerate(recipes)]
        for _, system, recipe in sorted(pairs, key=lambda pair: (pair[1] != "house", pair[0])):
            key = (model.name, system, recipe)
            if options.write_only or any((row["model"], row["system"], row["recipe"]) == key for row in rows):
                continue
            try:
                found = model.measure(system, recipe)
            except RuntimeError as error:
                print(f"{key}: {error}", flush=True)
                continue
            rows.append({"model": model.name, "system": system, "recipe": recipe, **found})
            print(rows[-1], flush=True)
            with open(kept, "w", encoding="utf-8") as file:
                json.dump(rows, file, indent=1)
    lines = ["# The weight wing", "", f"Written by `python3 tools/measure_weights.py` on {datetime.date.today()}, {processor()}; "
             "other jobs ran beside, so seconds are rough. Loss is that of the written file, read back by a fresh process; bits are "
             "those of the whole file but its side files. `mixllm` runs with 8-bit activations."]
    for model in models:
        own = [row for row in rows if row["model"] == model.name]
        if own:
            order = list(SYSTEMS)
            own.sort(key=lambda row: (order.index(row["system"]), row["bits"]))
            section(model, own, os.path.dirname(options.out), lines)
    with open(options.out, "w", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
