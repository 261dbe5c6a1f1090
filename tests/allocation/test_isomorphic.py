"""Groups of equal topology share a ranking; others do not."""

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.allocation.isomorphic import operators_by_placeholder, topology
from prunus.criteria import L2Norm, Views


class Blocks(nn.Module):
    """Three equal blocks of linear layers, and a convolution before them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 3)
        self.up = nn.ModuleList(nn.Linear(20, width) for width in (30, 40, 50))
        self.down = nn.ModuleList(nn.Linear(width, 20) for width in (30, 40, 50))
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.head(x)


@pytest.fixture(scope="module")
def blocks() -> prunus.Structure:
    torch.manual_seed(0)
    model = Blocks().eval()
    with torch.no_grad():
        model.up[1].weight.mul_(1.05)  # pyright: ignore[reportCallIssue, reportArgumentType, reportAttributeAccessIssue]
    return prunus.analyze(model, torch.randn(2, 3, 5, 5))


def test_topology_knows_operators_and_sides_but_no_sizes(blocks: prunus.Structure) -> None:
    users = operators_by_placeholder(blocks)
    found = {g.name: topology(blocks, g, users) for g in blocks.prunable}
    hidden = [found[f"up.{i}"] for i in range(3)]
    assert len(found) == 4 and len(set(hidden)) == 1 and len(set(found.values())) == 2


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_pools_are_ranked_apart_and_lose_the_same_share(blocks: prunus.Structure, fraction: float) -> None:
    options = prunus.Options(layer_norm="none")
    made = prunus.plan(
        blocks, target=prunus.Target(channels=fraction), allocation="isomorphic", options=options, floors=0.0
    )
    views, gone = Views(blocks), {}
    for pool in (["up.0", "up.1", "up.2"], [g.name for g in blocks.prunable if "up" not in g.name]):
        ranked = sorted(
            (float(s), n, u) for n in pool for u, s in enumerate(L2Norm().score(views.group(blocks.group(n))))
        )
        for _, name, unit in ranked[: round((1 - fraction) * len(ranked))]:
            gone.setdefault(name, set()).add(unit)
    for group in blocks.prunable:
        lost = set(range(group.size)) - set(made.keep.get(group.name, range(group.size)))
        assert lost == gone.get(group.name, set()), group.name


def test_a_pool_of_large_scores_is_not_spared(blocks: prunus.Structure) -> None:
    """What a global ranking of raw scores does, and this must not."""

    def scores(group: prunus.GroupView) -> Tensor:
        return torch.rand(group.size, generator=torch.Generator().manual_seed(1)) + (
            100 if group.name.startswith("up") else 0
        )

    options = prunus.Options(layer_norm="none")
    kept = {
        name: len(
            prunus.plan(
                blocks, method=scores, ratio=0.1, allocation=name, options=options, floors=0.0
            ).keep.get("add", range(20))
        )
        for name in ("global", "isomorphic")
    }
    assert kept["global"] < kept["isomorphic"] == 18
