"""Where torch and transformers are present."""

import lamella
import numpy
import pytest

torch = pytest.importorskip("torch")


def test_tensors_share_the_decoded_memory(coded):
    from lamella.torch import load_file

    arrays, tensors = lamella.load_file(coded), load_file(coded)
    assert set(arrays) == set(tensors)
    for name, array in arrays.items():
        assert numpy.array_equal(tensors[name].numpy(), array), name


def test_transformers_gives_the_logits_of_the_expanded_model(coded, tmp_path):
    transformers = pytest.importorskip("transformers")
    from lamella.transformers import from_pretrained

    lamella.expand(coded, tmp_path / "story", progress=False)
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "story", dtype=torch.float32).eval()
    model = from_pretrained(coded)
    tokens = torch.arange(1, 33)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected(tokens).logits)
