"""Whether a program out of a file is what the file says: its operators give values of the sizes that are written there."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from prunus.capture.arithmetic import calculated
from prunus.capture.sizes import concrete
from prunus.errors import CaptureError

__all__ = ["InconsistentError", "require_consistent"]

_MOST_VALUES = 2**32  # in one value of a graph, at the sizes of the example
_MOST_MADE = 2**28  # in what a graph makes of nothing
_LONG = 2**20  # of what operators may go through step by step
_NO_TENSOR = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
    NotImplementedError,
)
# their bodies get just the operands behind them
_WRAPPERS = frozenset(
    "cond hints_wrapper strict_mode tag_activation_checkpoint wrap wrap_activation_checkpoint wrap_with_autocast "
    "wrap_with_set_grad_enabled".split()
)


class _Unknown:
    """A value that nobody knows before the model runs."""


class InconsistentError(ValueError):
    """A value is not what the file says."""


def require_consistent(program: ExportedProgram) -> None:
    """Run a program on tensors without values, and compare with what it says about each one.

    No operator computes anything here, and nothing of the claimed sizes is allocated. Later stages can then take the sizes,
    types and numbers of values in the graph for true.

    Raises:
        InconsistentError: naming the first value that is something else, or is larger than any that could be meant.
    """
    state = {**program.constants, **program.state_dict}
    mode = FakeTensorMode(allow_fallback_kernels=False)
    given = []
    specs = program.graph_signature.input_specs
    for node, spec in zip(program.graph.find_nodes(op="placeholder"), specs, strict=True):
        own = state.get(spec.target) if spec.kind != InputKind.USER_INPUT and spec.target else None
        given.append(_claimed(node, mode) if own is None else mode.from_tensor(own, static_shapes=True))
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):  # the caller's own autocast is no part of the program
            stack.enter_context(torch.autocast(device, enabled=False))
        _run(program.graph, given, mode)


def _run(graph: fx.Graph, given: Sequence[Any], mode: FakeTensorMode) -> None:
    values: dict[fx.Node, Any] = {}
    inputs = iter(given)
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs)
        elif node.op == "get_attr":
            values[node] = getattr(graph.owning_module, str(node.target), _Unknown)
        elif node.op == "call_function":
            values[node] = _value(node, values, mode)
        if node.op != "output" and not isinstance(values[node], fx.GraphModule):
            values[node] = _compared(node, values[node], mode)


def _value(node: fx.Node, values: dict[fx.Node, Any], mode: FakeTensorMode) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    leaves = pytree.tree_leaves((args, kwargs))
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        _run_bodies(node.target.name(), args, mode)
        return _Unknown
    if any(leaf is _Unknown for leaf in leaves):
        return _Unknown
    if not isinstance(node.target, torch._ops.OpOverload):
        return calculated(node.target, args)  # type: ignore[arg-type]  the name of one is none
    if _is_long(leaves) and torch.Tag.pointwise not in node.target.tags:
        return _Unknown
    try:
        with mode, torch.no_grad():
            return node.target(*args, **kwargs)
    except _NO_TENSOR:
        return _Unknown
    except Exception as error:
        raise InconsistentError(f"{node.name} ({node.target}) cannot be computed: {_line(error)}") from error


def _run_bodies(name: str, args: Sequence[Any], mode: FakeTensorMode) -> None:
    if name not in _WRAPPERS:
        return
    bodies = [at for at, each in enumerate(args) if isinstance(each, fx.GraphModule)]
    operands = pytree.tree_leaves(list(args[bodies[-1] + 1 :])) if bodies else []
    with _autocast(*args[:3]) if name == "wrap_with_autocast" else contextlib.nullcontext():
        for at in bodies:
            if len(args[at].graph.find_nodes(op="placeholder")) == len(operands):
                _run(args[at].graph, operands, mode)


def _autocast(device: str, dtype: torch.dtype | None, enabled: bool) -> torch.autocast:
    """As the body of a region runs; casts are not remembered, which would keep tensors of this run."""
    return torch.autocast(device, dtype, enabled, cache_enabled=False)


def _is_long(leaves: list[Any]) -> bool:
    return any(isinstance(leaf, Tensor) and max(leaf.shape, default=0) > _LONG for leaf in leaves)


def _compared(node: fx.Node, found: Any, mode: FakeTensorMode) -> Any:
    """The value of a node; what the file says where it is not known."""
    said = _claimed(node, mode)
    if found is _Unknown or said is _Unknown:
        return said
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(said)
    if len(ours) != len(theirs) or any(map(_differ, ours, theirs)):
        raise InconsistentError(
            f"{node.name} ({node.target}) is {_words(ours)}, where the file says {_words(theirs)}"
        )
    if isinstance(node.target, torch._ops.OpOverload) and not node.all_input_nodes:
        made = sum(leaf.numel() for leaf in ours if isinstance(leaf, Tensor))
        if made > _MOST_MADE:
            raise InconsistentError(f"{node.name} ({node.target}) makes {made:,} values out of nothing")
    return found


def _differ(found: Any, said: Any) -> bool:
    if isinstance(found, Tensor) or isinstance(said, Tensor):
        both = isinstance(found, Tensor) and isinstance(said, Tensor)
        return not both or found.shape != said.shape or found.dtype != said.dtype
    return said is not _Unknown and found is not _Unknown and found != said


def _claimed(node: fx.Node, mode: FakeTensorMode) -> Any:
    """What the file says about a node, at the sizes of the example; unknown where these depend on data."""
    try:
        return pytree.tree_map(lambda leaf: _leaf(node, leaf, mode), node.meta.get("val", _Unknown))
    except CaptureError:
        return _Unknown


def _leaf(node: fx.Node, leaf: Any, mode: FakeTensorMode) -> Any:
    if not isinstance(leaf, Tensor):
        return concrete(leaf)
    shape = [int(concrete(size)) for size in leaf.shape]
    if any(size < 0 for size in shape) or math.prod(shape) > _MOST_VALUES:
        raise InconsistentError(f"{node.name} claims to have the shape {tuple(shape)}")
    with mode:
        return torch.empty(shape, dtype=leaf.dtype, device=leaf.device)


def _words(leaves: list[Any]) -> str:
    words = [
        f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
        if isinstance(leaf, FakeTensor)
        else repr(leaf)
        for leaf in leaves[:3]
    ]
    return " and ".join(words)[:200] or "nothing"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
