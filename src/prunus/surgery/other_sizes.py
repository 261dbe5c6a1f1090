"""Inputs of other sizes than the example's, where sizes are free; and whether the captured graph holds for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.dynamic import batch_axes
from prunus.capture.outputs import only_plain_outputs
from prunus.capture.preserve import buffers_kept, left_as_found
from prunus.capture.shapes import Shapes
from prunus.inputs import Inputs
from prunus.surgery.difference import relative_error
from prunus.surgery.precision import exact_arithmetic
from prunus.surgery.reference import Interpreter

__all__ = ["other_sizes", "shapes_that_hold"]

_TOLERANCE = 1e-3
_FIXED = "at other sizes the model computes something else than its graph"


def _half(size: int) -> int:
    return size // 2 if size % 2 == 0 and size > 3 else size + 1


# what becomes of other axes than the batch, and the batch
_CHANGES: tuple[tuple[Callable[[int], int], int], ...] = (
    (_half, 1),
    (_half, 3),
    (lambda size: 2 * size, 1),
    (lambda size: size, 1),
    (lambda size: size, 3),
)


def other_sizes(captured: Captured, inputs: Inputs) -> Iterator[Inputs]:
    """Inputs that fit the graph and have other sizes than the given ones, small ones first.

    Values are repeated or left out, so indices stay valid. Sizes that are equal stay so.
    """
    leaves, spec = pytree.tree_flatten((inputs.args, inputs.kwargs))
    shapes = captured.shapes
    if not shapes.free or not captured.is_program or len(leaves) != len(shapes.names):
        return
    batch = batch_axes(inputs)
    for change, samples in _CHANGES:
        resized = list(leaves)
        for leaf, axis in shapes.free:
            size = resized[leaf].shape[axis]
            wanted = samples if (leaf, axis) in batch else change(size)
            places = torch.arange(wanted, device=resized[leaf].device) % size
            resized[leaf] = resized[leaf].detach().index_select(axis, places)
        if shapes.problem(resized) is None and any(
            _differ(*pair) for pair in zip(leaves, resized, strict=True)
        ):
            yield Inputs(*pytree.tree_unflatten(resized, spec))


def _differ(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and one.shape != other.shape


def shapes_that_hold(captured: Captured) -> Shapes:
    """The capture's shapes; less of them is free where the model itself computes something else at other sizes.

    torch.export follows one call: what a forward does at another size it cannot see where nothing asks for the size (a module
    that remembers a table of the length that it met first).
    """
    shapes, single = captured.shapes, False
    for inputs in other_sizes(captured, captured.run_inputs):
        holds = _graph_holds(captured, inputs)
        if holds:
            return _several(captured) if single else shapes
        if holds is not None and pytree.tree_leaves((inputs.args, inputs.kwargs))[0].shape[0] == 1:
            single = True
        elif holds is not None:
            return _fixed(captured)
    return _fixed(captured) if single else shapes


def _several(captured: Captured) -> Shapes:
    """Shapes without a batch of one."""
    axes = batch_axes(captured.run_inputs) & captured.shapes.free
    conditions = [(">", f"{captured.shapes.names[leaf]}.{axis}", 1) for leaf, axis in sorted(axes)]
    return dataclasses.replace(captured.shapes, conditions=(*captured.shapes.conditions, *conditions))


def _fixed(captured: Captured) -> Shapes:
    shapes = captured.shapes
    leaves = pytree.tree_leaves((captured.run_inputs.args, captured.run_inputs.kwargs))
    sizes = tuple(tuple(x.shape) if isinstance(x, Tensor) else () for x in leaves)
    reasons = {f"{shapes.names[leaf]}.{axis}": _FIXED for leaf, axis in sorted(shapes.free)}
    return dataclasses.replace(shapes, sizes=sizes, conditions=(), reasons={**shapes.reasons, **reasons})


def _graph_holds(captured: Captured, inputs: Inputs) -> bool | None:
    """Whether the graph computes what the model does; None if that cannot be told on these inputs."""
    tensors = captured.tensors.values()
    model = captured.model
    if model is None or any(t.is_floating_point() and t.element_size() < 4 for t in tensors):
        return None
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (inputs.args, inputs.kwargs))
    with (
        exact_arithmetic(list({tensor.device for tensor in tensors}), 0),
        left_as_found(model),
        buffers_kept(model),
    ):
        try:
            with only_plain_outputs(model):
                wanted = pytree.tree_leaves(model(*args, **kwargs))
        except Exception:  # noqa: BLE001  the original does not take these sizes either
            return None
        interpreter = Interpreter(captured, inputs, torch.float32)
        try:
            for _ in interpreter.steps():
                pass
        except (RuntimeError, TypeError):
            return False
    pairs = [(a, b) for a, b in zip(wanted, interpreter.outputs, strict=False) if isinstance(a, Tensor)]
    return all(isinstance(b, Tensor) and a.shape == b.shape and _close(a, b) for a, b in pairs)


def _close(wanted: Tensor, got: Tensor) -> bool:
    return bool(wanted.isnan().any()) or relative_error(wanted, got.to(wanted.dtype)) <= _TOLERANCE
