"""Run a captured graph on numbers, and small networks to capture."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.inputs import Inputs


def run_graph(captured: Captured, inputs: Inputs) -> Any:
    """What the graph computes, in the form that the model's own forward returns."""
    leaves, spec = pytree.tree_flatten((inputs.args, inputs.kwargs))
    assert spec == captured.in_spec
    values: dict[str, Any] = {**captured.tensors, **dict(zip(captured.inputs, leaves, strict=True))}
    owner = captured.graph.owning_module
    module = torch.fx.GraphModule(owner if owner is not None else nn.Module(), captured.graph)
    arguments = [values[node.name] for node in captured.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        return pytree.tree_unflatten(torch.fx.Interpreter(module).run(*arguments), captured.out_spec)


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def calls(captured: Captured) -> list[str]:
    """Targets of the calls in the graph, in order."""
    return [str(node.target) for node in captured.graph.nodes if node.op == "call_function"]


class ConvNet(nn.Module):
    """Convolution, norm, in-place activation, residual, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = x + self.relu(self.conv2(x))
        return self.fc(self.drop(x.mean((2, 3))))


class TiedLanguageModel(nn.Module):
    """An embedding that is also the output layer, a non-persistent buffer, dictionaries in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Parameter(torch.zeros(2))
        self.register_buffer("positions", torch.arange(16), persistent=False)
        self.table = torch.linspace(0, 1, 96).reshape(16, 6)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0, **more: Any
    ) -> dict[str, Any]:
        hidden = self.embed(ids) + self.table[self.positions[: ids.shape[1]]]
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1)
        hidden = torch.tanh(self.body(hidden)) * scale + torch.tensor([0.5, 0, 0, 0, 0, 0])
        return {"logits": self.head(hidden), "hidden": (hidden, None), "size": ids.shape[1]}
