"""Keep the temperature of a softmax that the class computes from the width of its heads.

An attention without a stated scale divides by the root of the head's width, and so does a forward that computes the
scale from an attribute: with narrower heads both divide by less. The class cannot be told otherwise, but where nothing
nonlinear lies between the query's projection and the product, the projection's weights can make up for it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.capture import Captured, concrete
from prunus.structure import Structure, Value
from prunus.structure.labels import compact, varying
from prunus.surgery.align import align
from prunus.surgery.recipe import bound_arguments
from prunus.surgery.record import Call, Recording

__all__ = ["compensation"]

aten = torch.ops.aten

_THROUGH = frozenset(
    "view reshape _unsafe_view transpose permute contiguous clone split split_with_sizes chunk unbind slice select unsqueeze "
    "squeeze expand flatten unflatten dropout alias to _to_copy neg roll index_select repeat repeat_interleave t detach".split()
)
_PARTS = frozenset(["split", "split_with_sizes", "chunk", "slice", "narrow", "getitem"])
_PRODUCTS = frozenset(["matmul", "bmm", "mm"])  # scaling one side scales the result
_NORMS = frozenset(["batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm"])


@dataclass(frozen=True)
class _Source:
    """Parameters that a value is proportional to.

    Attributes:
        tensors: (placeholder, axis of the outputs).
        node: the layer they act in.
        arrives: the node by whose channels it is told which of its outputs matter.
        in_part: the layer takes a part of the tensors, as of projections that are packed into one.
    """

    tensors: tuple[tuple[str, int], ...]
    node: fx.Node
    arrives: fx.Node
    in_part: bool = False


def compensation(
    structure: Structure, small: Captured, candidate: nn.Module, recording: Recording, keep: Tensor
) -> tuple[str, dict[str, Tensor]]:
    """Find by what to scale parameters so that products computed with another factor come out as wanted.

    Args:
        structure: Of the original, for its labels.
        small: The small graph, which has the factors that are wanted.
        candidate: The module.
        recording: One forward of the candidate.
        keep: (labels,) which labels stay.

    Returns:
        What is done, for the report, and parameter -> what to multiply it by; both empty when nothing is wrong,
        or when there is no exact way.
    """
    scalings: dict[str, Tensor] = {}
    said: dict[str, None] = {}
    for operand, factor in _wrong_factors(recording, small, candidate):
        sources = _sources(operand, operand)
        if sources is None:
            return "", {}
        for source in sources:
            rows = _rows_of(structure, source, keep)
            if source.in_part and rows is None:
                return "", {}
            for placeholder, axis in source.tensors:
                if not _scale(scalings, small.tensors[placeholder], placeholder, axis, rows, factor):
                    return "", {}
            said[f"{small.names[source.tensors[0][0]]} by {factor:.6g}"] = None
    if not scalings:
        return "", {}
    note = (
        "its forward takes the softmax's temperature from the width of the heads; to keep the original temperature, the "
        f"query side was multiplied: {', '.join(said)}"
    )
    return note, {small.names[placeholder]: scaling for placeholder, scaling in scalings.items()}


def _wrong_factors(
    recording: Recording, small: Captured, candidate: nn.Module
) -> Iterator[tuple[fx.Node, float]]:
    """(operand, what it has to be multiplied by) for each product with another factor than wanted."""
    alignment = align(recording, small.with_(model=candidate), small)
    for call, node in zip(alignment.calls, alignment.new, strict=True):
        if node is None:
            continue
        factors = _factors(call, node)
        if factors is None:
            continue
        wanted, actual = factors
        if wanted and actual and not math.isclose(wanted, actual, rel_tol=1e-9):
            yield node.args[0], wanted / actual  # type: ignore[misc]


def _factors(call: Call, node: fx.Node) -> tuple[float, float] | None:
    """The factor that a node multiplies its first operand by, and the one that the call used."""
    name = _name(node)
    if name == "scaled_dot_product_attention":
        query = node.args[0].meta["val"]  # type: ignore[union-attr]
        usual = 1 / math.sqrt(concrete(query.shape[-1]))
        given = call.kwargs.get("scale", call.args[6] if len(call.args) > 6 else None)
        return bound_arguments(node)["scale"] or usual, given or usual
    if name not in ("mul", "div") or len(node.args) < 2 or len(call.args) < 2:
        return None
    wanted, actual = node.args[1], call.args[1]
    if not isinstance(wanted, float) or not isinstance(actual, float):
        return None
    return (wanted, actual) if name == "mul" else (1 / wanted, 1 / actual) if wanted and actual else None


def _name(node: Any) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__.removesuffix("_") if packet is not None else getattr(node.target, "__name__", "")


def _sources(node: Any, arrives: Any) -> list[_Source] | None:
    """Parameters whose scaling scales the value, all by the same factor; None where there is no such set.

    `arrives` is the last node on the way that still has their outputs as channels: a product sums over them.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    name = _name(node)
    if name in _THROUGH or name == "getitem":
        return _sources(node.args[0], arrives)
    if name in _PRODUCTS:
        return _sources(node.args[0], node.args[0]) or _sources(node.args[1], node.args[1])
    if name == "mul":
        return _sources(node.args[0], arrives) or _sources(node.args[1], arrives)
    if name == "div":
        return _sources(node.args[0], arrives)
    if name in ("add", "sub"):
        return _all_of(node.args[:2], arrives)
    if name in ("cat", "stack"):
        return _all_of(node.args[0], arrives)
    pairs = _affine(node, name)
    whole = [(_parameter(tensor), axis) for tensor, axis in pairs]
    if not pairs or any(tensor is None for tensor, _ in whole):
        return None
    tensors = tuple((tensor.name, axis) for tensor, axis in whole if tensor is not None)
    return [_Source(tensors, node, arrives, whole != pairs)]


