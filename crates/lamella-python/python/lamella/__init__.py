"""Compress models, and arrays, to exactly the size you ask for.

The verbs of the ``lamella`` program are functions here, with the same reports as ``--json`` prints:

>>> import lamella
>>> import tempfile, os
>>> directory = tempfile.mkdtemp()
>>> path = os.path.join(directory, "story.lam")
>>> report = lamella.compress(ASSETS + "/stories260k", path, size="160KB", allocate="uniform")
>>> os.path.getsize(path) == report["bytes"] <= 160_000
True

A ``.lam`` file reads like a dictionary of NumPy arrays, each decoded when it is asked for:

>>> with lamella.open(path) as model:
...     embedding = model["model.embed_tokens.weight"]
>>> embedding.shape, embedding.dtype.name
((512, 64), 'float32')

Single arrays go through a codec (:class:`Codec`); the catalogue of published systems is :func:`systems`.
Only NumPy is needed, and imported when the first array is. ``lamella.torch`` and ``lamella.transformers`` are for where torch is present.
"""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

from . import _lamella
from ._dtypes import as_numpy, dtype_name
from ._lamella import (
    CatalogueError,
    CodecError,
    CompressError,
    EvaluateError,
    ExpandError,
    FileError,
    IoError,
    LamellaError,
    OpenError,
    RecipeError,
    SourceError,
    __version__,
)
from ._progress import Progress, watch

if typing.TYPE_CHECKING:
    import numpy

Path = str | os.PathLike[str]
Report = dict[str, typing.Any]

__all__ = [
    "CatalogueError",
    "Codec",
    "CodecError",
    "CompressError",
    "Encoded",
    "EvaluateError",
    "ExpandError",
    "File",
    "FileError",
    "IoError",
    "LamellaError",
    "OpenError",
    "RecipeError",
    "SourceError",
    "__version__",
    "compress",
    "cut",
    "evaluate",
    "expand",
    "load_file",
    "open",
    "plan",
    "recipes",
    "reproduce",
    "systems",
    "verify",
]


def _options(
    size: str | int | None,
    bits: float | None,
    recipe: str,
    keep: Sequence[str],
    rules: Mapping[str, str],
    calibrate: Path | None,
    statistics: Path | None,
    tokens: int,
    sequential: bool,
    allocate: str,
    tune_steps: int | None,
) -> dict[str, typing.Any]:
    if allocate not in ("measured", "uniform"):
        raise LamellaError(f"`allocate` is {allocate!r}; it takes 'measured' or 'uniform'")
    return {
        "size": None if size is None else str(size),
        "bits": bits,
        "recipe": recipe,
        "keep": [keep] if isinstance(keep, str) else list(keep),
        "rules": list(rules.items()),
        "calibrate": None if calibrate is None else os.fspath(calibrate),
        "statistics": None if statistics is None else os.fspath(statistics),
        "tokens": tokens,
        "sequential": sequential,
        "is_measured": allocate == "measured",
        "tune_steps": tune_steps,
    }


def compress(
    model: Path,
    output: Path,
    *,
    size: str | int | None = None,
    bits: float | None = None,
    recipe: str = "house",
    keep: Sequence[str] = (),
    rules: Mapping[str, str] | None = None,
    calibrate: Path | None = None,
    statistics: Path | None = None,
    tokens: int = 32_768,
    sequential: bool = False,
    allocate: str = "measured",
    tune_steps: int | None = None,
    lossless: bool = False,
    base: Path | None = None,
    overwrite: bool = False,
    progress: Progress = None,
) -> Report:
    """Compress a model directory, a weight file, or ``org/name`` of the hub into one ``.lam`` file.

    Args:
        model: what to compress.
        output: the file to write; it appears once it is whole.
        size: bytes of the whole file: ``160_000``, ``"60MB"``, ``"4GiB"``, ``"40%"`` of the weight files.
        bits: bits per weight instead: all bytes but copied side files, over all weights.
        recipe: recipe of every weight matrix, see :func:`recipes`.
        keep: globs over whole array names that stay exact.
        rules: recipes for some arrays, ``{glob: recipe}``; the last match wins.
        calibrate: text to take statistics of; default: the model's ``calibration.txt``, else a built-in one.
        statistics: saved statistics: read where the file exists, else written.
        tokens: calibration tokens at most.
        sequential: take each block's statistics behind the already quantised blocks before it.
        allocate: ``"measured"`` (each array's effect on the output decides its bits) or ``"uniform"``.
        tune_steps: then tune norms and biases for so many steps.
        lossless: keep every bit: :func:`expand` gives byte-identical files back.
        base: with ``lossless``, store the difference to this model.
        overwrite: replace an existing output.
        progress: ``None`` draws a bar where standard error is a terminal, ``True`` always, ``False`` never; a
            callable hears ``(stage, done, total, current)``, and what it raises ends the job.

    Returns:
        The report of ``lamella compress --json``: ``bytes``, ``bits_per_weight``, ``arrays``, ...

    Raises:
        CompressError: a size that cannot be met, a glob that matches nothing, ...
    """
    output = os.fspath(output)
    if os.path.exists(output) and not overwrite:
        raise LamellaError(f"`{output}` exists; `overwrite=True` replaces it once the new file is whole")
    with watch(progress) as callback:
        if lossless:
            if size is not None or bits is not None:
                raise LamellaError("`lossless` keeps every bit: it takes neither `size` nor `bits`")
            base = None if base is None else os.fspath(base)
            text = _lamella.compress_lossless(os.fspath(model), output, base, callback)
        else:
            if base is not None:
                raise LamellaError("`base` goes with `lossless=True`")
            options = _options(
                size, bits, recipe, keep, rules or {}, calibrate, statistics, tokens, sequential, allocate, tune_steps
            )
            text = _lamella.compress(os.fspath(model), output, options, callback)
    return json.loads(text)


