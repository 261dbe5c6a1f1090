"""Calibration data: any iterable of batches, checked before anything is computed from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.sizes import is_symbolic
from prunus.errors import ConfigError
from prunus.inputs import Inputs

__all__ = ["CHUNK", "Batch", "checked_batches", "length_of"]

CHUNK = 32  # samples at a time, where all of them come as one tensor
_FORMS = "batches of what the model takes: tensors, tuples, dictionaries or prunus.Inputs"


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


def length_of(data: Any) -> int | None:
    """How many batches there are, where that can be known."""
    if isinstance(data, Tensor | Mapping | Inputs):
        size = _size(data)
        return -(-size // CHUNK) if size else None
    try:
        return len(data)
    except TypeError:
        return None


def checked_batches(captured: Captured, data: Any) -> Iterator[Batch]:
    """The batches, each checked against the inputs that the model was captured with.

    Args:
        captured: the model.
        data: an iterable of batches; or one tensor, dictionary or `Inputs` of all samples, which is cut into batches.

    Raises:
        ConfigError: no batches at all, another shape, type or structure than the inputs, NaN or infinite numbers; names the
            batch.
    """
    count = 0
    for number, given in enumerate(_iterator(data)):
        batch = _checked(captured, given, number)
        count += 1
        yield batch
    if not count:
        raise ConfigError(f"data is empty: pass {_FORMS}, like the example inputs")


def _iterator(data: Any) -> Iterator[Any]:
    if isinstance(data, Tensor | Mapping | Inputs):
        return _cut(data)
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise ConfigError(f"data is a {type(data).__name__}: pass an iterable of {_FORMS}")
    return iter(data)


def _size(data: Tensor | Mapping | Inputs) -> int:
    leaves = pytree.tree_leaves((data.args, data.kwargs) if isinstance(data, Inputs) else _plain(data))
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
    return int(sizes[0]) if sizes else 0


def _plain(data: Any) -> Any:
    return dict(data) if isinstance(data, Mapping) else data


def _cut(data: Any) -> Iterator[Any]:
    size = _size(data)

    def part(start: int) -> Any:
        def sliced(leaf: Any) -> Any:
            matches = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size
            return leaf[start : start + CHUNK] if matches else leaf

        if isinstance(data, Inputs):
            return Inputs(*pytree.tree_map(sliced, (data.args, data.kwargs)))
        return pytree.tree_map(sliced, _plain(data))

    return (part(start) for start in range(0, size, CHUNK))


def _checked(captured: Captured, given: Any, number: int) -> Batch:
    where = f"batch {number} of data"
    args, kwargs, extras = _fitted(captured, given, where)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    if len(leaves) != len(captured.inputs):
        raise ConfigError(
            f"{where} has {len(leaves)} values where the model was captured with {len(captured.inputs)} "
            f"({spec} instead of {captured.in_spec}): pass {_FORMS}, like the example inputs"
        )
    wanted = pytree.tree_leaves((captured.run_inputs.args, captured.run_inputs.kwargs))
    nodes = {node.name: node for node in captured.graph.nodes if node.op == "placeholder"}
    rows = zip(captured.inputs, leaves, wanted, strict=True)
    checked = [
        _leaf(nodes[name].meta.get("val"), leaf, like, f"{where}, input {name!r}")
        for name, leaf, like in rows
    ]
    return Batch(tuple(checked), given, extras, _samples(nodes, captured, checked))


def _fitted(
    captured: Captured, given: Any, where: str
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """Arguments and keywords as the model was captured with, and what is left over."""
    like = captured.run_inputs
    if isinstance(given, Inputs):
        return given.args, _ordered(given.kwargs, like.kwargs, where)[0], ()
    if isinstance(given, Tensor):
        return (given,), {}, ()
    if isinstance(given, Mapping):
        if like.args:
            raise ConfigError(
                f"{where} is a dictionary, but the model was captured with {len(like.args)} positional arguments: "
                "pass tensors or tuples, or prunus.Inputs"
            )
        kwargs, extras = _ordered(given, like.kwargs, where)
        return (), kwargs, extras
    if isinstance(given, tuple | list):
        if like.kwargs and not like.args and given and isinstance(given[0], Mapping):
            kwargs, extras = _ordered(given[0], like.kwargs, where)
            return (), kwargs, (*extras, *given[1:])
        count = len(like.args)
        if len(given) < count or like.kwargs:
            raise ConfigError(
                f"{where} has {len(given)} values; the model was captured with {count} positional arguments"
                + (f" and the keywords {', '.join(like.kwargs)}: pass prunus.Inputs" if like.kwargs else "")
            )
        return tuple(given[:count]), {}, tuple(given[count:])
    raise ConfigError(f"{where} is a {type(given).__name__}: pass {_FORMS}")


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
