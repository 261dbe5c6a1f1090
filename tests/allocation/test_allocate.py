"""How many channels stay, and which: uniformly, or ranked across the whole model until a target is met."""

import functools
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.allocation import CostModel
from prunus.errors import ConfigError, TargetError
from tests.allocation.nets import layers, network

UNITS = ["params", "macs", "size_bytes"]


@functools.cache
def structure_of(name: str) -> prunus.Structure:
    torch.manual_seed(0)
    return prunus.analyze(*network(name), dynamic="batch")


@functools.cache
def dense(*widths: int) -> prunus.Structure:
    torch.manual_seed(0)
    return prunus.analyze(layers(*widths).eval(), torch.randn(3, widths[0]), dynamic="batch")


def counts(made: prunus.Plan) -> dict[str, int]:
    return {name: len(keep) for name, keep in made.keep.items()}


def share(structure: prunus.Structure, made: prunus.Plan, unit: str) -> float:
    costs = CostModel(structure)
    return costs(structure.keep_labels(made.keep)).of(unit) / costs.original.of(unit)


# --- the same fraction everywhere


def test_every_group_keeps_the_fraction() -> None:
    structure = dense(4, 20, 40, 10, 3)
    for fraction in (0.1, 0.3, 0.5, 0.9):
        made = prunus.plan(structure, target=prunus.Target(channels=fraction))
        assert counts(made) == {name: round(fraction * n) for name, n in (("0", 20), ("2", 40), ("4", 10))}


def test_the_last_channel_stays() -> None:
    assert counts(prunus.plan(dense(4, 20, 10, 3), target=prunus.Target(channels=0.001))) == {"0": 1, "2": 1}


def test_rows_stay_balanced() -> None:
    structure = structure_of("packed attention")
    made = prunus.plan(structure, method=prunus.Random(3), target=prunus.Target(channels=0.5))
    for name in ("qkv@scaled_dot_product_attention", "qkv@linear_1"):
        rows = structure.group(name).rows
        assert rows is not None
        assert [len(set(row.tolist()) & set(made.keep[name])) for row in rows] == [2, 2, 2, 2]


