"""Codecs on single arrays, and the types that NumPy does not have."""

import lamella
import numpy
import pytest
from lamella import _dtypes


@pytest.mark.parametrize("recipe", ["exact", "rtn(bits=4)", "gptq(bits=3, group_size=32)", "house(bits=3)"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_every_recipe_gives_an_array_of_the_same_kind_back(recipe, dtype):
    generator = numpy.random.default_rng(1)
    weight = generator.standard_normal((48, 64)).astype(dtype)
    inputs = generator.standard_normal((256, 64))
    codec = lamella.Codec(recipe)
    encoded = codec.encode(weight, second_moment=inputs.T @ inputs / 256)
    decoded = codec.decode(encoded)
    assert decoded.dtype == weight.dtype and decoded.shape == weight.shape
    error = float(numpy.mean((decoded.astype("f8") - weight) ** 2))
    assert error == 0 if recipe == "exact" else 0 < error < 0.1
    assert encoded.distortions[-1] >= 0
    assert encoded == codec.encode(weight, second_moment=inputs.T @ inputs / 256), "same input, same bytes"


def test_a_step_sets_the_rate_of_the_house_recipe():
    weight = numpy.random.default_rng(2).standard_normal((64, 64)).astype("float32")
    codec = lamella.Codec("house")
    assert codec.has_free_rate and not lamella.Codec("rtn(4)").has_free_rate
    sizes = [codec.encode(weight, step=step).size_bytes for step in (0.1, 0.3, 1.0)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[-1]


def test_integers_and_odd_layouts_are_exact():
    codec = lamella.Codec("exact")
    for array in (
        numpy.arange(60, dtype="int64").reshape(3, 4, 5),
        numpy.arange(24, dtype=">i4").reshape(4, 6).T,
        numpy.array([True, False, True]),
        numpy.zeros((0, 4), dtype="float32"),
    ):
        decoded = codec.decode(codec.encode(array))
        assert decoded.dtype == array.dtype.newbyteorder("=") and numpy.array_equal(decoded, array)


def test_bad_arrays_are_refused_by_name():
    codec = lamella.Codec("rtn(bits=4)")
    weight = numpy.ones((8, 32), dtype="float32")
    weight[3, 5] = numpy.nan
    with pytest.raises(lamella.CodecError, match=r"`w` holds values that are not finite.*3, 5"):
        codec.encode(weight, name="w")
    with pytest.raises(lamella.LamellaError, match="complex"):
        codec.encode(numpy.ones((4, 4), dtype="complex64"))
    with pytest.raises(lamella.LamellaError, match="second_moment"):
        codec.encode(numpy.ones((8, 32), dtype="float32"), second_moment=numpy.eye(8))
    with pytest.raises(lamella.CatalogueError, match="known are"):
        lamella.Codec("nothing")
    encoded = codec.encode(numpy.ones((8, 32), dtype="float32"))
    with pytest.raises(lamella.CodecError):
        codec.decode(encoded._replace(layers=[encoded.layers[0][:-3]]))
    with pytest.raises(lamella.CodecError):
        codec.decode(encoded._replace(shape=(1 << 20, 1 << 20)))


def test_floats_that_numpy_lacks_are_widened_exactly(monkeypatch):
    monkeypatch.setattr(_dtypes, "_ml_dtype", lambda name: None)
    bf16 = numpy.array([0x3F80, 0xC000, 0x7F80, 0x0001], dtype="<u2")
    wide = _dtypes.as_numpy(bf16.view("u1"), (2, 2), "BF16")
    assert wide.dtype == numpy.float32 and wide.tolist() == [[1.0, -2.0], [numpy.inf, 2.0**-133]]
    e4m3 = _dtypes.as_numpy(numpy.array([0x38, 0x7E, 0x01, 0xFF], dtype="u1"), (4,), "F8_E4M3")
    assert e4m3[:3].tolist() == [1.0, 448.0, 2.0**-9] and numpy.isnan(e4m3[3])
    e5m2 = _dtypes.as_numpy(numpy.array([0x3C, 0x7B, 0xFC, 0x01], dtype="u1"), (4,), "F8_E5M2")
    assert e5m2.tolist() == [1.0, 57344.0, -numpy.inf, 2.0**-16]
