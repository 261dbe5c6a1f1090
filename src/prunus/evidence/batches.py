"""Calibration data: any iterable of batches, checked before anything is computed from it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.preserve import random_state_kept
from prunus.capture.sizes import is_symbolic
from prunus.errors import ConfigError
from prunus.evidence.files import LABELS, Arrays
from prunus.evidence.forms import FORMS, batches_of
from prunus.evidence.store import Evidence
from prunus.inputs import Inputs

__all__ = ["Batch", "checked_batches", "require_fitting"]


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        leaves: the values of the graph's inputs, in their order.
        given: the batch as it came.
        extras: what came with the inputs and is none of them: labels.
        samples: how many samples it has.
    """

    leaves: tuple[Any, ...]
    given: Any
    extras: tuple[Any, ...]
    samples: int


def checked_batches(captured: Captured, data: Any) -> Iterator[Batch]:
    """The batches, each checked against the inputs that the model was captured with.

    Args:
        captured: the model.
        data: in any of the forms that `as_data` takes.

    Raises:
        ConfigError: no batches at all, another shape, type or structure than the inputs, NaN or infinite numbers; names the
            batch.
    """
    count = 0
    for number, given in enumerate(batches_of(data)):
        batch = _checked(captured, given, number)
        count += 1
        yield batch
    if not count:
        raise ConfigError(f"data is empty: pass {FORMS}, like the example inputs")


def _checked(captured: Captured, given: Any, number: int) -> Batch:
    where = f"batch {number} of data"
    args, kwargs, extras = _fitted(captured, given, where)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    if len(leaves) != len(captured.inputs):
        raise ConfigError(
            f"{where} has {len(leaves)} values where the model was captured with {len(captured.inputs)} "
            f"({spec} instead of {captured.in_spec}): pass {FORMS}, like the example inputs"
        )
    wanted = pytree.tree_leaves((captured.run_inputs.args, captured.run_inputs.kwargs))
    nodes = {node.name: node for node in captured.graph.nodes if node.op == "placeholder"}
    rows = zip(captured.inputs, leaves, wanted, strict=True)
    checked = [
        _leaf(nodes[name].meta.get("val"), leaf, like, f"{where}, input {name!r}")
        for name, leaf, like in rows
    ]
    return Batch(tuple(checked), given, extras, _samples(nodes, captured, checked))


def require_fitting(captured: Captured, data: Any) -> None:
    """Compare the first batch with the model's inputs, without taking it from the data.

    Raises:
        ConfigError: see `checked_batches`.
    """
    if data is None or isinstance(data, Evidence):
        return
    with random_state_kept():  # what shuffles draws as if nobody had looked
        next(checked_batches(captured, data))


