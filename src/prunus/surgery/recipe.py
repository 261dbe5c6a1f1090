"""What is needed to build an nn module that computes exactly what one call in a graph computes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

__all__ = ["Builder", "Recipe", "bound_arguments", "find_recipe", "lifts", "rank_of"]

Builder = Callable[[fx.Node, dict[str, Any]], "Recipe | None"]

_BUILDERS: dict[torch._ops.OpOverload, Builder] = {}


@dataclass(frozen=True)
class Recipe:
    """An nn module equivalent to one call.

    Attributes:
        cls: Class of the module.
        settings: Constructor arguments, all of them constants.
        weights: Attribute of the module -> the value in the graph that takes its place.
        inputs: What the module is called with.
        always: Build the module even where the original called a function (dropout: only a module follows
            ``train()`` and ``eval()``).
    """

    cls: type[nn.Module]
    settings: dict[str, Any]
    weights: dict[str, fx.Node] = field(default_factory=dict)
    inputs: tuple[Any, ...] = ()
    always: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two calls that one module can serve."""
        weights = tuple((attribute, node.name) for attribute, node in sorted(self.weights.items()))
        return self.cls, tuple(sorted(self.settings.items())), weights

    def build(self) -> nn.Module:
        """The module; its tensors are on the meta device, the caller puts real ones in their place."""
        return self.cls(**self.settings, **({"device": "meta"} if self.weights else {}))


def lifts(*operators: torch._ops.OpOverload) -> Callable[[Builder], Builder]:
    """Register a function as the builder of the recipes for some operators.

    The function gets the call and its arguments by name, defaults filled in; it returns None when no module
    computes just that.
    """

    def register(builder: Builder) -> Builder:
        for operator in operators:
            if operator in _BUILDERS:
                raise ValueError(f"{operator} has two builders")
            _BUILDERS[operator] = builder
        return builder

    return register


def find_recipe(node: fx.Node) -> Recipe | None:
    """The recipe for a call, or None when it has to stay a call of a function."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    builder = _BUILDERS.get(node.target)
    if builder is None:
        return None
    recipe = builder(node, bound_arguments(node))
    if recipe is None or any(_holds_node(value) for value in recipe.settings.values()):
        return None
    if not all(isinstance(weight, fx.Node) for weight in recipe.weights.values()):
        return None
    return recipe


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call by their names in the operator's schema; lists as tuples, defaults filled in."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        raise TypeError(f"{node.name} calls {target}, which has no schema")
    positional = list(node.args)
    arguments: dict[str, Any] = {}
    for argument in target._schema.arguments:
        if argument.name in node.kwargs:
            value: Any = node.kwargs[argument.name]
        elif positional and not argument.kwarg_only:
            value = positional.pop(0)
        else:
            value = argument.default_value
        arguments[argument.name] = tuple(value) if isinstance(value, list) else value
    return arguments


def rank_of(value: Any) -> int | None:
    """Number of dimensions of a value in the graph; None when it is no tensor or not known."""
    example = value.meta.get("val") if isinstance(value, fx.Node) else None
    return example.dim() if isinstance(example, torch.Tensor) else None


def _holds_node(value: Any) -> bool:
    return isinstance(value, fx.Node) or (
        isinstance(value, tuple) and any(_holds_node(item) for item in value)
    )
