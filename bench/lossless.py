#!/usr/bin/env python3
"""Sizes and processor seconds of lossless coding beside ZipNN and zstd; writes docs/results/lossless.md.

    python bench/lossless.py --lamella target/release/lamella --data ../shared/data/lm --minilm DIR

Needs numpy and zipnn; zstd as a program. Every file is brought back and compared before its row is written. Times of
`lamella` are those of the whole program (reading, hashing with SHA-256, coding, writing) on one thread.
"""
import argparse, json, os, resource, shutil, subprocess, tempfile, time
import numpy as np

p = argparse.ArgumentParser()
p.add_argument("--lamella", required=True)
p.add_argument("--data", required=True)
p.add_argument("--minilm", required=True)
p.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "../docs/results/lossless.md"))
a = p.parse_args()


def bf16(x):
    u = x.view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def write(path, arrays, dtype):
    header, at = {}, 0
    for name, (shape, data) in arrays.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, data in arrays.values():
            f.write(data)


def read(path):
    b = open(path, "rb").read()
    n = int.from_bytes(b[:8], "little")
    h = json.loads(b[8:8 + n])
    return {k: (v["shape"], b[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]) for k, v in h.items() if k != "__metadata__"}


def run(*command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


with tempfile.TemporaryDirectory() as t:
    rng = np.random.default_rng(1)
    gaussian = bf16(rng.standard_normal(32 << 20, dtype=np.float32))
    write(f"{t}/gaussian.safetensors", {"w": ([8192, 4096], gaussian.tobytes())}, "BF16")
    mini = read(os.path.join(a.minilm, "model.safetensors"))
    mini = {k: (s, bf16(np.frombuffer(d, np.float32)).tobytes()) for k, (s, d) in mini.items() if len(d) % 4 == 0 and s and len(s) == 2 and d[:4]}
    mini = {k: v for k, v in mini.items() if "position_ids" not in k}
    write(f"{t}/minilm.safetensors", mini, "BF16")
    rows = [("Gaussian bf16", f"{t}/gaussian.safetensors", None, "bfloat16"),
            ("MiniLM matrices, rounded to bf16", f"{t}/minilm.safetensors", None, "bfloat16"),
            ("wiki5m f32", f"{a.data}/wiki5m/model.safetensors", None, "float32"),
            ("wiki5m-ft bf16", f"{a.data}/wiki5m-ft/model.safetensors", None, "bfloat16"),
            ("wiki5m-ft on wiki5m", f"{a.data}/wiki5m-ft/model.safetensors", f"{a.data}/wiki5m", None),
            ("RWKV 5v2 FP32 (ggml file)", f"{a.data}/rwkv/tiny-rwkv-5v2-730K-FP32.bin", None, "float32"),
            ("RWKV 5v2 FP16 (ggml file)", f"{a.data}/rwkv/tiny-rwkv-5v2-730K-FP16.bin", None, "float16")]
    lines = ["# Lossless coding of weights", "",
             "Written by `python bench/lossless.py`. Share: bytes of the whole file over bytes of the input; every file was brought back and compared. "
             "MB per processor second of one thread; for `lamella` the whole program, hashing and writing included.", "",
             "| input | bytes | lamella | ZipNN | zstd -3 | zstd -19 | lamella MB/s | back | ZipNN MB/s | back |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for name, path, base, dtype in rows:
        size = os.path.getsize(path)
        lam, out = f"{t}/x.lam", f"{t}/out"
        extra = ["--base", base] if base else []
        enc = run(a.lamella, "compress", path, "--lossless", "--overwrite", "--threads", "1", "-o", lam, *extra)
        shutil.rmtree(out, ignore_errors=True)
        dec = run(a.lamella, "expand", lam, "--threads", "1", "-o", out, *extra)
        assert open(path, "rb").read() == open(os.path.join(out, os.path.basename(path)), "rb").read(), name
        cells = [name, f"{size}", f"{os.path.getsize(lam) / size:.4f}"]
        zip_cells = ["", ""]
        try:
            import zipnn
            if not dtype:
                raise ImportError
            data = open(path, "rb").read()
            z = zipnn.ZipNN(bytearray_dtype=dtype, threads=1)
            start = time.process_time()
            coded = z.compress(data)
            mid = time.process_time()
            z.decompress(coded)
            end = time.process_time()
            cells.append(f"{len(coded) / size:.4f}")
            zip_cells = [f"{size / 1e6 / (mid - start):.0f}", f"{size / 1e6 / (end - mid):.0f}"]
        except ImportError:
            cells.append("")
        for level in ("-3", "-19"):
            if (level == "-19" and size > 8 << 20) or not shutil.which("zstd"):
                cells.append("")
                continue
            run("zstd", level, "-T1", "-f", path, "-o", f"{t}/x.zst")
            cells.append(f"{os.path.getsize(f'{t}/x.zst') / size:.4f}")
        cells += [f"{size / 1e6 / enc:.0f}", f"{size / 1e6 / dec:.0f}"] + zip_cells
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    os.makedirs(os.path.dirname(a.out), exist_ok=True)
    open(a.out, "w").write("\n".join(lines) + "\n")
