"""``.lam`` files as torch tensors."""

from __future__ import annotations

import torch

from . import File, Path

_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def tensor(file: File, name: str) -> torch.Tensor:
    """One array in the source's own dtype, over the decoded memory itself (DLPack, no copy)."""
    content = torch.from_dlpack(file.raw(name))
    return content.view(_TORCH[file.stored_dtype(name)]).reshape(file.shape(name))


def load_file(path: Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Every array of a ``.lam`` file, as ``safetensors.torch.load_file`` returns them."""
    with File(path) as file:
        return {name: tensor(file, name).to(device) for name in file}