def plan(
    model: Path,
    *,
    size: str | int | None = None,
    bits: float | None = None,
    recipe: str = "house",
    keep: Sequence[str] = (),
    rules: Mapping[str, str] | None = None,
    calibrate: Path | None = None,
    statistics: Path | None = None,
    tokens: int = 32_768,
    sequential: bool = False,
    allocate: str = "measured",
    progress: Progress = None,
) -> Report:
    """What :func:`compress` with the same arguments would do: each array's recipe, bytes and predicted loss.

    Statistics are taken and sizes estimated from samples of rows; nothing is written.
    """
    options = _options(
        size, bits, recipe, keep, rules or {}, calibrate, statistics, tokens, sequential, allocate, None
    )
    with watch(progress) as callback:
        return json.loads(_lamella.plan(os.fspath(model), options, callback))


def expand(path: Path, directory: Path, *, base: Path | None = None, progress: Progress = None) -> dict[str, int]:
    """Decode a ``.lam`` file into a plain model directory: source dtypes, shards and side files.

    Args:
        path: the file.
        directory: the directory to write; it must not exist, or be empty.
        base: the model that a ``lossless`` file with ``base`` is the difference to.

    Returns:
        Bytes of each file written.
    """
    base = None if base is None else os.fspath(base)
    with watch(progress) as callback:
        return dict(_lamella.expand(os.fspath(path), os.fspath(directory), base, callback))


def cut(path: Path, output: Path, size: str | int) -> Report:
    """Cut a progressive file to a smaller size, keeping whole layers; refuses a file with nothing to cut."""
    return json.loads(_lamella.cut(os.fspath(path), os.fspath(output), str(size)))


def verify(path: Path) -> int:
    """Check every byte of a file against its checksums; returns the file's bytes.

    Raises:
        FileError: it is damaged; the message names the layer.
    """
    return _lamella.verify(os.fspath(path))


def evaluate(
    model: Path,
    against: Path | None = None,
    *,
    text: Path | None = None,
    tokens: int | None = None,
    noise_floor: bool = True,
    progress: Progress = None,
) -> Report:
    """Judge a model (``.lam`` file or original): perplexity, KL divergence to ``against`` in nats per token, size.

    Args:
        model: the model to judge.
        against: the original.
        text: the text to judge on; default: ``evaluation.txt`` beside the original or the model.
        tokens: tokens of the text used at most.
        noise_floor: also measure the original against itself in another numeric order.
    """
    against = None if against is None else os.fspath(against)
    text = None if text is None else os.fspath(text)
    with watch(progress) as callback:
        report = _lamella.evaluate(os.fspath(model), against, text, tokens, noise_floor, callback)
    return json.loads(report)


