"""Normalizing and combining scores: the figures of a published example, formulas worked by hand, and loops over rows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.allocation import CostModel, find_families
from prunus.criteria import NORMALIZERS, GroupView, L2Norm, Options, score_groups
from prunus.criteria.scoring import over_rows
from prunus.errors import ConfigError, PlanError
from tests.allocation.nets import layers, network

# Scores of the filters of two layers whose outputs are added, of a free layer between, and of the sum itself
X, F, G = [11, 19, 38, 25, 46], [20, 12, 18, 16, 39], [13, 22, 16, 29, 17]
SUM = [25, 22, 64, 43, 58]


class Example(nn.Module):
    """F(G(x)) + x, in which the norms of the filters are those scores."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.g, self.f = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1)
        self.head = nn.Conv2d(5, 2, 1)
        with torch.no_grad():
            for layer, scores in ((self.x, X), (self.g, G), (self.f, F)):
                layer.weight.zero_()
                layer.weight[:, 1, 0, 0] = torch.tensor(scores).float()

    def forward(self, image: Tensor) -> Tensor:
        x = self.x(image)
        return self.head(self.f(self.g(x).relu()) + x)


@pytest.fixture(scope="module")
def example() -> prunus.Structure:
    return prunus.analyze(Example().eval(), torch.randn(2, 3, 4, 4))


def after_the_sum(group: GroupView) -> Tensor:
    """What a criterion that looks at the feature map behind the sum says."""
    return torch.tensor(SUM if group.name == "add" else G)


def removed(structure: prunus.Structure, **arguments: Any) -> dict[str, set[int]]:
    made = prunus.plan(structure, **arguments)
    return {
        g.name: set(range(g.size)) - set(made.keep.get(g.name, range(g.size))) for g in structure.prunable
    }


TSS = {
    "x": (X, [0.0791, 0.1367, 0.2734, 0.1799, 0.3309]),
    "F": (F, [0.1905, 0.1143, 0.1714, 0.1524, 0.3714]),
    "G": (G, [0.1340, 0.2268, 0.1649, 0.2990, 0.1753]),
    "sum": (SUM, [0.1179, 0.1038, 0.3019, 0.2028, 0.2736]),
}


@pytest.mark.parametrize("layer", TSS)
def test_published_scores_normalized_by_their_sum(layer: str) -> None:
    scores, expected = TSS[layer]
    assert NORMALIZERS["tss_norm"](np.array(scores, float)).tolist() == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("average", [0.1348, 0.1255, 0.2224, 0.1661, 0.3512]),
        ("sum", [0.2696, 0.2510, 0.4448, 0.3322, 0.7024]),
    ],
)
def test_published_scores_of_the_coupled_group(
    example: prunus.Structure, policy: str, expected: list[float]
) -> None:
    options = Options(layer_norm="tss_norm", policy=policy)
    scores = score_groups(example, L2Norm(), example.prunable, options)
    assert scores["add"].tolist() == pytest.approx(expected, abs=2e-4)
    assert scores["g"].tolist() == pytest.approx(TSS["G"][1], abs=6e-5)


@pytest.mark.parametrize(
    ("policy", "method", "group", "free"),
    [
        ("average", "l2", {0, 1, 3}, {0, 2}),
        ("sum", "l2", {1}, {0, 1, 2, 4}),
        ("backward", after_the_sum, {0, 1}, {0, 2, 4}),
    ],
)
def test_published_choices(
    example: prunus.Structure, policy: str, method: Any, group: set[int], free: set[int]
) -> None:
    options = Options(layer_norm="tss_norm", policy=policy)
    ranked = removed(example, method=method, ratio=0.5, allocation="global", options=options)
    assert ranked == {"add": group, "g": free}
    alone = removed(example, method=method, ratio={"add": 0.4}, options=options)
    assert alone == {"add": {0, 1}, "g": set()}


# --- normalizing

