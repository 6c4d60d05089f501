"""Where the bits of a progressive array go: each step of its derivation on real second moments, against the one before.

    python3 tools/account_progressive.py --minilm DIR --text FILE

Numbers only, no file of Lamella's is read: the sweep, the factor analysis and an ideal coder are written out below, as the
issue's derivation has them. The section `z-account` of docs/results/progressive.md is written to target/progressive.parts
(`tools/measure_progressive.py --join` puts it into the page). One number stands for a point: bits plus half the binary
logarithm of the relative loss, which falls only where something is gained.
"""

import argparse
import datetime
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

DAMPING, THRESHOLD = 0.03, 0.55
BLOCK = 2
LINEARS = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
ROWS = {"attention.self.query": (384, 1152), "attention.output.dense": (384,), "intermediate.dense": (1536,), "output.dense": (384,)}
RANKS = (0, 2, 4, 8, 16, 32, 64, 96)


def collect(directory, text):
    """Weights and damped mean second moments of the inputs of every kind of linear, per block."""
    torch.set_num_threads(1)
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    sums, counts, weights = {}, {}, {}

    def watch(name):
        def hook(_module, inputs, _output):
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + rows.T @ rows
            counts[name] = counts.get(name, 0) + len(rows)
        return hook

    for name, module in model.named_modules():
        parts = name.split(".", 3)
        if name.startswith("encoder.layer.") and len(parts) == 4 and parts[3] in LINEARS:
            module.register_forward_hook(watch((int(parts[2]), parts[3])))
            weights[(int(parts[2]), parts[3])] = module.weight.detach().double().numpy()
    paragraphs = [line for line in open(text, encoding="utf-8") if len(line) > 200][:96]
    with torch.no_grad():
        for paragraph in paragraphs:
            model(**tokenizer(paragraph, return_tensors="pt", truncation=True, max_length=256))
    moments = {}
    for name, total in sums.items():
        mean = (total / counts[name]).numpy()
        moments[name] = mean + DAMPING * np.mean(np.diag(mean)) * np.eye(len(mean))
    return weights, moments


def upper(moment):
    return np.linalg.cholesky(np.linalg.inv(moment)).T


def loadings(moment, rank, rounds=12):
    scale = np.sqrt(np.diag(moment))
    unit = moment / np.outer(scale, scale)
    own = np.clip(1 / np.diag(np.linalg.inv(unit)), 1 / 512, 1)
    for _ in range(rounds):
        root = 1 / np.sqrt(own)
        values, vectors = np.linalg.eigh(unit * np.outer(root, root))
        found = vectors[:, ::-1][:, :rank] * np.sqrt(np.maximum(values[::-1][:rank] - 1, 0))
        own = np.clip(1 - own * (found**2).sum(1), 1 / 512, 1)
    return found


def model_of(moment, found):
    own = np.sqrt(np.diag(moment) / (1 + (found**2).sum(1)))
    return (np.eye(len(moment)) + found @ found.T) * np.outer(own, own)


def gap(moment, believed):
    """Bits a weight takes more, at equal loss, where error feedback believes another moment than the true one."""
    factor, exact = upper(believed), upper(moment)
    loss = np.einsum("ij,jk,ik->", factor, moment, factor) / len(moment)
    return 0.5 * np.log2(loss) - np.log2(np.diag(factor)).mean() + np.log2(np.diag(exact)).mean()


