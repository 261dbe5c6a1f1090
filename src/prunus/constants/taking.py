"""Layers that can take a constant of their inputs up, exactly: by their bias, or the mean of the batch normalization behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunus.capture import Captured
from prunus.constants.operators import pads
from prunus.evidence.facing import kind_of

__all__ = ["Reader", "reader_of"]

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear layer or convolution.

    Attributes:
        node: its call.
        axis: of the input, along which its channels lie.
        bias: placeholder that an offset is added to; None where there is none.
        mean: placeholder that an offset is taken from instead: the running mean behind the layer.
        everywhere: a constant input makes the same constant at every position: it does not pad.
    """

    node: fx.Node
    axis: int
    bias: str | None
    mean: str | None
    everywhere: bool

    @property
    def takes_up(self) -> bool:
        """Whether a constant can be taken up."""
        return self.everywhere and (self.bias is not None or self.mean is not None)

    def outputs(self, weight: Tensor) -> int:
        """Number of outputs."""
        return weight.shape[0]

    def by_input(self, weight: Tensor) -> Tensor:
        """(in,) whether any weight that reads an input is not zero."""
        if self.axis == -1:
            return (weight != 0).any(0)
        groups = int(_argument(self.node, "groups", 1))
        return (weight.flatten(2) != 0).any(2).unflatten(0, (groups, -1)).any(1).flatten()

    def contribution(self, weight: Tensor, constant: Tensor) -> Tensor:
        """(out,) what constant inputs (in,) add to the outputs."""
        if self.axis == -1:
            return weight.double() @ constant
        groups = int(_argument(self.node, "groups", 1))
        taps = weight.double().flatten(2).sum(2)  # (out, in of a group)
        return (taps.unflatten(0, (groups, -1)) @ constant.view(groups, -1, 1)).flatten()


def reader_of(captured: Captured, node: fx.Node) -> Reader | None:
    """The layer that a node calls; None where it is none."""
    kind = kind_of(node)
    if node.op != "call_function" or kind not in ("linear", *_CONVOLUTIONS):
        return None
    dims = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    if kind != "linear" and dims != int(kind[4]) + 2:
        return None
    bias, mean = _argument(node, "bias", None), None
    own = isinstance(bias, fx.Node) and bias.name in captured.tensors and len(bias.users) == 1
    if bias is None:
        mean = _mean_behind(captured, node, kind)
    everywhere = kind == "linear" or not pads(_argument(node, "padding", 0))
    axis = -1 if kind == "linear" else 1
    return Reader(node, axis, bias.name if own else None, mean, everywhere)  # type: ignore[union-attr]


def _mean_behind(captured: Captured, node: fx.Node, kind: str) -> str | None:
    (user,) = node.users if len(node.users) == 1 else (None,)
    if user is None or user.target is not torch.ops.aten.batch_norm.default or user.args[5]:
        return None
    mean, dims = user.args[3], node.meta["val"].dim()
    if not isinstance(mean, fx.Node) or mean.name not in captured.tensors or len(mean.users) > 1:
        return None
    return mean.name if kind != "linear" or dims == 2 else None


def _argument(node: fx.Node, name: str, default: Any) -> Any:
    names = [x.name for x in node.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return given.get(name, default)