def _fitted(
    captured: Captured, given: Any, where: str
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """Arguments and keywords as the model was captured with, and what is left over."""
    like = captured.run_inputs
    if isinstance(given, Inputs):
        return given.args, _ordered(given.kwargs, like.kwargs, where)[0], ()
    if isinstance(given, Mapping):
        return _by_name(captured, given, where)
    if isinstance(given, Tensor | np.ndarray):
        given = (given,)
    if not isinstance(given, tuple | list):
        raise ConfigError(f"{where} is a {type(given).__name__}: pass {FORMS}")
    if like.kwargs and not like.args:
        if given and isinstance(given[0], Mapping):
            kwargs, extras = _ordered(given[0], like.kwargs, where)
            return (), kwargs, (*extras, *given[1:])
        if len(given) >= len(like.kwargs):
            kwargs = dict(zip(like.kwargs, given, strict=False))
            return (), kwargs, tuple(given[len(kwargs) :])
    count = len(like.args)
    if len(given) < count or like.kwargs:
        raise ConfigError(
            f"{where} has {len(given)} values; the model was captured with {count} positional arguments"
            + (f" and the keywords {', '.join(like.kwargs)}: pass prunus.Inputs" if like.kwargs else "")
        )
    return tuple(given[:count]), {}, tuple(given[count:])


def _by_name(
    captured: Captured, given: Mapping[str, Any], where: str
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """What a dictionary holds, by the names of the forward's arguments."""
    like, names = captured.run_inputs, _positional(captured)
    if isinstance(given, Arrays) and not like.kwargs and not set(names) <= set(given):
        arrays = [array for name, array in given.items() if name != LABELS]
        return _fitted(captured, (*arrays, *([given[LABELS]] if LABELS in given else [])), where)
    if len(names) == 1 and isinstance(like.args[0], Mapping) and names[0] not in given:
        return (given,), {}, ()  # a dictionary is the only argument
    named, extras = _ordered(given, dict.fromkeys([*names, *like.kwargs]), where)
    return tuple(named[name] for name in names), {name: named[name] for name in like.kwargs}, extras


def _positional(captured: Captured) -> list[str]:
    """Names of the arguments that the model was captured with by position; those of the graph where no code has names."""
    count = len(captured.run_inputs.args)
    owner = captured.owner
    known = list(inspect.signature(owner.forward).parameters.values()) if owner is not None else []
    named = [p.name for p in known[:count] if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    if len(named) == count:
        return named
    return list(captured.inputs[:count])


def _ordered(given: Mapping, like: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[Any, ...]]:
    missing = [name for name in like if name not in given]
    if missing:
        raise ConfigError(
            f"{where} lacks {', '.join(missing)}; it has {', '.join(map(str, given)) or 'nothing'}, and the model was "
            f"captured with {', '.join(like)}"
        )
    return {name: given[name] for name in like}, tuple(v for name, v in given.items() if name not in like)


def _leaf(expected: Any, leaf: Any, like: Any, where: str) -> Any:
    if not isinstance(like, Tensor):
        if isinstance(leaf, Tensor) or leaf != like:
            raise ConfigError(
                f"{where} is {leaf!r}; the model was captured with {like!r}, and holds for that alone"
            )
        return leaf
    if isinstance(leaf, np.ndarray):
        leaf = torch.as_tensor(leaf)
    if not isinstance(leaf, Tensor):
        raise ConfigError(f"{where} is a {type(leaf).__name__}, not a tensor")
    sizes = list(expected.shape) if isinstance(expected, Tensor) else list(like.shape)
    fits = leaf.dim() == len(sizes) and all(
        is_symbolic(want) or int(want) == got for want, got in zip(sizes, leaf.shape, strict=True)
    )
    if not fits:
        said = ", ".join("any" if is_symbolic(size) else str(int(size)) for size in sizes)
        raise ConfigError(f"{where} has shape {tuple(leaf.shape)}; the model takes ({said})")
    if leaf.is_floating_point() != like.is_floating_point() or leaf.is_complex() != like.is_complex():
        raise ConfigError(f"{where} is of {leaf.dtype}; the model takes {like.dtype}")
    if 0 in leaf.shape and 0 not in like.shape:
        raise ConfigError(f"{where} has shape {tuple(leaf.shape)}: there is nothing in it")
    if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
        raise ConfigError(f"{where} holds NaN or infinite numbers: check how the data is made")
    return leaf.detach().to(like.device, like.dtype)


def _samples(nodes: dict[str, Any], captured: Captured, leaves: list[Any]) -> int:
    """Size along the first axis that the batch may change; 1 where it is fixed and nothing has axes."""
    tensors = [(nodes[n].meta.get("val"), leaf) for n, leaf in zip(captured.inputs, leaves, strict=True)]
    tensors = [(val, leaf) for val, leaf in tensors if isinstance(leaf, Tensor) and leaf.dim()]
    for val, leaf in tensors:
        if isinstance(val, Tensor):
            for axis, size in enumerate(val.shape):
                if is_symbolic(size):
                    return int(leaf.shape[axis])
    return int(tensors[0][1].shape[0]) if tensors else 1
