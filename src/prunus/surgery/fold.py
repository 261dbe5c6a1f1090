"""Constants that leave: what they add to the layers that read them is put into these layers' biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from prunus.capture import Captured
from prunus.constants import Bounds, Reader, bounds_of, reader_of
from prunus.criteria.reaching import Reaching
from prunus.structure import Structure
from prunus.surgery.biases import bias_path, give_bias, with_own_graph
from prunus.surgery.masks import Masks
from prunus.surgery.placement import module_path

__all__ = ["Folded", "fold_constants"]


@dataclass(frozen=True)
class Folded:
    """What became of channels that leave and are constant, but not zero.

    Attributes:
        into: path of a layer -> how many of its inputs its bias, or the mean behind it, has taken up.
        lost: path of a layer -> how many of its inputs it cannot take up: it pads, or has no bias.
        biases: paths of layers that were given a bias.
    """

    into: Mapping[str, int]
    lost: Mapping[str, int]
    biases: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report."""
        taken, lost = (", ".join(f"{n} at {path}" for path, n in d.items()) for d in (self.into, self.lost))
        return (
            *(
                [f"constants of removed channels were taken up exactly by the layers that read them: {taken}"]
                if taken
                else []
            ),
            *(
                [
                    f"constants of removed channels are lost, as the layers that read them pad or have no bias: {lost}"
                ]
                if lost
                else []
            ),
        )


def fold_constants(
    structure: Structure, small: Captured, keep: Tensor, allow_bias: bool = False
) -> tuple[Captured, Folded]:
    """The cut network with the constants of what was removed in its biases.

    Args:
        structure: of the original.
        small: the cut network; its tensors are not written to.
        keep: (labels,) bool: what stays.
        allow_bias: layers without a bias may be given one.
    """
    captured, masks = structure.captured, Masks(structure.tracks, keep)
    found: list[tuple[Reader, Tensor]] = []
    bounds: dict[str, Bounds] | None = None
    for node in captured.graph.nodes:
        reader = reader_of(captured, node)
        gone = None if reader is None else _gone(masks, node.args[0], reader.axis)
        if reader is None or gone is None:
            continue
        bounds = bounds_of(captured) if bounds is None else bounds
        constant = _constants(bounds.get(node.args[0].name), gone, reader.axis)
        if constant is not None:
            found.append((reader, constant))
    if not found:
        return small, Folded({}, {})
    return _folded(structure, with_own_graph(small), masks, found, allow_bias)


def _gone(masks: Masks, node: fx.Node, axis: int) -> Tensor | None:
    """(channels,) what leaves of a value along an axis; None where nothing does, or not along that axis alone."""
    mask = masks.of(node.name)
    if mask is None or any(size > 1 for i, size in enumerate(mask.shape) if i != axis % mask.dim()):
        return None
    return ~mask.flatten()


def _constants(bounds: Bounds | None, gone: Tensor, axis: int) -> Tensor | None:
    """(channels,) constants of what leaves, zero for all else; None where there are none."""
    line = None if bounds is None else bounds.line(axis)
    if line is None:
        return None
    constant = torch.where(line.known & gone, line.low, 0)
    return constant if bool(constant.any()) else None


def _folded(
    structure: Structure, small: Captured, masks: Masks, found: list[tuple[Reader, Tensor]], allow_bias: bool
) -> tuple[Captured, Folded]:
    """Fold into `small`, whose graph and dictionaries are its own."""
    reaching, biases = Reaching(structure), []
    into: dict[str, int] = {}
    lost: dict[str, int] = {}
    calls = {node.meta.get("origin", node.name): node for node in small.graph.nodes}
    for reader, constant in found:
        path, count = module_path(reader.node) or reader.node.name, int((constant != 0).sum())
        weight = reaching.tensor(reader.node.args[1])  # type: ignore[arg-type]
        offset = None if weight is None else _offset(reader, weight, constant, masks)
        if offset is not None and not bool(offset.any()):
            continue
        target = reader.bias or reader.mean
        if target is None and offset is not None and reader.node.name in calls:
            target = _own_bias(
                small, calls[reader.node.name], offset, allow_bias and reader.everywhere, biases
            )
        fits = offset is not None and target in small.tensors and small.tensors[target].shape == offset.shape
        if offset is not None and target is not None and fits and reader.everywhere:
            taken = target == reader.mean
            small.tensors[target] = _plus(small.tensors[target], -offset if taken else offset)
        where = into if fits and reader.everywhere else lost
        where[path] = where.get(path, 0) + count
    return small, Folded(into, lost, tuple(biases))


def _own_bias(small: Captured, call: fx.Node, offset: Tensor, allowed: bool, biases: list[str]) -> str | None:
    """Placeholder of a bias that the plan gave to a layer, or of one that it is given now, where that is allowed."""
    bias = call.args[2] if len(call.args) > 2 else call.kwargs.get("bias")
    if isinstance(bias, fx.Node):
        return bias.name if bias.op == "placeholder" and len(bias.users) == 1 else None
    path = bias_path(small, call) if allowed else None
    if path is None:
        return None
    biases.append(path)
    like = small.tensors[call.args[1].name]  # type: ignore[union-attr]
    return give_bias(small, call, path, like.detach().new_zeros(offset.shape))


def _offset(reader: Reader, weight: Tensor, constant: Tensor, masks: Masks) -> Tensor | None:
    """(kept out,) what the constants add; None where the outputs that stay are no line."""
    offset, mask = reader.contribution(weight.cpu(), constant), masks.of(reader.node.name)
    if mask is None:
        return offset
    gone = _gone(masks, reader.node, reader.axis)
    return None if gone is None or len(gone) != len(offset) else offset[~gone]


def _plus(tensor: Tensor, offset: Tensor) -> Tensor:
    moved = (tensor.detach().double() + offset.to(tensor.device)).to(tensor.dtype)
    return (
        torch.nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else moved
    )
