"""Lists of indices keep exactly what they say, or are refused with the layer and the index."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError, PlanError
from tests.allocation.nets import Residual, network


def structure_of(name: str) -> prunus.Structure:
    return prunus.analyze(*network(name))


def kept(name: str, **lists: Any) -> dict[str, tuple[int, ...]]:
    return prunus.plan(structure_of(name), method=prunus.ByIndex(**lists)).keep


def refusal(name: str, **lists: Any) -> str:
    with pytest.raises(PlanError) as caught:
        kept(name, **lists)
    return str(caught.value)


# --- what is kept


@pytest.mark.parametrize(
    "lists",
    [
        {"keep": {"conv1": [2, 5, 11]}},
        {"keep": {"conv1": (11, 2, 5)}},
        {"keep": {"conv1": np.array([5, 2, 11])}},
        {"keep": {"conv1": torch.tensor([5, 2, 11])}},
        {"remove": {"conv1": [0, 1, 3, 4, 6, 7, 8, 9, 10]}},
        {"remove": {"conv1": [i for i in range(12) if i not in (2, 5, 11)]}},
    ],
)
def test_all_forms_of_a_list_mean_the_same(lists: dict[str, Any]) -> None:
    assert kept("residual", **lists) == {"conv1": (2, 5, 11)}


@pytest.mark.parametrize("name", ["add", "stem", "conv2"])
def test_a_coupled_group_goes_by_any_of_its_names(name: str) -> None:
    assert kept("residual", remove={name: [0, 7]}) == {"add": (1, 2, 3, 4, 5, 6)}


def test_no_target_is_needed_and_none_recorded() -> None:
    made = prunus.plan(structure_of("residual"), method=prunus.ByIndex(keep={"conv1": [0]}))
    assert made.method == "index" and made.target == {}


def test_keeping_all_is_no_change() -> None:
    assert kept("residual", keep={"conv1": range(12)}) == {}
    assert kept("residual", remove={"conv1": []}) == {}


def test_a_name_of_layer_and_group_means_the_group() -> None:
    # every one of 8 units is four channels of the layer
    assert kept("shuffled", remove={"0": [7]}) == {"0": (0, 1, 2, 3, 4, 5, 6)}
    assert "index 8 is out of range" in refusal("shuffled", remove={"0": [8]})


def test_the_weights_that_stay_are_the_listed_ones() -> None:
    model, x = network("residual")
    assert isinstance(model, Residual)
    result = prunus.compress(
        model, x, method=prunus.ByIndex(keep={"conv1": [1, 4, 10]}, remove={"stem": [3, 6]})
    )
    inner, outer = [1, 4, 10], [0, 1, 2, 4, 5, 7]
    old, new = model.state_dict(), result.model.state_dict()
    expected = {
        "stem.weight": old["stem.weight"][outer],
        "bn.weight": old["bn.weight"][outer],
        "bn.running_var": old["bn.running_var"][outer],
        "conv1.weight": old["conv1.weight"][inner][:, outer],
        "bn1.bias": old["bn1.bias"][inner],
        "bn1.running_mean": old["bn1.running_mean"][inner],
        "conv2.weight": old["conv2.weight"][outer][:, inner],
        "conv2.bias": old["conv2.bias"][outer],
        "bn2.weight": old["bn2.weight"][outer],
        "head.weight": old["head.weight"][:, outer],
        "head.bias": old["head.bias"],
    }
    for name, tensor in expected.items():
        assert torch.equal(new[name], tensor), name


def test_rows_that_stay_are_the_listed_ones() -> None:
    model, x = network("grouped")
    result = prunus.compress(model, x, method=prunus.ByIndex(remove={"2": [3, 4, 9, 12]}))
    stays = [i for i in range(16) if i not in (3, 4, 9, 12)]
    assert torch.equal(result.model.get_parameter("2.weight"), model.get_parameter("2.weight")[stays])
    assert torch.equal(result.model.get_parameter("4.weight"), model.get_parameter("4.weight")[:, stays])


# --- what is refused


@pytest.mark.parametrize("way", ["keep", "remove"])
@pytest.mark.parametrize("name", ["conv1", "stem", "add"])
@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([1, 12], "index 12 is out of range; it has {size} channels, 0 to {last}"),
        ([0, -1], "index -1 is out of range; it has {size} channels, 0 to {last}"),
        ([3, 1, 3], "index 3 is listed twice"),
        ([1.0, 2], "indices are whole numbers, got [1.0]"),
        ([True, 1], "indices are whole numbers, got [True]"),
        (["1"], "indices are whole numbers, got ['1']"),
        ("12", "indices are whole numbers, got ['1', '2']"),
        (5, "give a list of indices, not 5"),
        (None, "give a list of indices, not None"),
        (np.array([0.0, 1.0]), "indices are whole numbers, got ["),
        (np.array([True, False]), "indices are whole numbers, got ["),
        (torch.tensor([0.5]), "indices are whole numbers, got [tensor(0.5000)]"),
        (torch.tensor([True, False]), "indices are whole numbers, got [tensor(True), tensor(False)]"),
    ],
)
def test_indices_that_mean_nothing(residual: Any, way: str, name: str, indices: Any, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        prunus.plan(residual, method=prunus.ByIndex(**{way: {name: indices}}))
    size = 12 if name == "conv1" else 8
    assert str(caught.value).startswith(f"{name}: {said.format(size=size, last=size - 1)}")


@pytest.fixture(scope="module")
def residual() -> prunus.Structure:
    torch.manual_seed(0)
    return structure_of("residual")


@pytest.mark.parametrize("lists", [{"remove": {"conv1": range(12)}}, {"keep": {"conv1": []}}])
def test_one_channel_must_stay(lists: dict[str, Any]) -> None:
    assert refusal("residual", **lists) == "conv1: this removes all 12 channels; at least one must stay"


def test_an_unknown_layer_gets_similar_names() -> None:
    text = refusal("residual", keep={"conv3": [0]})
    assert text.startswith("no layer or group 'conv3'; similar: ")
    assert {"conv1", "conv2"} <= set(text.split("similar: ")[1].split(", "))
    assert refusal("residual", keep={"encoder": [0]}) == "no layer or group 'encoder'"


def test_a_held_layer_gets_its_reason() -> None:
    assert refusal("residual", remove={"head": [0]}) == (
        "head: nothing can be removed here: it is part of the model's output (at output)"
    )


def test_a_layer_without_channels_of_its_own_gets_the_group() -> None:
    assert refusal("residual", remove={"bn1": [0]}) == (
        "bn1: this layer makes no channels of its own; those that pass through it belong to conv1"
    )


def test_lists_for_one_group_may_agree() -> None:
    stays = {"add": (1, 2, 3, 4, 5, 6, 7)}
    assert kept("residual", remove={"stem": [0], "conv2": [0]}) == stays
    assert kept("residual", remove={"stem": [0]}, keep={"conv2": range(1, 8)}) == stays
    assert kept("residual", keep={"add": range(1, 8), "stem": [7, 6, 5, 4, 3, 2, 1]}) == stays


@pytest.mark.parametrize(
    "lists",
    [
        {"remove": {"stem": [0], "conv2": [1]}},
        {"remove": {"conv2": [0]}, "keep": {"stem": [0]}},
        {"keep": {"stem": [0, 1], "conv2": [0]}},
    ],
)
def test_lists_for_one_group_must_not_differ(lists: dict[str, Any]) -> None:
    text = refusal("residual", **lists)
    assert "its channels are those of group 'add', for which other indices are given as well" in text


def test_rows_must_stay_balanced() -> None:
    assert refusal("grouped", remove={"2": [0]}) == (
        "the plan does not fit the model: 2: its 4 rows must keep equally many channels, not [3, 4]"
    )
    assert kept("grouped", remove={"2": [0, 5, 10, 15]})["2"] == (1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14)


def test_all_problems_are_said_at_once() -> None:
    text = refusal("residual", remove={"conv1": [12], "head": [0], "layer9": [0]}, keep={"stem": [1, 1]})
    assert [part.split(":")[0] for part in text.split("; ") if ":" in part and "similar" not in part] == [
        "stem",
        "conv1",
        "head",
    ]
    assert "no layer or group 'layer9'" in text


class Halves(nn.Module):
    """One layer whose output is cut in two that go different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.a, self.b = nn.Linear(4, 20), nn.Linear(10, 3), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).relu().chunk(2, 1)
        return self.a(left) + self.b(right)


def test_a_layer_of_several_groups_has_to_be_named_by_group() -> None:
    structure = prunus.analyze(Halves().eval(), torch.randn(3, 4))
    names = [g.name for g in structure.prunable if "both" in g.producers]
    assert len(names) == 2
    with pytest.raises(PlanError) as caught:
        prunus.plan(structure, method=prunus.ByIndex(remove={"both": [0]}))
    assert str(caught.value) == (
        f"both: its output belongs to several groups; name one of {', '.join(names)}"
    )
    made = prunus.plan(structure, method=prunus.ByIndex(keep={names[1]: [0, 9]}))
    assert made.keep == {names[1]: (0, 9)}


def test_a_name_is_in_one_list_only() -> None:
    with pytest.raises(ConfigError, match="conv1: give indices to keep or to remove, not both"):
        prunus.ByIndex(keep={"conv1": [0]}, remove={"conv1": [1]})
    with pytest.raises(ConfigError, match="ByIndex needs indices"):
        prunus.ByIndex()