def entropy(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    share = counts / counts.sum()
    return -(counts * np.log2(share)).sum()


def coded_bits(codes):
    """Bits a weight under the classes that the house coder uses, each class's table known."""
    size = np.abs(codes).astype(float)
    rows = (size.sum(1) + 8 * size.mean()) / ((codes.shape[1] + 8) * size.mean())
    classes = np.round(4 * np.log2(np.outer(rows, size.mean(0)) + 1e-9)).clip(-24, 40).astype(int)
    total = sum(entropy(np.abs(codes)[classes == c]) for c in np.unique(classes))
    return (total + (codes != 0).sum()) / codes.size


def sweep(weights, moment, factor, relative):
    """Bits, loss against zeros, and half the logarithm of what feedback adds to the spread of what is coded."""
    rms = np.sqrt((weights**2).mean())
    step = relative * rms / np.exp(np.log(np.diag(factor)).mean())
    centre = np.zeros(4)
    for _ in range(2):
        white, codes = np.zeros_like(weights), np.zeros(weights.shape, int)
        read, pulls, position = np.zeros_like(weights), np.zeros_like(weights), np.zeros_like(weights)
        for j in range(weights.shape[1]):
            own = step * factor[j, j]
            pulls[:, j] = -(white[:, :j] @ factor[:j, j]) / own
            position[:, j] = weights[:, j] / own + pulls[:, j]
            size = np.floor(np.maximum(np.abs(position[:, j]) - THRESHOLD + 1, 0)).astype(int)
            level = np.where(size == 0, 0, size - 0.5 + THRESHOLD - centre[np.minimum(size, 3)]) * np.sign(position[:, j])
            codes[:, j], read[:, j] = size * np.sign(position[:, j]).astype(int), level * own
            white[:, j] = (position[:, j] - level) * step
        size = np.abs(codes)
        for k in (1, 2, 3):
            chosen = size == k if k < 3 else size >= 3
            if chosen.sum() > 50:
                centre[k] = (size - 0.5 + THRESHOLD - np.abs(position))[chosen].mean()
    error = weights - read
    energy = lambda m: np.einsum("ij,jk,ik->", m, moment, m)
    spread = (weights**2).mean(0) / (step * np.diag(factor)) ** 2
    return coded_bits(codes), energy(error) / energy(weights), 0.5 * np.log2(1 + (pulls**2).mean(0) / spread).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--text", required=True)
    options = parser.parse_args()
    weights, moments = collect(options.minilm, options.text)
    lines = [f"## Where the bits go: MiniLM's block {BLOCK}", "",
             f"Written by `python3 tools/account_progressive.py` on {datetime.date.today()}: the derivation in numpy, an ideal coder, not Lamella's files.", "",
             "One sweep, scalar cells, under the exact factor of the second moment or that of diagonal plus rank. Figure: bits + log2(loss against zeros) / 2. Widening: what feedback adds to the entropy of the codes.", "",
             "| linear | factor | relative step | bits | loss | figure | widening |", "|---|---|---|---|---|---|---|"]
    for linear in LINEARS[:1] + LINEARS[2:3]:
        weight, moment = weights[(BLOCK, linear)], moments[(BLOCK, linear)]
        for label, factor in [("exact", upper(moment))] + [(f"rank {r}", upper(model_of(moment, loadings(moment, r)) if r else np.diag(np.diag(moment)))) for r in (0, 16, 64)]:
            for relative in (1.0, 0.125):
                bits, loss, widening = sweep(weight, moment, factor, relative)
                lines.append(f"| {linear} {weight.shape[0]} x {weight.shape[1]} | {label} | {relative} | {bits:.3f} | {loss:.6f} | {bits + 0.5 * np.log2(loss):.3f} | {widening:.3f} |")
                print(lines[-1], flush=True)
    lines += ["", "What a structure costs: bits a weight lost because the factor is not the exact one (loadings rounded to `sqrt(12 / rows)`), plus the loadings under an ideal coder, spread over the rows that share them.", "",
              "| linear | rows that share | " + " | ".join(f"rank {r}" for r in RANKS) + " |", "|---|---|" + "---|" * len(RANKS)]
    for linear in LINEARS:
        moment = moments[(BLOCK, linear)]
        ranks = RANKS if len(moment) < 1000 else RANKS[:-2]
        found = {r: loadings(moment, r, 12 if len(moment) < 1000 else 4) for r in ranks if r}
        for rows in ROWS[linear]:
            cells = []
            for rank in ranks:
                if rank == 0:
                    cells.append(f"{gap(moment, np.diag(np.diag(moment))):.3f}")
                    continue
                step = min(np.sqrt(12 / rows), 0.5)
                codes = np.round(found[rank] / step)
                side = sum(entropy(codes[:, k]) for k in range(rank)) / (rows * len(moment))
                lost = gap(moment, model_of(moment, codes * step))
                cells.append(f"{lost:.3f} + {side:.3f} = {lost + side:.3f}")
            lines.append(f"| {linear} | {rows} | " + " | ".join(cells + [""] * (len(RANKS) - len(cells))) + " |")
            print(lines[-1], flush=True)
    lines += ["", "What knowing one correlation for all inputs from the residual stream would do (the mean over them, exact; each input keeps its own variances): bits a weight lost, beside a structure of its own, side information not counted.", "",
              "| input | variances only | the common correlation | own rank 16 | own rank 64 |", "|---|---|---|---|---|"]
    residual = [key for key in sorted(moments) if key[1] in ("attention.self.query", "intermediate.dense")]
    scaled = {key: np.sqrt(np.diag(moments[key])) for key in residual}
    common = np.mean([moments[key] / np.outer(scaled[key], scaled[key]) for key in residual], axis=0)
    for key in residual:
        moment = moments[key]
        figures = [gap(moment, np.diag(np.diag(moment))), gap(moment, common * np.outer(scaled[key], scaled[key]))]
        figures += [gap(moment, model_of(moment, loadings(moment, rank))) for rank in (16, 64)]
        lines.append(f"| block {key[0]}, {key[1]} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
        print(lines[-1], flush=True)
    lines += ["", "Two other ways, reasoned and not measured. Coding anew from a master file and stored statistics has the figures of the one-size rows, at the cost of a whole compression and of the statistics (half a second moment for each input, more than the coded weights on these shapes). Learning the correlation from the rows already decoded, without side information, has to find as many numbers as the structure holds at half the logarithm of the rows seen, about 5 bits each: more than a rounded loading takes.", ""]
    os.makedirs("target/progressive.parts", exist_ok=True)
    with open("target/progressive.parts/z-account", "w", encoding="utf-8") as part:
        part.write("\n".join(lines) + "\n")


main()
