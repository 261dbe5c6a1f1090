"""Norms are compared with loops over single weights; whatever else gives scores is checked before it is used."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.criteria import CRITERIA, GroupView, MemberView, Views, as_criterion, check_scores
from prunus.errors import ConfigError, PlanError
from tests.allocation.nets import Residual, layers, network

Slots = dict[int, list[Tensor]]  # unit -> pieces of weights that belong to it


def along(weight: Tensor, axis: int, unit_of: Callable[[int], int] = lambda i: i) -> Slots:
    found: Slots = {}
    for i in range(weight.shape[axis]):
        found.setdefault(unit_of(i), []).append(weight.select(axis, i))
    return found


def folded(kernel: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """The kernel of one layer that does what the convolution and the norm do, filter by filter."""
    assert norm.running_var is not None
    return torch.stack([
        kernel[i] * norm.weight[i].item() / math.sqrt(norm.running_var[i].item() + norm.eps)
        for i in range(len(kernel))
    ])  # fmt: skip


def expected(slots: list[Slots], power: int) -> list[float]:
    units = sorted(slots[0])
    assert units == list(range(len(units)))
    sums = [
        sum(abs(x.item()) ** power for slot in slots for piece in slot.get(u, []) for x in piece.flatten())
        for u in units
    ]
    return [s ** (1 / power) for s in sums]


def parameter(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name).detach()


def residual_stream(m: nn.Module) -> list[Slots]:
    assert isinstance(m, Residual)
    return [
        along(folded(m.stem.weight, m.bn), 0),
        along(folded(m.conv2.weight, m.bn2), 0),  # the second producer of what is added
        along(folded(m.conv1.weight, m.bn1), 1),  # a reader, as it is with its own norm
        along(m.head.weight, 1),
    ]


def residual_inside(m: nn.Module) -> list[Slots]:
    assert isinstance(m, Residual)
    return [along(folded(m.conv1.weight, m.bn1), 0), along(folded(m.conv2.weight, m.bn2), 1)]


def depthwise(m: nn.Module) -> list[Slots]:
    first, second = m.get_submodule("1"), m.get_submodule("4")
    assert isinstance(first, nn.BatchNorm2d) and isinstance(second, nn.BatchNorm2d)
    return [
        along(folded(parameter(m, "0.weight"), first), 0),
        along(folded(parameter(m, "3.weight"), second), 0),
        along(parameter(m, "6.weight"), 1),
    ]


def packed(m: nn.Module, parts: tuple[int, ...]) -> Slots:
    """Rows of a layer of queries, keys and values of width 16; unit = channel within these."""
    weight = parameter(m, "qkv.weight")
    return {u: [weight[16 * part + u] for part in parts] for u in range(16)}


# network, group, what belongs to its units
CASES: dict[str, tuple[str, str, Callable[[nn.Module], list[Slots]]]] = {
    "residual": ("residual", "add", residual_stream),
    "conv-bn-conv": ("residual", "conv1", residual_inside),
    "depthwise": ("separable", "conv2d", depthwise),
    "conv in groups": (
        "grouped",
        "2",
        lambda m: [along(parameter(m, "2.weight"), 0), along(parameter(m, "4.weight"), 1)],
    ),
    # every group of the second layer reads three channels: one unit is one channel of each
    "before groups": (
        "grouped",
        "0",
        lambda m: [along(parameter(m, "0.weight"), 0, lambda i: i % 3), along(parameter(m, "2.weight"), 1)],
    ),
    "one part of a concatenation": (
        "concatenated",
        "right",
        lambda m: [along(parameter(m, "right.weight"), 0), along(parameter(m, "joined.weight")[:, 9:], 1)],
    ),
    "linear": (
        "linear",
        "0",
        lambda m: [along(parameter(m, "0.weight"), 0), along(parameter(m, "2.weight"), 1)],
    ),
    "transposed": (
        "transposed",
        "2",
        lambda m: [along(parameter(m, "2.weight"), 1), along(parameter(m, "4.weight"), 1)],
    ),
    "channels that become pixels": (
        "shuffled",
        "0",
        lambda m: [along(parameter(m, "0.weight"), 0, lambda i: i // 4), along(parameter(m, "3.weight"), 1)],
    ),
    # the table is the weight of the last layer as well, and counts once
    "tied": (
        "language",
        "add",
        lambda m: [
            along(parameter(m, "table.weight"), 1),
            along(parameter(m, "up.weight"), 1),
            along(parameter(m, "down.weight"), 0),
        ],
    ),
    "queries and keys": (
        "packed attention",
        "qkv@scaled_dot_product_attention",
        lambda m: [packed(m, (0, 1))],
    ),
    "values": (
        "packed attention",
        "qkv@linear_1",
        lambda m: [packed(m, (2,)), along(parameter(m, "proj.weight"), 1)],
    ),
    "heads": (
        "packed attention",
        "qkv[rows]",
        lambda m: [
            along(parameter(m, "qkv.weight"), 0, lambda i: i % 16 // 4),
            along(parameter(m, "proj.weight"), 1, lambda i: i // 4),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_norms_are_those_of_a_loop(case: str) -> None:
    name, group, slots = CASES[case]
    model, x = network(name)
    structure = prunus.analyze(model, x)
    view = Views(structure).group(structure.group(group))
    with torch.no_grad():
        pieces = slots(model)
    for criterion, power in ((prunus.L1Norm(), 1), (prunus.L2Norm(), 2)):
        scores = criterion.score(view)
        assert scores.shape == (structure.group(group).size,)
        assert scores.tolist() == pytest.approx(expected(pieces, power), rel=1e-4)


def scores_of(model: nn.Module, x: Tensor, group: str, criterion: Any) -> list[float]:
    structure = prunus.analyze(model, x)
    return criterion.score(Views(structure).group(structure.group(group))).tolist()


@pytest.mark.parametrize("criterion", [prunus.L1Norm(), prunus.L2Norm()], ids=["l1", "l2"])
def test_a_batch_norm_counts_with_its_gain(criterion: Any) -> None:
    model, x = network("residual")
    assert isinstance(model, Residual) and model.bn1.running_var is not None
    before = scores_of(model, x, "conv1", criterion)
    with torch.no_grad():
        model.bn1.weight[3] *= 10
        model.bn1.running_var[5] *= 100
        model.bn1.bias[7] += 50  # a shift, no gain
        model.conv2.bias.add_(50)  # type: ignore[union-attr]  neither is a bias of a layer
    after = scores_of(model, x, "conv1", criterion)
    assert after[3] > 2 * before[3]
    assert after[5] < before[5]
    rest = [i for i in range(12) if i not in (3, 5)]
    assert [after[i] for i in rest] == [before[i] for i in rest]


def test_scaling_a_filter_and_undoing_it_in_the_norm_changes_nothing() -> None:
    model, x = network("residual")
    assert isinstance(model, Residual)
    before = scores_of(model, x, "conv1", prunus.L2Norm())
    with torch.no_grad():
        model.conv1.weight[2] *= 8
        model.bn1.weight[2] /= 8
    assert scores_of(model, x, "conv1", prunus.L2Norm()) == pytest.approx(before, rel=1e-5)


class Twice(nn.Module):
    """What goes through the norm also goes past it, so that the layer is not followed by the norm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.last(self.bn(x) + x)


