"""Element types across the border: safetensors names, NumPy types, and the floats that NumPy does not have."""

from __future__ import annotations

import functools
import typing
from collections.abc import Sequence

if typing.TYPE_CHECKING:
    import numpy

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


def _ml_dtype(name: str) -> typing.Any | None:
    try:
        import ml_dtypes
    except ImportError:
        return None
    return getattr(ml_dtypes, _ML_DTYPES[name], None)


def dtype_name(dtype: numpy.dtype) -> str:
    """The safetensors name of a NumPy (or ``ml_dtypes``) type."""
    name = next((key for key, value in _NUMPY.items() if dtype == value), None)
    if name is None:
        name = next((key for key, value in _ML_DTYPES.items() if value == dtype.name), None)
    if name is None:
        from ._lamella import LamellaError

        raise LamellaError(f"arrays of {dtype} cannot be coded; use floats, integers or bool")
    return name


def as_numpy(content: numpy.ndarray, shape: Sequence[int], name: str) -> numpy.ndarray:
    """An array over decoded bytes: the same memory where NumPy has the type, else widened exactly to ``float32``."""
    code = _NUMPY.get(name)
    if code is not None:
        return content.view(code).reshape(shape)
    dtype = _ml_dtype(name)
    if dtype is not None:
        return content.view(dtype).reshape(shape)
    import numpy

    if name == "BF16":
        wide = content.view("<u2").astype(numpy.uint32)
        wide <<= 16
        return wide.view(numpy.float32).reshape(shape)
    return _float8_values(name)[content].reshape(shape)


@functools.cache
def _float8_values(name: str) -> numpy.ndarray:
    """The 256 values of an 8-bit float."""
    import numpy

    mantissa_bits, bias = (3, 7) if name == "F8_E4M3" else (2, 15)
    codes = numpy.arange(256)
    magnitude = codes & 0x7F
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    normal = numpy.ldexp(1 + fraction, exponent - bias)
    values = numpy.where(exponent == 0, numpy.ldexp(fraction, 1 - bias), normal)
    if name == "F8_E4M3":
        values[magnitude == 0x7F] = numpy.nan
    else:
        values[magnitude == 0x7C] = numpy.inf
        values[magnitude > 0x7C] = numpy.nan
    return numpy.where(codes & 0x80, -values, values).astype(numpy.float32)
