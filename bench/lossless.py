#!/usr/bin/env python3
"""Sizes and processor seconds of lossless coding beside ZipNN and zstd; writes docs/results/lossless.md.

    cargo build --release -p lamella -p lamella-weights --bins --example lossless_speed
    python bench/lossless.py --lamella target/release/lamella --data ../shared/data/lm --minilm DIR

Needs numpy, torch and zipnn; zstd as a program. Every file is brought back and compared before its row is written.
Speeds: `lamella` and ZipNN each code the same file inside their own process, least of five turns; what counts is
processor time (of the busiest thread, where there are two), so that other programs on the machine do not.
"""
import argparse, datetime, json, os, shutil, subprocess, tempfile, time
import numpy as np

p = argparse.ArgumentParser()
p.add_argument("--lamella", required=True)
p.add_argument("--speed", default="target/release/examples/lossless_speed")
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
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def zipnn_speed(path, dtype):
    """Coded bytes, seconds to code and to decode; the output is compared."""
    import zipnn

    original = open(path, "rb").read()
    encode = decode = float("inf")
    for _ in range(5):
        # It may use its input as scratch memory, so each turn gets a copy.
        data = bytearray(original)
        z = zipnn.ZipNN(bytearray_dtype=dtype, threads=1)
        start = time.process_time()
        coded = z.compress(data)
        middle = time.process_time()
        back = z.decompress(coded)
        decode = min(decode, time.process_time() - middle)
        encode = min(encode, middle - start)
        assert bytes(back) == original, "ZipNN does not return its input"
    return len(coded), encode, decode


with tempfile.TemporaryDirectory() as t:
    rng = np.random.default_rng(1)
    gaussian = bf16(rng.standard_normal(32 << 20, dtype=np.float32))
    write(f"{t}/gaussian.safetensors", {"w": ([8192, 4096], gaussian.tobytes())}, "BF16")
    import torch

    exact = {k: (s, np.frombuffer(d, np.float32)) for k, (s, d) in read(os.path.join(a.minilm, "model.safetensors")).items()
             if len(s) == 2 and "position_ids" not in k}
    narrow = lambda kind: {k: (s, torch.from_numpy(x.copy()).to(kind).view(torch.uint8).numpy().tobytes()) for k, (s, x) in exact.items()}
    write(f"{t}/minilm.safetensors", {k: (s, bf16(x).tobytes()) for k, (s, x) in exact.items()}, "BF16")
    write(f"{t}/minilm-f32.safetensors", {k: (s, x.tobytes()) for k, (s, x) in exact.items()}, "F32")
    write(f"{t}/minilm-f16.safetensors", narrow(torch.float16), "F16")
    write(f"{t}/minilm-fp8.safetensors", narrow(torch.float8_e4m3fn), "F8_E4M3")
    rows = [("Gaussian, bf16", f"{t}/gaussian.safetensors", None, "bfloat16"),
            ("MiniLM matrices, bf16", f"{t}/minilm.safetensors", None, "bfloat16"),
            ("MiniLM matrices, f32", f"{t}/minilm-f32.safetensors", None, "float32"),
            ("MiniLM matrices, f16", f"{t}/minilm-f16.safetensors", None, "float16"),
            ("MiniLM matrices, fp8 (e4m3)", f"{t}/minilm-fp8.safetensors", None, None),
            ("wiki5m f32", f"{a.data}/wiki5m/model.safetensors", None, "float32"),
            ("wiki5m-ft bf16", f"{a.data}/wiki5m-ft/model.safetensors", None, "bfloat16"),
            ("wiki5m-ft on wiki5m", f"{a.data}/wiki5m-ft/model.safetensors", f"{a.data}/wiki5m", None),
            ("RWKV 5v2 FP32 (ggml file)", f"{a.data}/rwkv/tiny-rwkv-5v2-730K-FP32.bin", None, "float32"),
            ("RWKV 5v2 FP16 (ggml file)", f"{a.data}/rwkv/tiny-rwkv-5v2-730K-FP16.bin", None, "float16")]
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    lines = ["# Lossless coding of weights", "",
             f"Written by `python bench/lossless.py` on {datetime.date.today()}, {len(names)} x {names[0] if names else 'unknown'}. Share: bytes of the whole "
             "file over bytes of the input; every file was brought back and compared. Speeds in MB per processor second of one thread, both inside "
             "their own process, least of five turns; *ratio* is `lamella` over ZipNN. *Two threads*: processor seconds with one thread over those of the busier of two.", "",
             "*Into kept memory*: `decode_to` into memory that the caller has used before (ZipNN always returns fresh memory, so it is the same ZipNN figure).", "",
             "| input | bytes | lamella | ZipNN | zstd -3 | zstd -19 | encode | ZipNN | ratio | decode | ZipNN | ratio | into kept memory | ratio | two threads, encode | decode |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for name, path, base, dtype in rows:
        size = os.path.getsize(path)
        lam, out = f"{t}/x.lam", f"{t}/out"
        extra = ["--base", base] if base else []
        run(a.lamella, "compress", path, "--lossless", "--overwrite", "--quiet", "-o", lam, *extra)
        shutil.rmtree(out, ignore_errors=True)
        run(a.lamella, "expand", lam, "--quiet", "-o", out, *extra)
        assert open(path, "rb").read() == open(os.path.join(out, os.path.basename(path)), "rb").read(), name
        cells = [name, f"{size}", f"{os.path.getsize(lam) / size:.4f}"]
        zipped = zipnn_speed(path, dtype) if dtype else None
        cells.append(f"{zipped[0] / size:.4f}" if zipped else "")
        for level in ("-3", "-19"):
            if (level == "-19" and size > 24 << 20) or not shutil.which("zstd"):
                cells.append("")
                continue
            subprocess.run(["zstd", level, "-T1", "-q", "-f", path, "-o", f"{t}/x.zst"], check=True)
            cells.append(f"{os.path.getsize(f'{t}/x.zst') / size:.4f}")
        if base or not path.endswith(".safetensors"):
            cells += [""] * 10
        else:
            speed = json.loads(run(a.speed, path))
            for direction, theirs in (("encode", zipped and zipped[1]), ("decode", zipped and zipped[2])):
                ours = speed["bytes"] / 1e6 / speed[f"{direction}_1"]
                theirs = theirs and size / 1e6 / theirs
                cells += [f"{ours:.0f}", f"{theirs:.0f}" if theirs else "", f"{ours / theirs:.2f}" if theirs else ""]
            kept = speed["bytes"] / 1e6 / speed["kept_1"]
            cells += [f"{kept:.0f}", f"{kept / theirs:.2f}" if theirs else ""]
            cells += [f"{speed[f'{direction}_1'] / speed[f'{direction}_2']:.2f}" for direction in ("encode", "decode")]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    os.makedirs(os.path.dirname(a.out), exist_ok=True)
    open(a.out, "w").write("\n".join(lines) + "\n")