def test_a_norm_beside_another_reader_is_not_folded() -> None:
    model, x = Twice().eval(), torch.randn(2, 3, 4, 4)
    structure = prunus.analyze(model, x)
    (group,) = structure.prunable
    before = scores_of(model, x, group.name, prunus.L2Norm())
    with torch.no_grad():
        model.bn.weight.mul_(10)
    assert scores_of(model, x, group.name, prunus.L2Norm()) == before


def test_half_precision_is_summed_in_full() -> None:
    weight = torch.full((2, 4000), 30.0, dtype=torch.float16)  # the sum of squares does not fit into 16 bits
    view = GroupView("g", 2, (MemberView("w", 0, True, weight),))
    assert prunus.L2Norm().score(view).tolist() == pytest.approx([math.sqrt(4000) * 30] * 2)
    assert prunus.L1Norm().score(view).tolist() == pytest.approx([120_000.0] * 2)


def test_the_plan_keeps_what_scores_highest() -> None:
    model, x = layers(4, 10, 2).eval(), torch.randn(3, 4)
    with torch.no_grad():
        for i, size in enumerate([1, 9, 2, 8, 3, 7, 4, 6, 5, 0.5]):
            model.get_parameter("0.weight")[i] = size
        model.get_parameter("2.weight").fill_(1)
    structure = prunus.analyze(model, x)
    for method in ("l1", "l2"):
        made = prunus.plan(structure, method=method, target=prunus.Target(channels=0.4))
        assert made.keep == {"0": (1, 3, 5, 7)} and made.method == method


# --- random scores


def test_random_scores_repeat_with_the_seed() -> None:
    model, x = network("residual")
    structure = prunus.analyze(model, x)
    views = [Views(structure).group(structure.group(name)) for name in ("add", "conv1")]
    first = [prunus.Random(3).score(view).tolist() for view in views]
    torch.rand(7)  # whatever else is drawn does not matter
    assert [prunus.Random(3).score(view).tolist() for view in views] == first
    assert prunus.Random(4).score(views[0]).tolist() != first[0]
    assert first[0] != first[1][:8], "groups draw numbers of their own"
    assert all(0 <= s < 1 for s in first[0]) and len(set(first[0])) == 8


