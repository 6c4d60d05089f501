"""``.lam`` files as models of the ``transformers`` library."""

from __future__ import annotations

import pathlib
import tempfile
import typing

import transformers

from . import File, Path
from .torch import tensor


def from_pretrained(path: Path, model_class: typing.Any | None = None, **config: typing.Any) -> typing.Any:
    """The model in a ``.lam`` file, decoded into torch tensors.

    Args:
        path: the file.
        model_class: the class to build; default: the one that the file's ``config.json`` names first.
        config: fields of the configuration to change.
    """
    with File(path) as file:
        configuration = _from_side_files(file, transformers.AutoConfig, **config)
        if model_class is None:
            names = getattr(configuration, "architectures", None) or ["AutoModel"]
            model_class = getattr(transformers, names[0])
        state = {name: tensor(file, name) for name in file}
        # The constructor of an Auto class is its `from_config`; both make the same random weights, replaced below.
        build = getattr(model_class, "from_config", model_class)
        model = build(configuration)
        missing, unexpected = model.load_state_dict(state, strict=False)
        prefix = getattr(model, "base_model_prefix", "")
        if unexpected and prefix:
            # A checkpoint of the bare model, or of the model with a head, where the other is asked for.
            stripped = {name.removeprefix(prefix + "."): value for name, value in state.items()}
            missing, unexpected = model.load_state_dict(stripped, strict=False)
        model.tie_weights()
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
        missing = [name for name in missing if name not in tied and not name.endswith("position_ids")]
        if missing:
            raise ValueError(f"`{path}` lacks weights that {type(model).__name__} needs: {', '.join(missing[:8])}")
        return model.eval()


def tokenizer(path: Path) -> typing.Any:
    """The tokenizer in a ``.lam`` file."""
    with File(path) as file:
        return _from_side_files(file, transformers.AutoTokenizer)


def _from_side_files(file: File, kind: typing.Any, **arguments: typing.Any) -> typing.Any:
    """What the library reads from a directory, read from the files that travel inside."""
    with tempfile.TemporaryDirectory() as directory:
        for name, content in file.side_files().items():
            target = pathlib.Path(directory, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return kind.from_pretrained(directory, **arguments)
