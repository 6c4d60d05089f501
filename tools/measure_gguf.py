#!/usr/bin/env python3
"""Measures our GGUF files beside llama.cpp's own quantiser with an importance matrix; writes docs/results/gguf.md.

    python3 tools/measure_gguf.py --program target/release/lamella --llama LLAMA_BIN_DIR --data DATA_DIR

For every mix of llama.cpp: `llama-quantize --imatrix` writes its file from our f32 GGUF file of wiki5m, then
`lamella compress --to gguf --size BYTES_OF_THAT_FILE` writes ours, at or under the same size. Both read the same
calibration tokens and are judged by `lamella eval` from the written file. `--llama` holds llama-quantize and
llama-imatrix (built from the sources in PyPI's llama-cpp-python); `--data` holds lm/wiki5m and the WikiText-2 slices.
"""

import argparse
import datetime
import json
import os
import subprocess
import tempfile

MIXES = ["IQ2_S", "IQ3_XXS", "Q2_K", "IQ3_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"]
TOKENS = 32768
CONTEXT = 512


def run(program, *arguments):
    return json.loads(subprocess.run([program, *arguments, "--json", "--quiet"], check=True, capture_output=True, text=True).stdout)


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown processor"


def tensor_bits(path):
    """Bits per weight of the tensors alone."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    return 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)


def write(path, rows):
    lines = ["# GGUF: our files against llama.cpp's own quantiser", "",
             f"Written by `python3 tools/measure_gguf.py` on {datetime.date.today()}, {processor()}.", "",
             f"wiki5m (5.2 M weights). Both calibrate on the first {TOKENS} tokens of the WikiText-2 valid slice in windows of "
             f"{CONTEXT}: llama.cpp takes its importance matrix (`llama-imatrix --process-output`), `lamella compress --to gguf --size` its "
             "statistics and sensitivities. Ours is asked for the size of llama.cpp's file in bytes. KL divergence to the original in nats "
             "per token on a WikiText-2 test slice, windows of 256 every 128, by `lamella eval` of the written file, with "
             "its 95 % interval. Bits count tensors alone.", "",
             "| llama.cpp's mix | its bytes | bits | KL | our bytes | bits | KL | ratio |", "|---|---|---|---|---|---|---|---|"]
    for mix, size, bits, left, own_size, own_bits, right in rows:
        def kl(judged):
            interval = judged.get("kl_interval")
            return f"{judged['kl']:.5f}" + (f" ({interval['low']:.5f} to {interval['high']:.5f})" if isinstance(interval, dict) else "")
        lines.append(f"| {mix} | {size} | {bits:.3f} | {kl(left)} | {own_size} | {own_bits:.3f} | {kl(right)} | {right['kl'] / left['kl']:.2f} |")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")



def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/lamella")
    parser.add_argument("--llama", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--mixes", nargs="*", default=MIXES)
    parser.add_argument("--out", default="docs/results/gguf.md")
    options = parser.parse_args()
    model = os.path.join(options.data, "lm/wiki5m")
    calibrate = os.path.join(options.data, "text/wikitext2_valid.txt")
    text = os.path.join(options.data, "text/wikitext2_eval.txt")
    environment = dict(os.environ, LD_LIBRARY_PATH=options.llama)

    def judge(path):
        return run(options.program, "eval", path, "--against", model, "--text", text, "--context", "256", "--stride", "128")

    def llama(tool, *arguments):
        subprocess.run([os.path.join(options.llama, tool), *arguments], check=True, capture_output=True, env=environment)

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        original, matrix = os.path.join(scratch, "f32.gguf"), os.path.join(scratch, "imatrix.gguf")
        run(options.program, "export", model, "--to", "gguf", "-o", original, "--type", "f32")
        # The same tokens that our statistics are taken of: the first 32,768 of the text in windows of 512.
        llama("llama-imatrix", "-m", original, "-f", calibrate, "-o", matrix, "-c", str(CONTEXT), "-b", str(CONTEXT),
              "--chunks", str(TOKENS // CONTEXT), "--no-ppl", "-t", "2", "--process-output")
        for mix in options.mixes:
            theirs, ours = os.path.join(scratch, "theirs.gguf"), os.path.join(scratch, "ours.gguf")
            llama("llama-quantize", "--imatrix", matrix, original, theirs, mix, "2")
            size = os.path.getsize(theirs)
            run(options.program, "compress", model, "--to", "gguf", "--size", str(size), "--calibrate", calibrate,
                "--tokens", str(TOKENS), "--context", str(CONTEXT), "-o", ours, "--overwrite")
            assert os.path.getsize(ours) <= size
            left, right = judge(theirs), judge(ours)
            rows.append((mix, size, tensor_bits(theirs), left, os.path.getsize(ours), tensor_bits(ours), right))
            print(mix, f"{tensor_bits(theirs):.3f} bits", f"{left['kl']:.5f}", f"{right['kl']:.5f}", f"{right['kl'] / left['kl']:.3f}", flush=True)
            os.remove(ours)
            # After each row: a run that is stopped leaves the rows it has.
            write(options.out, rows)


if __name__ == "__main__":
    main()
