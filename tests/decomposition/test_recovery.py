"""With data, the model with replaced layers is fitted to what the original computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.capture import capture
from prunus.decomposition.align import with_names_of
from prunus.errors import ConfigError


class Net(nn.Module):
    """A shortcut, a padding mode with an operator of its own, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.twice = nn.Linear(16, 16)
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.body(x)).relu().mean((2, 3))
        return self.head(self.twice(self.twice(x).relu()))


RANKS = {"stem": [3, 6], "body": [6, 6]}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    made = Net()
    for _ in range(4):
        made(torch.randn(32, 3, 8, 8))
    return made.eval()


def batches(count: int, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    mix = torch.randn(3, 3)
    return [torch.einsum("nchw,cd->ndhw", torch.randn(64, 3, 8, 8).abs(), mix) for _ in range(count)]


def decomposed(net: nn.Module, **options: Any) -> Any:
    options = {"recover": True, **options}
    return prunus.decompose(net, torch.randn(2, 3, 8, 8), method=("tucker", "svd"), ranks=RANKS, **options)


def lost(net: nn.Module, other: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        return sum(float((net(x) - other(x)).square().sum()) for x in data)


def test_graphs_are_matched_value_by_value(net: nn.Module) -> None:
    result = decomposed(net)
    original = capture(net, torch.randn(2, 3, 8, 8))
    chains = {path: result.model.get_submodule(path) for path in RANKS}
    before = [node.name for node in result.captured.graph.nodes]
    matched = with_names_of(original, result.captured, chains)
    assert matched is not None
    assert [node.name for node in result.captured.graph.nodes] == before, "the graph that is given stays"
    names = {node.name: node for node in matched.graph.nodes}
    assert len(names) == len(matched.graph.nodes)
    paths = {"stem": "stem.1", "body": "body.2"}
    for node in original.graph.nodes:
        if node.op != "call_function":
            continue
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        if path == "body" and node.target is torch.ops.aten.pad.default:
            assert node.name not in names  # it is inside the chain now
        else:
            assert names[node.name].target == node.target
            weight = names[node.name].args[1] if path in paths else None
            if isinstance(weight, torch.fx.Node):
                assert matched.names[weight.name] == f"{paths[path]}.weight"
    others = {name: chain for name, chain in chains.items() if name != "body"}
    assert with_names_of(original, result.captured, others) is None


def test_fitting_brings_the_outputs_nearer(net: nn.Module) -> None:
    state = copy.deepcopy(net.state_dict())
    data, unseen = batches(8, 1), batches(4, 1)
    plain, fitted = decomposed(net, data=data, recover=False), decomposed(net, data=data)
    assert plain.report.recovery is None
    assert decomposed(net).report.recovery is None, "there is nothing to fit to without data"
    assert lost(net, fitted.model, unseen) < 0.7 * lost(net, plain.model, unseen)
    repairs = {repair["layer"]: repair for repair in fitted.report.recovery["repairs"]}
    assert {"body.2", "head"} <= set(repairs)
    assert "stem.1" in fitted.report.recovery["left"], (
        "its input is the original's, for which it is the best one already"
    )
    assert all(repair["after"] <= repair["before"] for repair in repairs.values())
    one, other = plain.model.state_dict(), fitted.model.state_dict()
    for path in ("stem.0", "body.0", "body.1"):
        assert torch.equal(one[f"{path}.weight"], other[f"{path}.weight"]), "only the last factor is fitted"
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert "epaired" in str(fitted.report)


def test_the_graph_of_the_result_is_that_of_its_model(net: nn.Module) -> None:
    data = batches(4, 2)
    result = decomposed(net, data=data)
    own = dict(result.model.named_parameters()) | dict(result.model.named_buffers())
    for name, tensor in result.captured.tensors.items():
        assert tensor is own[result.captured.names[name]]
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    x = torch.randn(3, 3, 8, 8)
    fresh = prunus.apply(copy.deepcopy(net), result.plan).model
    fresh.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(fresh(x), result.model(x))


def test_steps_have_names(net: nn.Module) -> None:
    result = decomposed(net, data=batches(4, 3), recover="batch_norm")
    assert {repair["step"] for repair in result.report.recovery["repairs"]} == {"batch_norm"}
    with pytest.raises(ConfigError, match="no step 'nonsense'"):
        decomposed(net, data=batches(1, 3), recover="nonsense")
