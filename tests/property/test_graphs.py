"""Random graphs through the whole of prunus: right numbers, also at other sizes and after a step of training.

    pytest -m slow tests/property/test_graphs.py

`benchmarks/graphs.py` runs ten thousand of them.
"""

import pytest

import prunus
from prunus.structure.rules.registry import RULES, overloads
from tests.property.graphs.check import check, check_network, quiet
from tests.property.graphs.draw import drawn
from tests.property.graphs.shrink import shrunk
from tests.property.graphs.sketch import Given, Network, finished

SHARDS, EACH = 10, 100


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_graphs_compute_what_they_should(shard: int) -> None:
    with quiet():
        found = [check(seed) for seed in range(shard * EACH, (shard + 1) * EACH)]
    for count in (
        "plans",
        "exact",
        "sizes",
        "trained",
        "own_class",
    ):  # each question was asked often enough to mean something
        assert sum(getattr(one, count) for one in found) >= EACH / 5, count


def test_a_few_random_graphs() -> None:
    with quiet():
        found = [check(seed) for seed in range(100_000, 100_012)]
    assert sum(one.plans for one in found) >= 10


def test_a_seed_is_a_network() -> None:
    one, two = (str(finished(drawn(7))) for _ in range(2))
    assert one == two
    assert one != str(finished(drawn(8)))


FLIPPED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.m0, self.m1 = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x0):
        return self.m1(self.m0(x0).flip(1))
"""


def test_a_rule_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reversed channels that are taken for channels in order."""
    network = Network(
        FLIPPED, (Given("x0", "torch.randn({N}, 5, generator=g)"),), exact=True, held=frozenset()
    )
    with quiet():
        assert check_network(network, 1).exact
        for op in overloads("flip"):
            monkeypatch.setitem(RULES, op, lambda run, node, a: a.self)
        with pytest.raises((AssertionError, prunus.PrunusError)):
            check_network(network, 1)


def test_a_failing_network_is_made_smaller() -> None:
    sketch = drawn(3)
    layer = next(iter(sketch.parts.values()))
    small = shrunk(sketch, lambda network: layer in network.source)
    assert layer in small.source
    assert len(small.source) < len(finished(sketch).source)
    small.model()(*small.inputs())
