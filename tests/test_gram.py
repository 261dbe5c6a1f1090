"""Products of rows, in blocks or at once."""

import pytest
import torch

from prunus.gram import gram


@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (767, 20), (768, 20), (1000, 3), (2, 900, 11)])
@pytest.mark.parametrize("transposed", [False, True])
def test_all_products_are_there(shape: tuple[int, ...], transposed: bool) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.mT.contiguous().mT if transposed else x
    found = gram(x)
    assert torch.allclose(found, x @ x.mT, atol=1e-12)
    if (
        shape[-2] >= 768
    ):  # one half is a copy, not computed twice; blocks on the diagonal are as the library gives them
        assert torch.equal(found[..., 384:, :384], found[..., :384, 384:].mT)


def test_nothing_of_the_input_changes() -> None:
    x = torch.randn(800, 4)
    before = x.clone()
    gram(x)
    assert torch.equal(x, before)
