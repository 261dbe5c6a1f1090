"""What a plan and its report say about how numbers came about; plans of before are read."""

import json

import pytest
import torch

import prunus
from prunus.errors import PlanError
from prunus.plan import Plan
from tests.allocation.nets import network

OPTIONS = prunus.Options(layer_norm="tss_norm", step_size=2)


@pytest.fixture(scope="module")
def result() -> prunus.Result:
    torch.manual_seed(0)
    net, x = network("residual")
    return prunus.compress(net, x, ratio=0.5, allocation="slamp", options=OPTIONS)


def test_allocation_and_options_are_recorded(result: prunus.Result) -> None:
    content = json.loads(result.plan.to_json())
    assert content["allocation"] == "slamp" and content["options"] == {
        "layer_norm": "tss_norm",
        "step_size": 2,
    }
    assert Plan.from_json(result.plan.to_json()) == result.plan
    assert result.report.allocation == "slamp" and result.report.options == result.plan.options
    said = "Pruned by l2 to channels=0.5, ratio=0.5 (slamp allocation, layer_norm=tss_norm, step_size=2)."
    assert said in str(result.report)


def test_what_was_chosen_by_default_is_recorded() -> None:
    structure = prunus.analyze(*network("residual"))
    assert prunus.plan(structure, ratio=0.5).allocation == "uniform"
    assert prunus.plan(structure, target=prunus.Target(macs=0.5)).allocation == "global"
    assert prunus.plan(structure, ratio={"add": 0.5}).allocation == "manual"
    assert prunus.plan(structure, method=prunus.ByIndex(remove={"add": [0]})).allocation == ""


def test_plans_without_them_are_read(result: prunus.Result) -> None:
    content = json.loads(result.plan.to_json())
    del content["allocation"], content["options"]
    old = Plan.from_json(json.dumps(content))
    assert old.keep == result.plan.keep and old.allocation == "" and old.options == {}


@pytest.mark.parametrize(("entry", "value"), [("allocation", 3), ("options", "tss_norm")])
def test_damaged_entries_are_refused(result: prunus.Result, entry: str, value: object) -> None:
    content = {**json.loads(result.plan.to_json()), entry: value}
    with pytest.raises(PlanError, match=entry):
        Plan.from_json(json.dumps(content))
