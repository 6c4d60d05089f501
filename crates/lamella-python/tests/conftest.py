"""What the tests share: the model in `assets`, and one coded file of it."""

import doctest
import pathlib

import lamella
import pytest

ASSETS = pathlib.Path(__file__).resolve().parents[3] / "assets"


@pytest.fixture(scope="session")
def stories() -> pathlib.Path:
    return ASSETS / "stories260k"


@pytest.fixture(scope="session")
def coded(stories, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("coded") / "story.lam"
    report = lamella.compress(stories, path, size="160KB", allocate="uniform", keep=["*norm*"], progress=False)
    assert 0.99 * 160_000 <= report["bytes"] <= 160_000
    assert path.stat().st_size == report["bytes"]
    return path


@pytest.fixture(scope="session")
def run_doctests():
    def run(module) -> doctest.TestResults:
        return doctest.testmod(module, extraglobs={"lamella": lamella, "ASSETS": str(ASSETS)})

    return run