FORMULAS = {
    "mean": lambda m, i: m[i] / (sum(map(abs, m)) / len(m)),
    "standard_score": lambda m, i: (
        (m[i] - sum(m) / len(m)) / math.sqrt(sum((v - sum(m) / len(m)) ** 2 for v in m) / len(m))
    ),
    "tss_norm": lambda m, i: m[i] / sum(m),
    "linear_scaling": lambda m, i: (m[i] - min(m)) / (max(m) - min(m)),
    "softmax_norm": lambda m, i: math.exp(m[i]) / sum(map(math.exp, m)),
    "none": lambda m, i: m[i],
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_formulas(name: str) -> None:
    for scores in ([3.0, 1.0, 0.5, 7.0], [0.0, 0.25], [2.0, -1.0, 0.5]):
        expected = [FORMULAS[name](scores, i) for i in range(len(scores))]
        assert NORMALIZERS[name](np.array(scores)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("value", [0.0, 0.1, 3.7])
def test_equal_scores_stay_equal_and_finite(name: str, value: float) -> None:
    result = NORMALIZERS[name](np.full(7, value))
    assert np.isfinite(result).all() and len(set(result.tolist())) == 1
    if name in ("standard_score", "linear_scaling"):
        assert result.tolist() == [0.0] * 7


def test_large_scores_do_not_overflow() -> None:
    result = NORMALIZERS["softmax_norm"](np.array([1e4, 1e4 - 1, 0]))
    assert result.tolist() == pytest.approx([1 / (1 + math.exp(-1)), math.exp(-1) / (1 + math.exp(-1)), 0])


def test_a_sum_that_would_turn_the_order_is_refused() -> None:
    with pytest.raises(PlanError, match="tss_norm divides by the sum of the scores, which is -2"):
        NORMALIZERS["tss_norm"](np.array([-3.0, 1.0]))
    structure = prunus.analyze(layers(4, 8, 3).eval(), torch.randn(3, 4))
    with pytest.raises(PlanError, match="for group '0': tss_norm divides by the sum"):
        prunus.plan(
            structure,
            method=lambda group: -torch.ones(group.size),
            ratio=0.5,
            options=Options(layer_norm="tss_norm"),
        )


# --- rows


def test_the_same_indices_leave_every_row() -> None:
    structure = prunus.analyze(*network("grouped"))
    group = structure.group("2")
    assert group.rows is not None
    seed = prunus.Random(5)
    plain = prunus.plan(structure, method=seed, ratio={"2": 0.5}).keep["2"]
    assert len({tuple(u % 4 for u in plain if u // 4 == row) for row in range(4)}) > 1
    for policy in ("sum", "average"):
        made = prunus.plan(
            structure, method=seed, ratio={"2": 0.5}, options=Options(group_policy=policy)
        ).keep["2"]
        assert len({tuple(u % 4 for u in made if u // 4 == row) for row in range(4)}) == 1


@pytest.mark.parametrize(("policy", "divisor"), [("sum", 1), ("average", 3)])
def test_an_index_has_one_score_in_all_rows(policy: str, divisor: int) -> None:
    rows, scores = np.array([[0, 3, 6], [1, 4, 7], [2, 5, 8]]), np.random.default_rng(0).random(9)
    found = over_rows(scores, rows, policy)
    for i in range(3):
        expected = sum(scores[rows[r, i]] for r in range(3)) / divisor
        assert [found[rows[r, i]] for r in range(3)] == pytest.approx([expected] * 3)
    assert over_rows(scores, rows, "none") is scores and over_rows(scores, None, policy) is scores


def test_count_takes_the_least_number_that_rows_choose_alone() -> None:
    structure = prunus.analyze(*network("grouped"))
    group = structure.group("2")
    assert group.rows is not None
    scores = np.random.default_rng(1).random(group.size)
    (family,) = find_families(
        structure, {"2": scores}, floors=0.0, multiple_of=1, options=Options(group_policy="count")
    )
    for threshold in np.linspace(0, 1, 41):
        alone = [sum(scores[u] < threshold for u in row) for row in group.rows.tolist()]
        assert int((family.worth < threshold).sum()) == min(alone)


# --- rounding


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("round", {"0": 16, "2": 32}),
        ("round_up", {"0": 16, "2": 32}),
        ("round_down", {"0": 8, "2": 24}),
        ("none", {"0": 14, "2": 30}),
        (None, {"0": 16, "2": 32}),
    ],
)
def test_what_stays_is_a_multiple_of_the_step(op: str | None, expected: dict[str, int]) -> None:
    structure = prunus.analyze(layers(4, 24, 50, 3).eval(), torch.randn(3, 4))
    options = Options(step_size=8, step_op=op)
    made = prunus.plan(structure, target=prunus.Target(channels=0.6), options=options)
    assert {name: len(keep) for name, keep in made.keep.items()} == expected


def test_rounding_goes_to_the_nearest() -> None:
    structure = prunus.analyze(layers(4, 64, 64, 3).eval(), torch.randn(3, 4))
    for kept, (nearest, up, down) in {17: (16, 24, 16), 23: (24, 24, 16), 20: (24, 24, 16)}.items():
        for op, expected in (("round", nearest), ("round_up", up), ("round_down", down)):
            made = prunus.plan(
                structure, ratio={"0": 1 - kept / 64}, options=Options(step_size=8, step_op=op)
            )
            assert len(made.keep["0"]) == expected, (kept, op)


@pytest.mark.parametrize("op", ["round", "round_up", "round_down"])
@pytest.mark.parametrize("allocation", ["global", "slamp", "uniform", "isomorphic", "erk"])
def test_a_target_is_met_after_rounding(op: str, allocation: str) -> None:
    structure = prunus.analyze(layers(16, 40, 64, 50, 3).eval(), torch.randn(3, 16))
    made = prunus.plan(
        structure,
        target=prunus.Target(params=0.5),
        allocation=allocation,
        options=Options(step_size=8, step_op=op),
    )
    costs = CostModel(structure)
    assert costs(structure.keep_labels(made.keep)).params <= 0.5 * costs.original.params
    assert all(len(keep) % 8 == 0 for keep in made.keep.values())


def test_a_step_and_a_multiple_are_the_same_thing() -> None:
    structure = prunus.analyze(layers(4, 24, 3).eval(), torch.randn(3, 4))
    with pytest.raises(ConfigError, match="multiple_of=4 and step_size=8 say the same"):
        prunus.plan(structure, ratio=0.5, multiple_of=4, options=Options(step_size=8))


# --- the rest


@pytest.mark.parametrize("allocation", ["uniform", "global", "slamp", "isomorphic"])
def test_reversed_is_the_opposite_choice(allocation: str) -> None:
    structure = prunus.analyze(layers(4, 24, 3).eval(), torch.randn(3, 4))
    least, most = (
        removed(structure, ratio=0.25, allocation=allocation, options=Options(reverse=reverse))["0"]
        for reverse in (False, True)
    )
    scores = L2Norm().score(prunus.criteria.Views(structure).group(structure.group("0"))).argsort().tolist()
    assert (least, most) == (set(scores[:6]), set(scores[-6:]))


@pytest.mark.parametrize("name", ["residual", "grouped", "packed attention", "linear"])
@pytest.mark.parametrize("target", [prunus.Target(channels=0.5), prunus.Target(params=0.6)])
def test_the_defaults_change_nothing(name: str, target: prunus.Target) -> None:
    structure = prunus.analyze(*network(name))
    assert prunus.plan(structure, target=target) == prunus.plan(structure, target=target, options=Options())


def test_all_that_is_wrong_is_said_at_once() -> None:
    bad: dict[str, Any] = {"layer_norm": "tss", "policy": None, "group_policy": 1, "step_op": "up"}
    with pytest.raises(ConfigError) as caught:
        Options(**bad, step_size=0, reverse=1)  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == (
        "layer_norm='tss' is none of mean, standard_score, tss_norm, linear_scaling, softmax_norm, none; "
        "policy=None is none of backward, average, sum; group_policy=1 is none of none, average, sum, count; "
        "step_op='up' is none of round, round_up, round_down, none, None; reverse=1 is none of False, True; "
        "step_size must be a whole number of at least 1, got 0"
    )
    structure = prunus.analyze(layers(4, 24, 3).eval(), torch.randn(3, 4))
    with pytest.raises(ConfigError, match=r"options must be a prunus\.Options, got dict"):
        prunus.plan(structure, ratio=0.5, options={"layer_norm": "none"})  # pyright: ignore[reportArgumentType]
