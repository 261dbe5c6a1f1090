"""Random networks, random legal plans: the small network computes what the masked original does."""

import pytest

from prunus.errors import PrunusError
from prunus.structure import labels
from tests.property.chain import prune
from tests.property.choices import Seeded
from tests.property.networks import build


@pytest.mark.parametrize("seed", range(24))
def test_pruned_equals_masked(seed: int) -> None:
    pick = Seeded(seed)
    assert prune(build(pick), pick).verification.max_relative_error <= 1e-9


def test_a_broken_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where values meet nothing is related any more: some of these networks must come out wrong, or not at all."""
    monkeypatch.setattr(labels.Labels, "unite", lambda self, a, b, node: None)
    caught = 0
    for seed in range(6):
        pick = Seeded(seed)
        try:
            prune(build(pick), pick)
        except PrunusError:
            caught += 1
    assert caught
