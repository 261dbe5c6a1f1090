"""Shares of removed filters: one for the model, or one per layer."""

from typing import Any

import pytest
import torch

import prunus
from prunus.errors import ConfigError
from tests.allocation.nets import layers, network


@pytest.fixture(scope="module")
def structure() -> prunus.Structure:
    torch.manual_seed(0)
    return prunus.analyze(*network("residual"))


def counts(made: prunus.Plan) -> dict[str, int]:
    return {name: len(keep) for name, keep in made.keep.items()}


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.7, 0.9])
def test_a_ratio_is_what_a_target_leaves(structure: prunus.Structure, ratio: float) -> None:
    made = prunus.plan(structure, ratio=ratio)
    kept = prunus.Target(channels=round(1 - ratio, 12))
    assert made.keep == prunus.plan(structure, target=kept).keep
    assert made.target == {"channels": kept.fraction, "ratio": ratio}
    ranked = prunus.plan(structure, ratio=ratio, allocation="slamp").keep
    assert ranked == prunus.plan(structure, target=kept, allocation="slamp").keep


def test_both_are_printed() -> None:
    net = layers(4, 20, 3).eval()
    result = prunus.compress(net, torch.randn(3, 4), ratio=0.3)
    assert "Pruned by l2 to channels=0.7, ratio=0.3 (uniform allocation)." in str(result.report)
    assert len(result.plan.keep["0"]) == 14


def test_nothing_removed_is_no_change(structure: prunus.Structure) -> None:
    assert prunus.plan(structure, ratio=0).keep == {}
    assert prunus.plan(structure, ratio={"conv1": 0.0}).keep == {}


@pytest.mark.parametrize("name", ["add", "stem", "conv2"])
def test_a_layer_goes_by_any_of_its_names(structure: prunus.Structure, name: str) -> None:
    assert counts(prunus.plan(structure, ratio={name: 0.25})) == {"add": 6}


def test_layers_that_are_not_named_stay(structure: prunus.Structure) -> None:
    made = prunus.plan(structure, ratio={"conv1": 0.59})
    assert counts(made) == {"conv1": 5} and made.target == {}
    scores = prunus.L2Norm().score(prunus.criteria.Views(structure).group(structure.group("conv1")))
    assert list(made.keep["conv1"]) == sorted(scores.argsort(descending=True)[:5].tolist())


def test_published_ratios_are_met_to_the_channel() -> None:
    structure = prunus.analyze(layers(4, 32, 64, 3).eval(), torch.randn(3, 4))
    made = prunus.plan(structure, ratio={"0": 0.59375, "2": 0.390625})
    assert counts(made) == {"0": 32 - 19, "2": 64 - 25}


def test_one_channel_stays_and_steps_round() -> None:
    structure = prunus.analyze(layers(4, 32, 64, 3).eval(), torch.randn(3, 4))
    assert counts(prunus.plan(structure, ratio={"0": 0.9999})) == {"0": 1}
    assert counts(prunus.plan(structure, ratio={"0": 0.7, "2": 0.3}, multiple_of=8)) == {"0": 8, "2": 48}


def test_rows_lose_equally_many() -> None:
    structure = prunus.analyze(*network("grouped"))
    made = prunus.plan(structure, ratio={"2": 0.4})
    rows = structure.group("2").rows
    assert rows is not None and [len(set(row.tolist()) & set(made.keep["2"])) for row in rows] == [2] * 4


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, 30, float("nan"), True, "0.3", [0.3]])
def test_what_is_no_ratio(structure: prunus.Structure, ratio: Any) -> None:
    with pytest.raises(ConfigError, match="is no share of removed filters, from 0 to below 1"):
        prunus.plan(structure, ratio=ratio)
    with pytest.raises(ConfigError, match=r"conv1: .* is no share of removed filters"):
        prunus.plan(structure, ratio={"conv1": ratio})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "say what to keep"),
        ({"target": prunus.Target(macs=0.5), "ratio": 0.3}, "give one of target, ratio and table; got target and ratio"),
        ({"ratio": {}}, "ratio names no layer"),
        ({"ratio": {"conv3": 0.5}}, "no layer or group 'conv3'; similar: "),
        ({"ratio": {"head": 0.5}}, "head: nothing can be removed here: it is part of the model's output"),
        ({"ratio": {"stem": 0.5, "conv2": 0.25}}, "conv2: its channels are those of 'add', which has another ratio"),
        ({"ratio": {"head": 0.5, "conv1": 2}}, "conv1: 2 is no share"),
        ({"ratio": {"conv1": 0.5}, "allocation": "slamp"}, "numbers per layer leave nothing to allocation"),
        ({"ratio": {"conv1": 0.5}, "floors": 0.5}, "numbers per layer leave nothing to allocation and floors"),
        ({"ratio": {"conv1": 0.5}, "hold": ["bn1"]}, "conv1: held by your settings"),
        ({"ratio": 0.5, "method": prunus.ByIndex(keep={"conv1": [0]})}, "takes no target, ratio or table"),
        ({"table": {"conv1": 3}}, r"table must come from structure\.layers\(\), got dict"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(structure: prunus.Structure, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prunus.plan(structure, **given)


def test_a_name_of_several_groups_has_to_be_said() -> None:
    structure = prunus.analyze(*network("packed attention"))
    with pytest.raises(
        ConfigError, match=r"qkv: several groups; name one of qkv@scaled_dot_product_attention, qkv@"
    ):
        prunus.plan(structure, ratio={"qkv": 0.5})
    assert counts(prunus.plan(structure, ratio={"scaled_dot_product_attention": 0.5})) == {
        "qkv@scaled_dot_product_attention": 8
    }