class Grouped(nn.Module):
    """Four heads of queries look at two heads of keys: rows of two groups lose equally many."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (
            nn.Linear(6, 32),
            nn.Linear(6, 16),
            nn.Linear(6, 16),
            nn.Linear(32, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (2, 8)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (2, 8)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


def test_layers_that_meet_keep_equal_widths() -> None:
    model, x = Grouped().eval(), torch.randn(2, 5, 6)
    for multiple in (1, 8):
        result = prunus.compress(model, x, target=prunus.Target(channels=0.6), multiple_of=multiple)
        widths = {n: result.model.get_parameter(f"{n}.weight").shape[0] for n in ("q", "k", "v")}
        assert widths["q"] == 2 * widths["k"] and widths["v"] < 16
        assert all(width % multiple == 0 for width in widths.values())


@pytest.mark.parametrize("multiple", [2, 4, 8, 16])
def test_what_stays_is_a_multiple_or_all(multiple: int) -> None:
    structure = dense(4, 40, 24, 13, 3)
    sizes = {"0": 40, "2": 24, "4": 13}
    for target in (prunus.Target(channels=0.5), prunus.Target(params=0.6)):
        made = counts(prunus.plan(structure, target=target, multiple_of=multiple))
        kept = {**sizes, **made}
        assert made and all(n % multiple == 0 or n == sizes[name] for name, n in kept.items())


@pytest.mark.parametrize("multiple", [0, -2, 2.0, True, "8", None])
def test_what_is_no_multiple(multiple: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        prunus.plan(dense(4, 9, 3), target=prunus.Target(channels=0.5), multiple_of=multiple)
    assert str(caught.value) == f"multiple_of must be a whole number of at least 1, got {multiple!r}"


# --- floors

FLOORS: list[tuple[Any, dict[str, int]]] = [
    (3, {"0": 3, "2": 3, "4": 3}),
    (0.5, {"0": 3, "2": 10, "4": 20}),
    (0.34, {"0": 3, "2": 7, "4": 14}),
    ({"0": 5}, {"0": 5}),
    ({"0": 0.5, "4": 30}, {"0": 3, "4": 30}),
    ({"4": 100}, {"4": 40}),
    ({"*": 2, "2": 0.9}, {"0": 2, "2": 18, "4": 2}),
]


@pytest.mark.parametrize(("floors", "least"), FLOORS)
@pytest.mark.parametrize("unit", ["channels", "params"])
def test_floors_hold_for_small_groups_and_large(floors: Any, least: dict[str, int], unit: str) -> None:
    structure = dense(4, 6, 20, 40, 3)
    sizes = {"0": 6, "2": 20, "4": 40}
    low = 0.9
    for fraction in (0.05, 0.2, 0.4, 0.6, 0.8):
        try:
            made = prunus.plan(structure, target=prunus.Target(**{unit: fraction}), floors=floors)
        except TargetError:
            continue
        low = min(low, fraction)
        kept = {**sizes, **counts(made)}
        assert all(kept[name] >= number for name, number in least.items()), kept
    assert low < 0.9, "no target could be met, so nothing is tested"


def test_a_floor_in_channels_counts_all_rows() -> None:
    structure = structure_of("packed attention")  # four heads of four channels
    floors = {"qkv@scaled_dot_product_attention": 8}
    made = prunus.plan(structure, target=prunus.Target(channels=0.3), floors=floors)
    assert counts(made)["qkv@scaled_dot_product_attention"] == 8


def test_by_default_no_layer_is_emptied() -> None:
    structure = dense(4, 100, 100, 3)
    made = prunus.plan(
        structure,
        method=lambda group: torch.full((100,), 1.0) + torch.arange(100) * 1e-6,
        target=prunus.Target(params=0.02),
    )
    assert all(n >= 5 for n in counts(made).values())


def test_a_column_of_convolution_groups_is_not_emptied() -> None:
    model, x = network("grouped")
    result = prunus.compress(model, x, target=prunus.Target(params=0.45))
    assert result.report.after.params <= 0.45 * result.report.before.params
    assert result.model(x).shape == model(x).shape
    made = prunus.plan(prunus.analyze(model, x), target=prunus.Target(params=0.9), multiple_of=4)
    prunus.apply(model, made)


def test_a_floor_for_a_layer_is_about_what_it_makes() -> None:
    made = prunus.plan(dense(4, 20, 40, 3), target=prunus.Target(params=0.5), floors={"2": 40})
    assert set(made.keep) == {"0"}, "what it reads may go"


def test_a_floor_for_no_layer_is_named() -> None:
    with pytest.raises(ConfigError, match="floors: no layer or group matches 'x'"):
        prunus.plan(dense(4, 9, 3), target=prunus.Target(params=0.5), floors={"x": 2})


@pytest.mark.parametrize("floor", [-1, -0.1, 1.5, math.nan, True, "half", None])
def test_what_is_no_floor(floor: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        prunus.plan(dense(4, 9, 3), target=prunus.Target(params=0.5), floors={"0": floor})
    assert str(caught.value) == (
        f"floor {floor!r} for '0': give a fraction from 0 to 1, or a whole number of channels"
    )


# --- held by the user


@pytest.mark.parametrize(
    ("hold", "free"),
    [
        (["stem"], {"conv1"}),
        ("stem", {"conv1"}),
        (["stem.weight"], {"conv1"}),
        (["add"], {"conv1"}),
        (["bn1"], {"add"}),
        (["b*1"], {"add"}),
        (["head"], {"conv1"}),  # it reads what is added
        ([], {"add", "conv1"}),
    ],
)
def test_what_is_held_stays(hold: Any, free: set[str]) -> None:
    structure = structure_of("residual")
    made = prunus.plan(structure, target=prunus.Target(channels=0.5), hold=hold)
    assert set(made.keep) == free


def test_a_prefix_holds_all_below_it_and_nothing_beside() -> None:
    x = torch.randn(2, 4)
    inner = nn.Sequential(nn.Linear(9, 10), nn.ReLU(), nn.Linear(10, 11), nn.ReLU())
    model = nn.Sequential()
    for name, module in (("in", nn.Linear(4, 12)), ("act", nn.ReLU()), ("mid", nn.Linear(12, 9))):
        model.add_module(name, module)
    model.add_module("block", inner)
    model.add_module("block2", nn.Linear(11, 8))
    model.add_module("last", nn.Linear(8, 2))
    structure = prunus.analyze(model.eval(), x)
    made = prunus.plan(structure, target=prunus.Target(channels=0.5), hold=["block"])
    assert set(made.keep) == {"in", "block2"}


def test_patterns_that_match_nothing_are_named() -> None:
    structure = structure_of("residual")
    with pytest.raises(ConfigError) as caught:
        prunus.plan(structure, target=prunus.Target(channels=0.5), hold=["stem", "layer.*", "conv3"])
    text = str(caught.value)
    assert text.startswith("hold: no layer or group matches 'layer.*'; 'conv3' (similar: ")
    assert text.endswith("`print(structure)` lists them.") and "stem" not in text


# --- a target on the whole model


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", ["residual", "concatenated", "separable", "packed attention", "language"])
def test_a_target_is_met_and_not_by_far(name: str, unit: str) -> None:
    structure = structure_of(name)
    for fraction in (0.95, 0.8, 0.7):
        made = prunus.plan(structure, target=prunus.Target(**{unit: fraction}))
        kept = share(structure, made, unit)
        assert fraction - 0.12 < kept <= fraction  # one channel is up to a tenth of networks this small


@pytest.mark.parametrize("unit", UNITS)
def test_fine_steps_meet_it_closely(unit: str) -> None:
    structure = dense(8, 150, 120, 100, 4)
    for fraction in (0.9, 0.5, 0.25, 0.1):
        made = prunus.plan(structure, target=prunus.Target(**{unit: fraction}))
        kept = share(structure, made, unit)
        assert fraction - 0.01 < kept <= fraction


def test_a_smaller_target_costs_less_and_keeps_no_more() -> None:
    structure = dense(8, 60, 50, 40, 4)
    last, before = 1.0, {name: set(range(n)) for name, n in (("0", 60), ("2", 50), ("4", 40))}
    for fraction in (0.9, 0.7, 0.5, 0.3, 0.15):
        made = prunus.plan(structure, target=prunus.Target(macs=fraction))
        kept = share(structure, made, "macs")
        assert kept < last
        for name, keep in made.keep.items():
            extra = set(keep) - before[name]
            assert len(extra) <= 1, "but for one channel that still fitted in"
            before[name] = set(keep)
        last = kept


def by_hand(weights: list[Tensor], fraction: float) -> dict[str, set[int]]:
    """Remove the unit of least worth until the parameters of a chain of linear layers are few enough."""
    sizes = [len(w) for w in weights[:-1]]
    worth = []
    for i, size in enumerate(sizes):
        norms = (weights[i].square().sum(1) + weights[i + 1].square().sum(0)).sqrt().double()
        worth += [(float(norms[u] / norms.mean()), i, u) for u in range(size)]
    stays = [set(range(size)) for size in sizes]

    def params() -> int:
        widths = [weights[0].shape[1], *map(len, stays), len(weights[-1])]
        return sum(a * b + b for a, b in pairwise(widths))

    allowed, removed = fraction * params(), []
    for value, i, u in sorted(worth):
        if params() <= allowed:
            break
        if len(stays[i]) > 1:
            stays[i].remove(u)
            removed.append((value, i, u))
    # what was taken too much of, best first, one of each layer
    best = {i: (value, u) for value, i, u in removed}
    for i, (_, u) in sorted(best.items(), key=lambda item: -item[1][0]):
        stays[i].add(u)
        if params() > allowed:
            stays[i].remove(u)
    return {str(2 * i): kept for i, kept in enumerate(stays) if len(kept) < sizes[i]}


@pytest.mark.parametrize("fraction", [0.95, 0.8, 0.6, 0.45])
@pytest.mark.parametrize("seed", range(4))
def test_the_ranking_is_the_one_made_by_hand(seed: int, fraction: float) -> None:
    torch.manual_seed(seed)
    model = layers(3, 9, 10, 8, 2).eval()
    for i, module in enumerate(m for m in model if isinstance(m, nn.Linear)):  # pyright: ignore
        nn.init.normal_(module.weight, std=1 + i)
        module.weight.data *= torch.rand(len(module.weight), 1) + 0.2
    weights = [m.weight.detach() for m in model.children() if isinstance(m, nn.Linear)]
    structure = prunus.analyze(model, torch.randn(2, 3))
    made = prunus.plan(structure, target=prunus.Target(params=fraction))
    assert {name: set(keep) for name, keep in made.keep.items()} == by_hand(weights, fraction)


@pytest.mark.parametrize("unit", ["channels", *UNITS])
def test_all_is_no_change(unit: str) -> None:
    model, x = network("residual")
    result = prunus.compress(model, x, target=prunus.Target(**{unit: 1.0}))
    assert result.plan.groups == ()
    assert result.report.after == result.report.before
    with torch.no_grad():
        assert torch.equal(result.model(x), model(x))
    assert result.model is not model


def test_the_same_input_gives_the_same_plan() -> None:
    plans = []
    for _ in range(3):
        torch.manual_seed(5)
        model, x = network("concatenated")
        torch.rand(len(plans))
        plans.append(prunus.plan(prunus.analyze(model, x), target=prunus.Target(macs=0.5)).to_json())
    assert plans[0] == plans[1] == plans[2]


def test_equal_scores_are_told_apart_the_same_way_every_time() -> None:
    structure = dense(4, 20, 20, 3)
    made = [
        prunus.plan(structure, method=lambda g: torch.ones(g.size), target=prunus.Target(params=0.5))
        for _ in range(2)
    ]
    assert made[0] == made[1] and made[0].keep
    assert all(keep == tuple(range(len(keep))) for keep in made[0].keep.values())


# --- targets that make no sense, or are out of reach


@pytest.mark.parametrize("unit", ["channels", *UNITS])
@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.01, 50, math.nan, math.inf, True, "0.5"])
def test_what_is_no_fraction(unit: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        prunus.Target(**{unit: value})
    assert str(caught.value) == (
        f"Target({unit}={value!r}): say what is kept, a fraction above 0 and up to 1 (0.5 keeps half)"
    )


def test_one_target_at_a_time() -> None:
    with pytest.raises(ConfigError, match=r"exactly one of .*; got params and macs"):
        prunus.Target(macs=0.5, params=0.5)
    with pytest.raises(ConfigError, match=r"exactly one of channels, params, macs, size_bytes; got none"):
        prunus.Target()


def test_a_target_says_what_it_is() -> None:
    target = prunus.Target(macs=0.25)
    assert (target.unit, target.fraction, str(target)) == ("macs", 0.25, "macs=0.25")
    assert target.to_dict() == {"macs": 0.25}


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_out_of_reach_says_what_is_not(unit: str) -> None:
    structure = structure_of("residual")
    with pytest.raises(TargetError) as caught:
        prunus.plan(structure, target=prunus.Target(**{unit: 0.001}), hold=["conv1"])
    text = str(caught.value)
    assert text.startswith(f"{unit}=0.001 cannot be reached: at the least ")
    assert "add (8: held by your settings)" in text
    assert "conv1 (12: held by your settings)" in text
    assert "head (5: is part of the model's output (at output))" in text


def test_what_is_said_to_be_in_reach_is() -> None:
    structure = dense(4, 20, 12, 3)
    with pytest.raises(TargetError) as caught:
        prunus.plan(structure, target=prunus.Target(params=0.01))
    # one channel of each: 4+1, 1+1, 3+3
    assert "(13 of 391)" in str(caught.value)
    total = CostModel(structure).original.params
    made = prunus.plan(structure, target=prunus.Target(params=13 / total))
    assert counts(made) == {"0": 1, "2": 1}


def test_channels_out_of_reach() -> None:
    with pytest.raises(TargetError) as caught:
        prunus.plan(dense(4, 40, 40, 3), target=prunus.Target(channels=0.1), floors=0.8)
    assert str(caught.value).startswith("channels=0.1 cannot be met: with these floors, multiples and held")
    assert "0.800 of the channels stay" in str(caught.value)


@pytest.mark.parametrize("target", [None, 0.5, "macs=0.5", {"macs": 0.5}])
def test_what_is_no_target(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"prunus\.Target\(macs=0\.5\)"):
        prunus.plan(dense(4, 9, 3), target=target)


def test_nothing_to_remove_is_said() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    for hold in (["*"], ["0"]):
        with pytest.raises(
            TargetError, match=r"no channel of this model can be removed.*held by your settings"
        ):
            prunus.compress(net, torch.randn(2, 4), target=prunus.Target(channels=0.5), hold=hold)
