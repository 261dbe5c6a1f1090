"""Every allocator meets every target, keeps to floors, multiples and constraints, or says what stands in the way."""

import random
from typing import Any

import pytest
import torch

import prunus
from prunus.allocation import ALLOCATORS, CostModel
from prunus.decide import check
from prunus.errors import ConfigError, TargetError
from tests.allocation.nets import layers, network

NETS = ["residual", "grouped", "packed attention", "separable"]


@pytest.fixture(scope="module")
def structures() -> dict[str, prunus.Structure]:
    torch.manual_seed(0)
    return {name: prunus.analyze(*network(name)) for name in NETS}


def share(structure: prunus.Structure, made: prunus.Plan, unit: str) -> float:
    if unit == "channels":
        ranked = [g for g in structure.prunable if not g.outer]
        return sum(len(made.keep.get(g.name, range(g.size))) for g in ranked) / sum(g.size for g in ranked)
    costs = CostModel(structure)
    return costs(structure.keep_labels(made.keep)).of(unit) / costs.original.of(unit)


@pytest.mark.parametrize("unit", ["channels", "params", "macs", "size_bytes"])
@pytest.mark.parametrize("allocation", ALLOCATORS)
@pytest.mark.parametrize("name", NETS)
def test_a_target_is_met(
    structures: dict[str, prunus.Structure], name: str, allocation: str, unit: str
) -> None:
    structure = structures[name]
    for fraction in (0.9, 0.5):
        if (name, allocation, unit, fraction) == ("grouped", "uniform", "channels", 0.9):
            with pytest.raises(prunus.TargetError, match=r"0\.9 removes nothing: in groups of at most 4"):
                prunus.plan(structure, target=prunus.Target(channels=0.9), allocation=allocation)
            continue  # each group would be rounded to all of it
        made = prunus.plan(structure, target=prunus.Target(**{unit: fraction}), allocation=allocation)
        found = share(structure, made, unit)
        rounding = 0.1 if (unit, allocation) == ("channels", "uniform") else 0.0  # each group to its nearest
        assert fraction - 0.3 < found <= fraction + rounding
        check(structure, made)


@pytest.mark.parametrize("allocation", ALLOCATORS)
def test_wide_layers_meet_it_closely(allocation: str) -> None:
    structure = prunus.analyze(layers(20, 200, 300, 100, 5).eval(), torch.randn(3, 20))
    for unit in ("channels", "params"):
        made = prunus.plan(structure, target=prunus.Target(**{unit: 0.4}), allocation=allocation)
        assert 0.39 < share(structure, made, unit) <= 0.4


@pytest.mark.parametrize("allocation", ALLOCATORS)
def test_floors_and_multiples_hold(allocation: str) -> None:
    structure = prunus.analyze(layers(20, 40, 60, 80, 5).eval(), torch.randn(3, 20))
    made = prunus.plan(
        structure,
        target=prunus.Target(params=0.4),
        allocation=allocation,
        floors={"2": 30, "*": 0.1},
        multiple_of=4,
    )
    counts = {g.name: len(g.keep) for g in made.groups}
    assert counts.get("2", 60) >= 32 and all(n % 4 == 0 and n >= 4 for n in counts.values())


@pytest.mark.parametrize("allocation", ALLOCATORS)
@pytest.mark.parametrize("unit", ["channels", "params"])
def test_what_is_out_of_reach_is_refused(allocation: str, unit: str) -> None:
    structure = prunus.analyze(layers(20, 40, 60, 5).eval(), torch.randn(3, 20))
    with pytest.raises(TargetError, match=rf"{unit}=0\.2 cannot be"):
        prunus.plan(structure, target=prunus.Target(**{unit: 0.2}), allocation=allocation, floors=0.9)


@pytest.mark.parametrize("allocation", ALLOCATORS)
def test_nothing_to_remove_is_said(allocation: str) -> None:
    structure = prunus.analyze(torch.nn.Linear(3, 4).eval(), torch.randn(2, 3))
    for target in (prunus.Target(channels=0.5), prunus.Target(params=0.5)):
        with pytest.raises(TargetError, match="part of the model's output"):
            prunus.plan(structure, target=target, allocation=allocation)


def test_without_a_name_it_is_what_suits_the_target() -> None:
    structure = prunus.analyze(layers(20, 40, 60, 5).eval(), torch.randn(3, 20))
    for target, name in ((prunus.Target(channels=0.5), "uniform"), (prunus.Target(macs=0.5), "global")):
        assert prunus.plan(structure, target=target) == prunus.plan(structure, target=target, allocation=name)


def test_allocators_differ() -> None:
    structure = prunus.analyze(layers(20, 40, 60, 80, 5).eval(), torch.randn(3, 20))
    target = prunus.Target(params=0.5)
    found = {name: prunus.plan(structure, target=target, allocation=name).keep for name in ALLOCATORS}
    assert len({str(keep) for keep in found.values()}) >= 4


@pytest.mark.parametrize("name", ["slmap", 3, "lamp2", ["erk"]])
def test_an_unknown_name_gets_those_that_are_known(name: Any) -> None:
    structure = prunus.analyze(layers(4, 8, 3).eval(), torch.randn(3, 4))
    with pytest.raises(
        ConfigError, match=r"unknown allocation .* Known: uniform, global, slamp, isomorphic, erk"
    ):
        prunus.plan(structure, ratio=0.5, allocation=name)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_a_share_of_all_channels_is_the_one_counted_by_hand(fraction: float) -> None:
    """The least scores of the model, wherever they are."""
    structure = prunus.analyze(layers(20, 40, 60, 80, 5).eval(), torch.randn(3, 20))
    scores = {
        g.name: prunus.L2Norm().score(prunus.criteria.Views(structure).group(g)) for g in structure.prunable
    }
    ranked = sorted((float(s / scores[n].mean()), n, u) for n in scores for u, s in enumerate(scores[n]))
    gone = ranked[: round((1 - fraction) * 180)]
    made = prunus.plan(structure, target=prunus.Target(channels=fraction), allocation="global", floors=0.0)
    for group in structure.prunable:
        lost = {u for _, name, u in gone if name == group.name}
        assert set(range(group.size)) - set(made.keep.get(group.name, range(group.size))) == lost


@pytest.mark.parametrize("keep_class", [False, True])
@pytest.mark.parametrize("name", ["packed attention", "grouped", "separable"])
def test_every_way_to_choose_keeps_to_the_constraints(name: str, keep_class: bool) -> None:
    structure = prunus.analyze(*network(name), keep_class=keep_class)
    draw = random.Random(0)
    for _ in range(20):
        options = prunus.Options(
            draw.choice(["mean", "tss_norm", "linear_scaling", "softmax_norm", "none"]),
            draw.choice(["backward", "average", "sum"]),
            draw.choice(["none", "average", "sum", "count"]),
            draw.choice([1, 2]),
            draw.choice(["round", "round_up", "round_down", None]),
            draw.random() < 0.5,
        )
        unit, method = draw.choice(["channels", "params"]), draw.choice(["l1", "geometric_median"])
        made = prunus.plan(
            structure,
            method=method,
            target=prunus.Target(**{unit: 0.7}),
            allocation=draw.choice(list(ALLOCATORS)),
            options=options,
        )
        check(structure, made)
        if unit == "params":
            assert share(structure, made, unit) <= 0.7, options
