"""What a model that was captured in parts is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from prunus.inputs import Inputs

__all__ = ["LeftOut", "Partial", "Parts"]


@dataclass(frozen=True)
class LeftOut:
    """A submodule whose own code could not be captured; the empty path is the model itself."""

    path: str
    reason: str
    place: str | None

    def __str__(self) -> str:
        return f"{self.path or 'the model'}: {self.reason}" + (f" (at {self.place})" if self.place else "")


@dataclass(frozen=True)
class Partial:
    """What a capture in parts knows besides the graph of the parts.

    Attributes:
        whole: The user's model.
        parts: Paths of the submodules that were captured.
        left_out: Submodules whose own code was not, and why. Their children may be parts.
        used_outside: Names of parameters and buffers of the parts that other code uses too.
        touched: Names of parameters that code outside of the parts used, for any example.
        examples: The inputs of each real forward that was watched.
        passed_on: Number of an output of the graph -> its axes of which other code reads the size, for outputs that other
            code only passes on from part to part. Nothing else of them is known outside.
    """

    whole: nn.Module
    parts: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    used_outside: frozenset[str]
    touched: frozenset[str]
    examples: tuple[Inputs, ...]
    passed_on: dict[int, frozenset[int]]


class Parts(nn.Module):
    """Submodules of a model under their own names, called one after another.

    Args:
        whole: The model.
        calls: The path of the submodule that each call goes to; one may be called several times.
        links: For each call, which leaves of its arguments are leaves of what an earlier call returned:
            number -> (call, number).
    """

    def __init__(
        self, whole: nn.Module, calls: tuple[str, ...], links: tuple[dict[int, tuple[int, int]], ...]
    ) -> None:
        super().__init__()
        self.__dict__["_links"] = links
        # not registered as a submodule, but copied along with this one
        self.__dict__["_whole"] = [whole]
        self.__dict__["_calls"] = calls
        for path in calls:
            *parents, name = path.split(".")
            owner: nn.Module = self
            for parent in parents:
                if parent not in owner._modules:
                    owner.add_module(parent, nn.Module())
                owner = owner.get_submodule(parent)
            owner._modules[name] = whole.get_submodule(path)

    @property
    def whole(self) -> nn.Module:
        """The model that the submodules belong to."""
        return self.__dict__["_whole"][0]

    @property
    def calls(self) -> tuple[str, ...]:
        """The path of the submodule that each call goes to."""
        return self.__dict__["_calls"]

    @property
    def links(self) -> tuple[dict[int, tuple[int, int]], ...]:
        """For each call, leaves of its arguments that earlier calls returned."""
        return self.__dict__["_links"]

    def forward(self, *inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Any, ...]:
        """One output for each call, from its positional and keyword arguments."""
        results = []
        for path, links, given in zip(self.calls, self.links, inputs, strict=True):
            module: nn.Module = self
            for name in path.split("."):
                module = module._modules[name]  # type: ignore[assignment]
            leaves, spec = pytree.tree_flatten(given)
            for number, (call, returned) in links.items():
                leaves[number] = pytree.tree_leaves(results[call])[returned]
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            results.append(module(*args, **kwargs))
        return tuple(results)
