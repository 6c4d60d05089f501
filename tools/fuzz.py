#!/usr/bin/env python3
"""Runs the fuzz targets in turns, least fuzzed first, and keeps the cumulative record in fuzz/executions.

    python tools/fuzz.py --minutes 60                    every target gets its share, two at a time with --jobs 2
    python tools/fuzz.py --minutes 5 --only file_open    one target
    python tools/fuzz.py --minimise                      reduces what was found to the committed corpus

Builds with coverage counters by the stable compiler (no address sanitiser: the code under test is safe Rust, and
overflow checks are on). A crash is left under fuzz/target/crashes/TARGET; copy it to fuzz/regressions/TARGET, where
ordinary tests replay it. Limits of every run: 64 MiB in one allocation, 600 MiB in all, 300 s an input (by the clock: a
busy machine is no finding).
"""
import argparse, csv, glob, os, re, shutil, subprocess, sys, threading, time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
FUZZ = os.path.join(ROOT, "fuzz")
TRIPLE = "x86_64-unknown-linux-gnu"
LIMITS = "malloc 64 MiB and rss 600 MiB"
FLAGS = " ".join(
    ["-Cpasses=sancov-module", "--cfg=fuzzing"]
    + [f"-Cllvm-args=-sanitizer-coverage-{f}" for f in ("level=4", "inline-8bit-counters", "pc-table", "trace-compares")]
)
# What may be committed of a target's corpus.
MOST_FILES, MOST_BYTES = 60, 96 << 10

p = argparse.ArgumentParser()
p.add_argument("--minutes", type=float, default=0, help="wall-clock minutes")
p.add_argument("--turn", type=int, default=120, help="seconds of one turn")
p.add_argument("--jobs", type=int, default=1, help="targets at a time")
p.add_argument("--only", action="append", help="this target (repeat)")
p.add_argument("--minimise", action="store_true")
p.add_argument("--no-build", action="store_true")
a = p.parse_args()

targets = sorted(os.path.basename(path)[:-3] for path in glob.glob(f"{FUZZ}/fuzz_targets/*.rs"))
targets = [t for t in targets if not a.only or t in a.only]
if not a.no_build:
    wrapper = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fuzz_rustc.sh")
    env = dict(os.environ, RUSTC_WRAPPER=wrapper, LAMELLA_FUZZ_FLAGS=FLAGS)
    prefixes = {"files": "file_", "layers": "layer_", "formats": "io_"}
    wanted = [feature for feature, prefix in prefixes.items() if any(t.startswith(prefix) for t in targets)]
    features = ["--features", ",".join(wanted)] if wanted else []
    command = ["cargo", "build", "--release", "--manifest-path", f"{FUZZ}/Cargo.toml", "--target", TRIPLE]
    subprocess.run(command + features + [x for t in targets for x in ("--bin", t)], check=True, env=env)


def binary(target):
    return f"{FUZZ}/target/{TRIPLE}/release/{target}"


def record_path(target):
    return f"{FUZZ}/executions/{target.split('_')[0]}.csv"


def records(path):
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        return {r["target"]: r for r in csv.DictReader(f)}


lock = threading.Lock()


def add(target, executions, seconds, findings):
    with lock:
        path = record_path(target)
        rows = records(path)
        row = rows.setdefault(target, dict(target=target, executions=0, seconds=0, limits=LIMITS, findings=0))
        for key, value in (("executions", executions), ("seconds", seconds), ("findings", findings)):
            row[key] = int(row[key]) + value
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".new", "w", newline="") as f:
            w = csv.DictWriter(f, ["target", "executions", "seconds", "limits", "findings"], lineterminator="\n")
            w.writeheader()
            w.writerows(rows.values())
        os.replace(path + ".new", path)


def turn(target, seconds):
    found, crashes = f"{FUZZ}/target/found/{target}", f"{FUZZ}/target/crashes/{target}"
    os.makedirs(found, exist_ok=True)
    os.makedirs(crashes, exist_ok=True)
    before = set(os.listdir(crashes))
    command = [binary(target), found, f"{FUZZ}/corpus/{target}", f"-max_total_time={seconds}", "-print_final_stats=1",
               "-rss_limit_mb=600", "-malloc_limit_mb=64", "-timeout=300", f"-artifact_prefix={crashes}/", "-verbosity=1"]
    os.makedirs(f"{FUZZ}/corpus/{target}", exist_ok=True)
    start = time.time()
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    # Slow units are kept for a look; findings are what crashes, hangs or allocates too much.
    new = {f for f in set(os.listdir(crashes)) - before if not f.startswith("slow-unit-")}
    match = re.search(r"number_of_executed_units:\s*(\d+)", run.stdout)
    if match is None:
        # A crash ends the run before its statistics: the last counter line says how far it came.
        lines = re.findall(r"^#(\d+)\s", run.stdout, re.M)
        executions = int(lines[-1]) if lines else 0
    else:
        executions = int(match.group(1))
    add(target, executions, round(time.time() - start), len(new))
    print(f"{target}: {executions} executions, {round(time.time() - start)} s, findings {sorted(new)}", flush=True)
    if run.returncode and not new:
        print(run.stdout[-3000:], file=sys.stderr, flush=True)
    if new:
        print(run.stdout[-3000:], flush=True)


end, busy = time.time() + 60 * a.minutes, set()


def worker():
    while time.time() < end - 1:
        with lock:
            free = [t for t in targets if t not in busy]
            if not free:
                return
            target = min(free, key=lambda t: (int(records(record_path(t)).get(t, {"seconds": 0})["seconds"]), t))
            busy.add(target)
        turn(target, max(1, min(a.turn, round(end - time.time()))))
        with lock:
            busy.discard(target)


threads = [threading.Thread(target=worker) for _ in range(a.jobs)]
[t.start() for t in threads]
[t.join() for t in threads]

if a.minimise:
    for target in targets:
        merged, committed = f"{FUZZ}/target/merged/{target}", f"{FUZZ}/corpus/{target}"
        shutil.rmtree(merged, ignore_errors=True)
        os.makedirs(merged)
        sources = [d for d in (committed, f"{FUZZ}/target/found/{target}") if os.path.isdir(d)]
        subprocess.run([binary(target), "-merge=1", "-rss_limit_mb=600", "-malloc_limit_mb=64", merged] + sources,
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # The smallest inputs that together reach what the rest reaches, as far as the limits allow; golden seeds stay.
        seeds = {f for f in os.listdir(committed) if f.startswith("golden_")} if os.path.isdir(committed) else set()
        files = sorted(os.listdir(merged), key=lambda f: os.path.getsize(f"{merged}/{f}"))
        total = 0
        keep = []
        for name in files:
            size = os.path.getsize(f"{merged}/{name}")
            if len(keep) < MOST_FILES and total + size <= MOST_BYTES:
                keep.append(name)
                total += size
        os.makedirs(committed, exist_ok=True)
        for name in os.listdir(committed):
            if name not in seeds and name not in keep:
                os.remove(f"{committed}/{name}")
        for name in keep:
            shutil.copy(f"{merged}/{name}", f"{committed}/{name}")
        print(f"{target}: {len(keep)} of {len(files)} inputs kept, {total} bytes, and {len(seeds)} seeds")
