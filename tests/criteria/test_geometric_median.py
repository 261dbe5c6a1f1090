"""Distances are compared with loops over pairs of filters, also in coupled groups and in the mix with a norm."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.criteria import GeometricMedian, GroupView, MemberView, Views
from prunus.errors import ConfigError
from tests.allocation.nets import Residual, layers, network


def view(*weights: Tensor, produces: bool = True) -> GroupView:
    members = tuple(MemberView(f"w{i}", 0, produces, w) for i, w in enumerate(weights))
    return GroupView("g", len(weights[0]), members)


def by_pairs(weight: Tensor, among: list[int] | None = None) -> dict[int, float]:
    """Unit -> sum of distances to the others, by a loop over single weights."""
    among = list(range(len(weight))) if among is None else among
    sums = dict.fromkeys(among, 0.0)
    for u, v in product(among, among):
        pairs = zip(weight[u].flatten().tolist(), weight[v].flatten().tolist(), strict=True)
        sums[u] += math.sqrt(sum((a - b) ** 2 for a, b in pairs))
    return sums


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (9, 4), (40, 27)])
def test_scores_are_those_of_a_loop_over_pairs(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape) + 5
    assert GeometricMedian().score(view(weight)).tolist() == pytest.approx(list(by_pairs(weight).values()))


def test_coupled_layers_add_up_and_readers_do_not_count() -> None:
    first, second, reader = torch.randn(7, 5), torch.randn(7, 3), torch.randn(7, 11)
    group = view(first, second)
    group = GroupView("g", 7, (*group.members, MemberView("reader", 1, False, reader)))
    expected = [a + b for a, b in zip(by_pairs(first).values(), by_pairs(second).values(), strict=True)]
    assert GeometricMedian().score(group).tolist() == pytest.approx(expected)


def test_where_no_layer_makes_the_units_all_count() -> None:
    weight = torch.randn(4, 3)
    expected = list(by_pairs(weight).values())
    assert GeometricMedian().score(view(weight, produces=False)).tolist() == pytest.approx(expected)


def test_near_duplicates_keep_their_small_distance() -> None:
    weight = torch.randn(30, 50).mul(1e-4) + 100  # the square of a distance is 1e-12 of the square of a norm
    assert GeometricMedian().score(view(weight)).tolist() == pytest.approx(
        list(by_pairs(weight).values()), rel=1e-3
    )


def test_large_layers_are_as_exact() -> None:
    """Of two thirds of the rows, one of them a near duplicate, one a duplicate."""
    rows = torch.randn(900, 600)
    rows[5] = rows[6] + 1e-5 * torch.randn(600)
    rows[8] = rows[7]
    plain = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    found = GeometricMedian().score(view(rows))
    assert found.tolist() == pytest.approx(plain.sum(1).tolist(), rel=1e-6)
    alike = rows[:1].repeat(900, 1) + 1e-6 * rows
    plain = torch.cdist(alike.double(), alike.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert GeometricMedian().score(view(alike)).tolist() == pytest.approx(plain.sum(1).tolist(), rel=1e-5)


def test_the_whole_layer_may_move() -> None:
    weight = torch.randn(8, 6, dtype=torch.float64)
    moved = GeometricMedian().score(view(weight + torch.randn(6, dtype=torch.float64)))
    torch.testing.assert_close(moved, GeometricMedian().score(view(weight)))


@pytest.mark.parametrize(("share", "first"), [(0.25, 2), (0.5, 4), (0.05, 0), (0.95, 7)])
def test_the_mix_ranks_by_norm_first_and_measures_among_the_rest(share: float, first: int) -> None:
    weight = torch.randn(8, 6) * torch.linspace(1, 2, 8)[torch.randperm(8)][:, None]
    norms = {u: math.sqrt(sum(x * x for x in weight[u].tolist())) for u in range(8)}
    weak = sorted(norms, key=lambda u: norms[u])[:first]
    among = [u for u in range(8) if u not in weak]
    scores = GeometricMedian(norm_share=share).score(view(weight)).tolist()
    expected = by_pairs(weight, among)
    above = min(norms[u] for u in among) if weak else 0.0
    assert {u: scores[u] for u in among} == pytest.approx({u: above + expected[u] for u in among}, rel=1e-5)
    assert sorted(range(8), key=lambda u: scores[u])[:first] == weak


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan"), True, "half", None])
def test_what_is_no_share(share: Any) -> None:
    with pytest.raises(ConfigError, match="norm_share must be a fraction from 0 to below 1"):
        GeometricMedian(norm_share=share)


def test_a_residual_width_is_scored_with_its_norms_folded_in() -> None:
    model, x = network("residual")
    assert isinstance(model, Residual)
    structure = prunus.analyze(model, x)
    scores = GeometricMedian().score(Views(structure).group(structure.group("add")))

    def gained(kernel: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        assert norm.running_var is not None
        return kernel * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]

    with torch.no_grad():
        made = gained(model.stem.weight, model.bn), gained(model.conv2.weight, model.bn2)
    expected = [a + b for a, b in zip(*(by_pairs(w).values() for w in made), strict=True)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_filter_in_the_middle_goes_first() -> None:
    model, x = layers(4, 10, 2).eval(), torch.randn(3, 4)
    with torch.no_grad():
        weight = model.get_parameter("0.weight")
        weight[7] = torch.cat([weight[:7], weight[8:]]).mean(0) * 1.001
    made = prunus.plan(
        prunus.analyze(model, x), method="geometric_median", target=prunus.Target(channels=0.9)
    )
    assert made.keep == {"0": (0, 1, 2, 3, 4, 5, 6, 8, 9)} and made.method == "geometric_median"
