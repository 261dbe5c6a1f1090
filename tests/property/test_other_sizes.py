"""Random networks at other sizes than the example's: what comes back computes what the masked original does, or refuses."""

import pytest
import torch

import prunus
from prunus.surgery.other_sizes import other_sizes
from prunus.surgery.precision import OnePrecision
from tests.property import zeroed
from tests.property.chain import prune
from tests.property.choices import Seeded
from tests.property.networks import build


def compared_elsewhere(seed: int) -> int:
    """Number of inputs of other sizes on which a random network was compared with its original with zeros."""
    pick = Seeded(seed)
    network = build(pick)
    pruned = prune(network, pick, prunus.analyze(network.model, network.inputs))
    if zeroed.mixes(pruned.captured):
        return 0
    compared = 0
    for inputs in other_sizes(pruned.captured, pruned.captured.run_inputs):
        try:
            expected = zeroed.outputs(pruned.structure, pruned.keep, inputs.args)
        except (RuntimeError, ValueError):
            continue  # the original does not take these sizes
        doubles = tuple(x.double() if x.is_floating_point() else x for x in inputs.args)
        with torch.no_grad(), OnePrecision(torch.float64):
            try:
                got = pruned.module.double()(*doubles)
            except prunus.InputError:
                continue
        assert (got - expected).abs().max() / expected.abs().max() <= 1e-9, f"seed {seed}: {doubles[0].shape}"
        compared += 1
    return compared


def test_pruned_equals_original_with_zeros_at_other_sizes() -> None:
    assert sum(compared_elsewhere(seed) for seed in (3000, 3003, 3008, 3009)) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(2))
def test_pruned_equals_original_with_zeros_at_other_sizes_in_more_cases(hundred: int) -> None:
    assert sum(compared_elsewhere(seed) for seed in range(4000 + 100 * hundred, 4100 + 100 * hundred)) >= 50