def _all_of(nodes: Any, arrives: fx.Node) -> list[_Source] | None:
    found = [_sources(node, arrives) for node in nodes]
    return (
        None if any(sources is None for sources in found) else [s for sources in found for s in sources or ()]
    )


def _affine(node: fx.Node, name: str) -> list[tuple[Any, int]]:
    """Weight and bias of a layer, with the axis of its outputs in each; none for what is no layer."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    a = bound_arguments(node)
    if name == "addmm":
        pair = [(a["mat2"], 1), (a["self"], 0)]
    elif name == "linear" or (name.startswith("conv") and "transpose" not in name):
        pair = [(a["weight"], 0), (a["bias"], 0)]
    elif name in _NORMS:
        pair = [(a["weight"], -1), (a.get("bias"), -1)]
    else:
        return []
    return [] if pair[0][0] is None else [(tensor, axis) for tensor, axis in pair if tensor is not None]


def _parameter(tensor: Any) -> fx.Node | None:
    """The parameter that a weight is, or is a part of."""
    while isinstance(tensor, fx.Node) and tensor.op == "call_function" and _name(tensor) in _PARTS:
        tensor = tensor.args[0]
    return tensor if isinstance(tensor, fx.Node) and tensor.op == "placeholder" else None


def _rows_of(structure: Structure, source: _Source, keep: Tensor) -> Tensor | None:
    """Which outputs of a layer, or of the packed projections that it is a part of, reach the operand; None for all."""
    if source.in_part:
        return _rows(structure, *source.tensors[0], source.arrives, keep)
    made = structure.values.get(source.node.name)
    axis = (
        1 if _name(source.node).startswith("conv") else len(made.shape) - 1 if isinstance(made, Value) else 0
    )
    return _rows(structure, source.node.name, axis, source.arrives, keep)


def _rows(structure: Structure, made_by: str, axis: int, operand: fx.Node, keep: Tensor) -> Tensor | None:
    """Which positions along an axis of a value (of those that stay) reach the operand; None for all."""
    made, used = structure.values.get(made_by), structure.values.get(operand.name)
    if not isinstance(made, Value) or not isinstance(used, Value) or not made.tracks or not used.tracks:
        return None
    arriving = torch.cat([track.reshape(-1).unique() for track in used.tracks])
    for track in made.tracks:
        if varying(track) != (axis,):  # that of the tokens, say, which says nothing about outputs
            continue
        labels = compact(track, (axis,))
        reaches = torch.isin(labels, arriving)[keep[labels]]
        if bool(reaches.any()):
            return None if bool(reaches.all()) else reaches
    return None


def _scale(
    scalings: dict[str, Tensor],
    tensor: Tensor,
    placeholder: str,
    axis: int,
    rows: Tensor | None,
    factor: float,
) -> bool:
    """Note a factor for some outputs of a parameter; False where another factor is noted already."""
    shape = [1] * tensor.dim()
    shape[axis] = tensor.shape[axis]
    wanted = torch.full((tensor.shape[axis],), factor, dtype=torch.float64)
    if rows is not None:
        if len(rows) != len(wanted):
            return False
        wanted[~rows] = 1.0
    wanted = wanted.reshape(shape)
    before = scalings.get(placeholder)
    if before is not None:
        # the same projection may serve several products; different rows of it may need different factors
        clash = (before != 1) & (wanted != 1) & ~torch.isclose(before, wanted)
        if bool(clash.any()):
            return False
        wanted = torch.where(before != 1, before, wanted)
    scalings[placeholder] = wanted
    return True
