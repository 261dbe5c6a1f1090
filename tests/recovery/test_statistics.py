"""Means and variances that are put together from batches."""

import pytest
import torch

from prunus.recovery.statistics import Statistics


@pytest.mark.parametrize("shape", [(8, 3, 5, 7), (50, 3), (9, 3, 4)])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_batches_together_give_what_all_at_once_gives(shape: tuple[int, ...], mean: float) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(shape) + mean + i for i in range(4)]
    parts = Statistics(), Statistics()
    for i, x in enumerate(batches):
        parts[i % 2].add(x)
    parts[0].merge(parts[1])
    parts[0].merge(Statistics())
    parts[0].add(torch.empty(0, *shape[1:]))
    every = torch.cat(batches).double().transpose(0, 1).flatten(1)
    old = (torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    found_mean, found_variance = parts[0].settled(old)
    torch.testing.assert_close(found_mean, every.mean(1), rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(found_variance, every.var(1), rtol=1e-5, atol=0)
    assert parts[0].n == every.shape[1]
    assert parts[0].spread() == pytest.approx(float(every.var(1).sum()) * (every.shape[1] - 1), rel=1e-5)


def test_half_precision_is_not_summed_in_half_precision() -> None:
    x = torch.full((16, 2, 64, 64), 100.0, dtype=torch.float16)
    x[:8] = 104.0
    found = Statistics()
    found.add(x)
    mean, variance = found.settled((torch.zeros(2), torch.ones(2)))
    torch.testing.assert_close(mean, torch.full((2,), 102.0))
    torch.testing.assert_close(variance, torch.full((2,), 4.0), rtol=1e-4, atol=0)
