"""Files from Python: jobs, reading, damage."""

import json
import pathlib
import subprocess
import sys
import threading
import time

import lamella
import pytest


def test_docstring_examples_hold(run_doctests):
    result = run_doctests(lamella)
    assert result.attempted >= 8 and result.failed == 0


def test_a_file_reads_like_a_dictionary_and_like_the_expanded_model(coded, tmp_path):
    written = lamella.expand(coded, tmp_path / "story", progress=False)
    assert "config.json" in written
    weights = {}
    for path in (tmp_path / "story").glob("*.safetensors"):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        for name, entry in header.items():
            if name != "__metadata__":
                first, end = (8 + length + offset for offset in entry["data_offsets"])
                weights[name] = (entry["shape"], content[first:end])
    with lamella.open(coded) as file:
        assert set(file) == set(weights) and len(file) == len(weights)
        for name, array in file.items():
            shape, content = weights[name]
            assert list(array.shape) == shape == list(file.shape(name))
            assert array.tobytes() == content, name
        assert "config.json" in file.side_files()
        assert file.budget == "--size 160KB" and file.length_bytes == coded.stat().st_size
        assert any(file.recipe(name) == "exact" for name in file)
        with pytest.raises(KeyError):
            file["no such array"]
    with pytest.raises(ValueError, match="closed"):
        file["model.norm.weight"]
    loaded = lamella.load_file(coded)
    assert set(loaded) == set(weights)


def test_an_array_outlives_its_file_and_may_be_changed(coded):
    with lamella.open(coded) as file:
        array = file["model.embed_tokens.weight"]
        assert array.flags.writeable and array.flags.c_contiguous
        again = file["model.embed_tokens.weight"]
    array[0, 0] += 1
    assert array[0, 0] != again[0, 0]


def test_a_coded_model_is_judged_against_its_original(coded, stories):
    report = lamella.evaluate(coded, stories, tokens=600, noise_floor=False, progress=False)
    assert 0 < report["kl"] < 1 and report["bytes"] == coded.stat().st_size


def test_a_plan_writes_nothing_and_meets_the_size(stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = lamella.plan(stories, size="15%", allocate="uniform", progress=False)
    assert report["bytes"] <= report["target_bytes"] and report["arrays"]
    assert list(tmp_path.iterdir()) == []


def test_lossless_files_come_back_byte_for_byte(stories, tmp_path):
    report = lamella.compress(stories, tmp_path / "exact.lam", lossless=True, progress=False)
    assert report["bytes"] < report["source_bytes"]
    lamella.expand(tmp_path / "exact.lam", tmp_path / "back", progress=False)
    for path in filter(pathlib.Path.is_file, stories.iterdir()):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_cannot_be_done_is_an_exception_of_the_librarys_name(coded, stories, tmp_path):
    with pytest.raises(lamella.CompressError, match="smallest file"):
        lamella.compress(stories, tmp_path / "tiny.lam", size=1000, progress=False)
    with pytest.raises(lamella.CompressError, match="matches no array"):
        lamella.compress(stories, tmp_path / "none.lam", size="50%", keep="no-such-*", progress=False)
    with pytest.raises(lamella.RecipeError):
        lamella.compress(stories, tmp_path / "bad.lam", recipe="house(", progress=False)
    with pytest.raises(lamella.LamellaError, match="exists"):
        lamella.compress(stories, coded, size="50%", progress=False)
    with pytest.raises(lamella.LamellaError, match="not both"):
        lamella.plan(stories, size="50%", bits=3, progress=False)
    with pytest.raises(lamella.LamellaError):
        lamella.open(tmp_path / "not there.lam")
    content = bytearray(coded.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.lam").write_bytes(content)
    with pytest.raises(lamella.FileError, match="checksum"):
        lamella.verify(tmp_path / "damaged.lam")
    (tmp_path / "short.lam").write_bytes(content[:1000])
    with pytest.raises(lamella.LamellaError):
        lamella.open(tmp_path / "short.lam")
    with pytest.raises(lamella.FileError):
        lamella.cut(coded, tmp_path / "cut.lam", "50%")
    assert lamella.verify(coded) == coded.stat().st_size


def test_progress_is_heard_and_what_the_callback_raises_ends_the_job(stories, tmp_path):
    heard = []
    lamella.compress(
        stories, tmp_path / "a.lam", bits=3, allocate="uniform", progress=lambda *report: heard.append(report)
    )
    assert {stage for stage, _, _, _ in heard} >= {"calibrate"}
    assert all(done <= total for _, done, total, _ in heard)

    class Enough(Exception):
        pass

    def stop(*_):
        raise Enough

    with pytest.raises(Enough):
        lamella.compress(stories, tmp_path / "b.lam", bits=3, allocate="uniform", progress=stop)
    assert not (tmp_path / "b.lam").exists()


def test_the_interpreter_goes_on_while_a_job_runs(stories, tmp_path):
    turns = []
    worker = threading.Thread(
        target=lamella.compress, args=(stories, tmp_path / "c.lam"), kwargs={"bits": 3, "progress": False}
    )
    worker.start()
    while worker.is_alive():
        turns.append(None)
        time.sleep(0.001)
    worker.join()
    assert (tmp_path / "c.lam").exists() and len(turns) > 20


def test_importing_loads_nothing_else():
    names = ("numpy", "torch", "tqdm", "transformers")
    code = f"import sys, lamella; print([name for name in {names} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_catalogue_is_data():
    systems = lamella.systems()
    assert len(systems) == 169 and len({system["id"] for system in systems}) == 169
    assert {"house", "gptq", "rtn", "exact"} <= {codec["name"] for codec in lamella.recipes()}
    with pytest.raises(lamella.LamellaError, match="no system"):
        lamella.reproduce("S999")
