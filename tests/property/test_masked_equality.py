"""Random networks, random legal plans: the small network computes what the masked original does."""

import pytest

from tests.property.chain import prune
from tests.property.choices import Seeded
from tests.property.networks import build


@pytest.mark.parametrize("seed", range(24))
def test_pruned_equals_masked(seed: int) -> None:
    pick = Seeded(seed)
    assert prune(build(pick), pick).verification.max_relative_error <= 1e-9
