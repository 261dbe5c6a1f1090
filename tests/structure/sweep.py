"""Many operators in one network, each between two layers of its own: what can be pruned, and why the rest cannot."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from prunus.structure import Structure
from tests.property.form import Do
from tests.property.networks import Network
from tests.structure.families import network

Function = Callable[[Tensor], Tensor]


def side_by_side(functions: Mapping[str, Function], x: Tensor, make: Callable[[], nn.Module]) -> Network:
    """`head(function(layer(x)))` for every function, on layers of their own: `layers.i` and `heads.i`."""

    def forward(self: Do, x: Tensor) -> tuple[Tensor, ...]:
        rows = zip(self.layers, functions.values(), self.heads, strict=True)
        return tuple(head(function(layer(x))) for layer, function, head in rows)

    layers = nn.ModuleList(make() for _ in functions)
    heads = nn.ModuleList(_head(function(make()(x))) for function in functions.values())
    return network(forward, x, layers=layers, heads=heads)


def _head(y: Tensor) -> nn.Module:
    return nn.Conv2d(y.shape[1], 2, 1) if y.dim() == 4 else nn.Linear(y.shape[-1], 2)


def outcome(structure: Structure, functions: Mapping[str, Any]) -> dict[str, str]:
    """Name of each function -> "" where the layer in front of it can lose channels, else why it cannot."""
    found = dict.fromkeys(functions, "?")
    for group in structure.groups:
        for path in group.producers:
            kind, _, number = path.partition(".")
            if kind == "layers":
                name = list(functions)[int(number)]
                found[name] = "" if group.held is None else found[name] and str(group.held)
    return found