class File(Mapping[str, "numpy.ndarray"]):
    """An open ``.lam`` file: a read-only mapping from array names to NumPy arrays.

    Opening reads the manifest only; an array is decoded when it is asked for, by all cores, into memory that is
    handed to NumPy without a copy (and that ``torch.from_dlpack`` takes over). ``bfloat16`` and the 8-bit floats,
    which NumPy does not have, come as ``ml_dtypes`` types where that package is present, else widened exactly to
    ``float32``.
    """

    def __init__(self, path: Path) -> None:
        self._file: _lamella.File | None = _lamella.File(os.fspath(path))
        self._names = [name for name, _, _ in self._file.arrays()]

    @property
    def _open(self) -> _lamella.File:
        if self._file is None:
            raise ValueError("the file is closed")
        return self._file

    def __getitem__(self, name: str) -> numpy.ndarray:
        _, shape, dtype = self._open.spec(name)
        return as_numpy(self._open.decode(name), shape, dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._names

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; arrays already decoded stay valid."""
        self._file = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Extents of an array, slowest axis first; nothing is decoded."""
        return tuple(self._open.spec(name)[1])

    def stored_dtype(self, name: str) -> str:
        """The source's element type by its safetensors name, ``"BF16"`` for instance."""
        return self._open.spec(name)[2]

    def raw(self, name: str) -> numpy.ndarray:
        """The decoded little-endian bytes of an array in the source's own dtype, as ``uint8``."""
        return self._open.decode(name)

    def recipe(self, name: str) -> str:
        """The recipe an array is coded by."""
        return self._open.recipe(name)

    def side_files(self) -> dict[str, bytes]:
        """The files beside the weights: configuration, tokenizer, ..."""
        return dict(self._open.side_files())

    @property
    def length_bytes(self) -> int:
        """Bytes of the file."""
        return self._open.summary()[0]

    @property
    def budget(self) -> str:
        """The budget the file was made for, as the user wrote it."""
        return self._open.summary()[2]


def open(path: Path) -> File:  # noqa: A001 (``lamella.open`` reads as ``wave.open`` and ``gzip.open`` do)
    """Open a ``.lam`` file, or a valid prefix of one."""
    return File(path)


def load_file(path: Path) -> dict[str, numpy.ndarray]:
    """Every array of a ``.lam`` file, as ``safetensors.numpy.load_file`` returns them."""
    with File(path) as file:
        return dict(file)


class Encoded(typing.NamedTuple):
    """What a codec wrote for one array; any prefix of at least one layer decodes."""

    layers: list[bytes]
    """Payloads in the order a decoder applies them."""
    shape: tuple[int, ...]
    """Extents of the array."""
    dtype: str
    """Safetensors name of the element type."""
    distortions: list[float]
    """Distortion once each layer is applied: Hessian-weighted squared error where the second moment is known, else
    squared error."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(map(len, self.layers))


class Codec:
    """One codec on single arrays.

    >>> import numpy
    >>> codec = lamella.Codec("rtn(bits=4, group_size=32)")
    >>> weight = numpy.random.default_rng(0).standard_normal((64, 128)).astype("float32")
    >>> encoded = codec.encode(weight)
    >>> decoded = codec.decode(encoded)
    >>> decoded.shape, bool(abs(decoded - weight).max() < 0.5), encoded.size_bytes < weight.nbytes / 6
    ((64, 128), True, True)
    """

    def __init__(self, recipe: str) -> None:
        self._codec = _lamella.Codec(recipe)

    def __repr__(self) -> str:
        return f"Codec({self.recipe!r})"

    @property
    def recipe(self) -> str:
        """The recipe with every argument that a decoder needs."""
        return self._codec.recipe()

    @property
    def has_free_rate(self) -> bool:
        """Whether ``step`` chooses the rate."""
        return self._codec.has_free_rate()

    def encode(
        self,
        array: numpy.ndarray,
        *,
        second_moment: numpy.ndarray | None = None,
        step: float | None = None,
        name: str = "array",
    ) -> Encoded:
        """Encode an array.

        Args:
            array: a weight is ``[out_features, in_features]``.
            second_moment: mean of ``x x^T`` over the inputs ``x`` it multiplies, ``[in_features, in_features]``.
            step: rate of a free-rate codec (``house``): larger is smaller and worse; default: the recipe's own bits.
            name: what errors call it.
        """
        import numpy

        array = numpy.ascontiguousarray(array)
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        moment = None
        if second_moment is not None:
            moment = numpy.ascontiguousarray(second_moment, dtype=numpy.float32)
            if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or moment.shape[0] != array.shape[-1]:
                raise LamellaError(
                    f"`second_moment` has shape {moment.shape}; an array of shape {array.shape} takes "
                    f"{(array.shape[-1],) * 2}"
                )
            moment = moment.reshape(-1)
        shape, dtype = list(array.shape), dtype_name(array.dtype)
        content = array.reshape(-1).view(numpy.uint8)
        layers, _ = self._codec.encode(name, shape, dtype, content, moment, step)
        payloads, distortions = [payload for payload, _ in layers], [distortion for _, distortion in layers]
        return Encoded(payloads, tuple(shape), dtype, distortions)

    def decode(self, encoded: Encoded, *, n_layers: int | None = None) -> numpy.ndarray:
        """Decode an array, from its first ``n_layers`` layers where given."""
        layers = encoded.layers[:n_layers]
        content = self._codec.decode("array", list(encoded.shape), encoded.dtype, layers)
        return as_numpy(content, encoded.shape, encoded.dtype)


def systems() -> list[Report]:
    """The catalogue of published systems: id, name, wing, what it compresses, recipe, claim, whether it is built.

    >>> len(lamella.systems())
    169
    """
    return json.loads(_lamella.systems())


def recipes() -> list[Report]:
    """The codecs that recipes can name, each with its arguments: name, default, meaning."""
    return json.loads(_lamella.recipes())


def reproduce(
    system: str,
    *,
    full: bool = False,
    data: Path | None = None,
    assets: Path = "assets",
    progress: Progress = None,
) -> Report:
    """Measure a system's claim against its named baseline, in this run: ``measured``, ``baseline``, ``holds``.

    Args:
        system: its id, ``"S029"``.
        full: minutes instead of seconds.
        data: directory of test data.
        assets: the project's ``assets`` directory.
    """
    data = os.environ.get("LAMELLA_DATA") if data is None else os.fspath(data)
    with watch(progress) as callback:
        return json.loads(_lamella.reproduce(system, full, data, os.fspath(assets), callback))
