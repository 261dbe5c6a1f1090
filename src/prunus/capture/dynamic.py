"""Which axes of the inputs the user wants to be free: read from what `dynamic=` says."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture.batch import batch_size
from prunus.capture.shapes import Axis
from prunus.errors import ConfigError
from prunus.inputs import Inputs

__all__ = ["Dynamic", "batch_axes", "checked_dynamic", "wanted_axes"]

Dynamic = str | bool | None | Mapping[Any, Any] | tuple[Any, ...] | list[Any] | frozenset[Axis]
"""``"auto"``, ``"batch"``, ``"none"`` (or False), axes by the name of the input, or pairs of a leaf and an axis."""

_WORDS = ("auto", "batch", "none")
_FORMS = '"auto" (every axis that can be), "batch", "none", or axes by the name of the input, such as {"x": [0, 2, 3]}'


def checked_dynamic(dynamic: Dynamic) -> Dynamic:
    """The request, as far as it can be checked without the model.

    Raises:
        ConfigError: If it is of no known form.
    """
    if isinstance(dynamic, str) and dynamic not in _WORDS:
        raise ConfigError(f"dynamic is {dynamic!r}; expected {_FORMS}.")
    if not isinstance(dynamic, str | bool | None | Mapping | tuple | list | frozenset):
        raise ConfigError(f"dynamic is a {type(dynamic).__name__}; expected {_FORMS}.")
    return dynamic


def batch_axes(example: Inputs) -> frozenset[Axis]:
    """Axis 0 of every input tensor where it has the size of the batch."""
    size = batch_size(example)
    return frozenset(
        (i, 0) for i, x in _tensors(example) if size is not None and x.dim() and int(x.shape[0]) == size
    )


def wanted_axes(dynamic: Dynamic, model: nn.Module, example: Inputs) -> frozenset[Axis]:
    """The axes that are to be free.

    Raises:
        ConfigError: If the request names an input or an axis that is not there, or an axis of size 0 or 1, of which torch cannot
            tell that it is free.
    """
    checked_dynamic(dynamic)
    batch = batch_axes(example)
    if isinstance(dynamic, frozenset):
        return dynamic
    if dynamic in (None, False, "none"):
        return frozenset()
    if dynamic == "batch":
        return batch
    if dynamic in (True, "auto"):
        return batch | {
            (i, axis) for i, x in _tensors(example) for axis, size in enumerate(x.shape) if size > 1
        }
    return _named(dynamic, model, example, batch)  # type: ignore[arg-type]  words are done with


def _tensors(example: Inputs) -> list[tuple[int, Tensor]]:
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    return [(i, leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]


def _named(
    dynamic: Mapping[Any, Any] | tuple[Any, ...] | list[Any],
    model: nn.Module,
    example: Inputs,
    batch: frozenset[Axis],
) -> frozenset[Axis]:
    """Axes by the name, or the position, of the argument."""
    names = _argument_names(model, example)
    if not isinstance(dynamic, Mapping):
        dynamic = dict(zip(names, dynamic, strict=False))
    unknown = [key for key in dynamic if key not in names]
    if unknown:
        raise ConfigError(f"dynamic names an input {unknown[0]!r}; the inputs are {', '.join(names)}.")
    values, first, found = [*example.args, *example.kwargs.values()], 0, set[Axis]()
    for name, value in zip(names, values, strict=True):
        found |= set(_axes(dynamic.get(name), value, first, name))
        first += len(pytree.tree_leaves(value))
    sizes = {i: x.shape for i, x in _tensors(example)}
    small = [(i, axis) for i, axis in found if sizes[i][axis] < 2 and (i, axis) not in batch]
    if small:
        raise ConfigError(
            f"dynamic asks for axis {small[0][1]} of size {sizes[small[0][0]][small[0][1]]}: pass example inputs in which it is 2 or "
            "more, as torch takes 0 and 1 for constants."
        )
    return frozenset(found)


def _argument_names(model: nn.Module, example: Inputs) -> list[str]:
    names = [f"args_{i}" for i in range(len(example.args))]
    for i, parameter in enumerate(inspect.signature(model.forward).parameters.values()):
        if i >= len(names) or parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            break
        names[i] = parameter.name
    return [*names, *example.kwargs]


def _axes(asked: Any, value: Any, first: int, name: str) -> Iterable[Axis]:
    """The axes of the leaves of one argument, the first of which has the given number."""
    if asked is None or (isinstance(asked, list | tuple | Mapping | set | frozenset) and not asked):
        return
    if isinstance(value, Tensor):
        for axis in _axis_numbers(asked, name):
            if not -value.dim() <= axis < value.dim():
                raise ConfigError(f"dynamic asks for axis {axis} of {name}, which has {value.dim()} axes.")
            yield first, axis % value.dim()
        return
    children = list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))
    parts = asked if isinstance(asked, Mapping) else dict(enumerate(asked))
    for key, child in children:
        part = parts.get(key)
        yield from _axes(part, child, first, f"{name}[{key!r}]")
        first += len(pytree.tree_leaves(child))


def _axis_numbers(asked: Any, name: str) -> list[int]:
    """Axes as a list, a set, one number, or, as torch.export takes them, a dictionary of dimensions."""
    if isinstance(asked, Mapping):
        asked = [axis for axis, dim in asked.items() if dim is not None and "STATIC" not in str(dim)]
    numbers = [asked] if isinstance(asked, int) else list(asked)
    strange = [number for number in numbers if not isinstance(number, int) or isinstance(number, bool)]
    if strange:
        raise ConfigError(f"dynamic asks for axis {strange[0]!r} of {name}; axes are whole numbers.")
    return numbers
