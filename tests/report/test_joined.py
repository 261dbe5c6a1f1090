"""Reports of several steps say what each of them was and did, and what all of them come to."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.report.replaced import replaced_line

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


@pytest.fixture(scope="module")
def twice() -> prunus.Result:
    """Pruned to three quarters, and again."""
    model = net()
    first = prunus.compress(model, X[:4], target=prunus.Target(channels=0.75))
    second = prunus.compress(first.model, X[:4], method="l1", target=prunus.Target(macs=0.7))
    return prunus.apply(net(), first.plan.followed_by(second.plan))


def test_two_prunings_are_one_of_groups_and_layers(twice: prunus.Result):
    report, model = twice.report, twice.model
    sizes = {group.name: (group.size, group.kept) for group in report.groups}
    assert sizes["0"] == (32, model[0].out_features) and sizes["2"] == (32, model[2].out_features)  # type: ignore[index]
    layers = {layer.path: (layer.before, layer.after) for layer in report.layers}
    assert layers["2"] == ((32, 32), tuple(model[2].weight.shape))  # type: ignore[index]
    assert report.before.params == sum(p.numel() for p in net().parameters())
    assert report.after.params == sum(p.numel() for p in model.parameters())


def test_two_prunings_are_said_as_two(twice: prunus.Result):
    text = str(twice.report)
    assert text.startswith(
        "Pruned by l2 to channels=0.75 (uniform allocation). Then pruned by l1 to macs=0.7"
    )
    assert "1. Verified: differs" in text and "2. Verified: differs" in text
    assert [step.target for step in twice.report.steps] == [{"channels": 0.75}, {"macs": 0.7}]
    assert json.loads(twice.report.to_json())["steps"][1]["method"] == "l1"


def test_pruning_and_then_decomposing_are_said_as_they_are():
    pruned = prunus.compress(net(), X[:4], target=prunus.Target(channels=0.75))
    report = prunus.decompose(pruned, target=prunus.Target(macs=0.8)).report
    text = str(report)
    assert text.startswith(
        "Pruned by l2 to channels=0.75 (uniform allocation). Then decomposed by svd to macs=0.8."
    )
    first, second = report.steps
    assert "1. Verified: differs from the masked original" in text
    assert "2. Verified: replaced layers differ" in text
    assert first.verification == pruned.report.verification and second.replaced and not first.replaced
    assert {group.name: group.kept for group in report.groups}["0"] == 24


def test_three_steps_are_three():
    result: Any = prunus.compress(net(), X[:4], target=prunus.Target(channels=0.75))
    for ranks in ({"0": 5}, {"2": 6}):
        result = prunus.decompose(result, ranks=ranks)
    assert len(result.report.steps) == 3 and not any(step.steps for step in result.report.steps)
    assert [layer.path for layer in result.report.replaced if layer.reason is None] == ["0", "2"]


def test_refusals_are_counted_as_such_and_not_by_their_words():
    report = prunus.decompose(net(), X[:4], ranks={"0": 8, "2": 4}).report
    assert "1 of 3 layers replaced; 1 refused" in replaced_line(report.replaced)
    renamed = [
        dataclasses.replace(layer, reason="is the payload, no faster than others", refused=False)
        for layer in report.replaced
    ]
    assert "; 0 refused" in replaced_line(tuple(renamed))


def test_no_error_is_less_than_none():
    result = prunus.compress(net(), X[:4], target=prunus.Target(channels=0.75), data=X)
    recovery = dict(result.report.recovery or {})
    recovery["repairs"] = [{**repair, "after": -1e-9} for repair in recovery["repairs"]]
    recovery["groups"] = {"0": {"before": 0.1, "after": -1e-4}}
    text = str(dataclasses.replace(result.report, recovery=recovery))
    assert "-0.0%" not in text and "0.0%" in text
