"""Random networks, random legal plans: the small network computes what the masked original does."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunus.surgery.precision import OnePrecision
from tests.property import zeroed
from tests.property.chain import prune
from tests.property.choices import Drawn, Seeded
from tests.property.networks import build

OPTIONS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=15, **OPTIONS)
@given(st.data())
def test_pruned_equals_masked(data: st.DataObject) -> None:
    pick = Drawn(data.draw)
    assert prune(build(pick), pick).verification.max_relative_error <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(4))
def test_pruned_equals_masked_in_more_cases(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        pick = Seeded(seed)
        assert prune(build(pick), pick).verification.max_relative_error <= 1e-9, f"seed {seed}"


@pytest.mark.parametrize(
    "seeds", [range(1000, 1020), pytest.param(range(1020, 1160), marks=pytest.mark.slow)]
)
def test_pruned_equals_original_with_zeros_where_only_weights_mix_channels(seeds: range) -> None:
    compared = 0
    for seed in seeds:
        pick = Seeded(seed)
        network = build(pick)
        pruned = prune(network, pick)
        if zeroed.mixes(pruned.captured):
            continue
        expected = zeroed.outputs(pruned.structure, pruned.keep, network.inputs)
        inputs = tuple(x.double() if x.is_floating_point() else x for x in network.inputs)
        # states that a forward makes for itself are of single precision in the graph
        with torch.no_grad(), OnePrecision(torch.float64):
            error = (pruned.module.double()(*inputs) - expected).abs().max() / expected.abs().max()
        assert error <= 1e-9, f"seed {seed}"
        compared += 1
    assert compared >= len(seeds) / 6