def test_random_scores_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    prunus.Random(1).score(GroupView("g", 5, ()))
    assert torch.equal(torch.get_rng_state(), state)


def test_random_plans_are_the_same_for_the_same_seed() -> None:
    model, x = network("concatenated")
    target = prunus.Target(channels=0.5)
    plans = [
        prunus.plan(prunus.analyze(model, x), method=prunus.Random(seed), target=target).keep
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]


# --- methods of the user's own


def small() -> prunus.Structure:
    return prunus.analyze(layers(4, 10, 2).eval(), torch.randn(3, 4))


def test_a_callable_decides() -> None:
    seen = []

    def last_first(group: GroupView) -> Tensor:
        seen.append((group.name, group.size, [(m.parameter, m.axis, m.produces) for m in group.members]))
        return torch.arange(group.size)

    made = prunus.plan(small(), method=last_first, target=prunus.Target(channels=0.3))
    assert made.keep == {"0": (7, 8, 9)}
    assert seen == [("0", 10, [("0.weight", 0, True), ("2.weight", 1, False)])]
    assert made.method == "function"


def test_an_object_with_scores_decides_and_names_the_plan() -> None:
    class First:
        name = "first"

        def score(self, group: GroupView) -> Tensor:
            return -torch.arange(group.size).double()

    made = prunus.plan(small(), method=First(), target=prunus.Target(channels=0.3))
    assert made.keep == {"0": (0, 1, 2)} and made.method == "first"


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        (torch.ones(9), "(9,)"),
        (torch.ones(10, 1), "(10, 1)"),
        (torch.ones(()), "()"),
        ([1.0] * 10, "list"),
        (None, "NoneType"),
    ],
)
def test_scores_of_another_shape_are_refused(scores: Any, got: str) -> None:
    with pytest.raises(PlanError) as caught:
        prunus.plan(small(), method=lambda group: scores, target=prunus.Target(channels=0.5))
    assert "must return a tensor of shape (10,) for group '0'" in str(caught.value)
    assert str(caught.value).endswith(f"got {got}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    scores = torch.ones(10)
    scores[[2, 5]] = value
    with pytest.raises(PlanError, match="gave 2 scores that are NaN or infinite for group '0'"):
        prunus.plan(small(), method=lambda group: scores, target=prunus.Target(channels=0.5))


def test_scores_with_a_gradient_and_of_any_dtype_are_taken() -> None:
    view = GroupView("g", 3, ())
    given = torch.tensor([1.0, 2.0, 3.0], requires_grad=True, dtype=torch.bfloat16)
    checked = check_scores(given, view, "mine")
    assert checked.dtype == torch.float64 and not checked.requires_grad
    assert checked.tolist() == [1.0, 2.0, 3.0]
    assert check_scores(torch.tensor([1, 2, 3]), view, "mine").tolist() == [1.0, 2.0, 3.0]


# --- names


@pytest.mark.parametrize(
    ("name", "kind"), [("l1", prunus.L1Norm), ("l2", prunus.L2Norm), ("random", prunus.Random)]
)
def test_names_stand_for_criteria(name: str, kind: type) -> None:
    assert type(as_criterion(name)) is kind and CRITERIA[name] is kind
    assert as_criterion(name).name == name


def test_an_unknown_name_gets_those_that_are_known() -> None:
    with pytest.raises(ConfigError) as caught:
        as_criterion("randon")
    assert str(caught.value) == (
        f"unknown method 'randon'. Did you mean 'random'? Known: {', '.join(sorted(CRITERIA))}."
    )
    with pytest.raises(
        ConfigError,
        match=r"unknown method 'hessian'\. Known: bn_scale, dead, flap, geometric_median, hrank, index, l1",
    ):
        as_criterion("hessian")


def test_what_cannot_score_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pass an object, `L1Norm\(\)`, not the class"):
        as_criterion(prunus.L1Norm)
    with pytest.raises(ConfigError, match=r"method must be a name, .* got int"):
        as_criterion(3)


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CRITERIA, "mine", raising=False)

    @prunus.register_criterion("mine")
    class Mine:
        def score(self, group: GroupView) -> Tensor:
            return torch.ones(group.size)

    try:
        assert type(as_criterion("mine")) is Mine and as_criterion("mine").name == "mine"
        with pytest.raises(ConfigError, match="two criteria are called 'mine'"):
            prunus.register_criterion("mine")(Mine)
    finally:
        del CRITERIA["mine"]


def test_the_name_index_needs_indices() -> None:
    with pytest.raises(ConfigError, match="ByIndex needs indices"):
        prunus.plan(small(), method="index", target=prunus.Target(channels=0.5))
