"""The integers that a model keeps as attributes: finding them, tracing them, setting them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.surgery.provenance import TracedInt

__all__ = ["Slot", "find_slots", "set_slots", "trace_slots"]

_OF_ANY_MODULE = frozenset(vars(nn.Module()))
_DEEPEST = 4  # of containers in containers, and of objects in objects
_LARGEST = 4096  # entries of a container: longer ones are data, not settings


@dataclass(frozen=True)
class Slot:
    """The place of one integer.

    Attributes:
        owner: Path of the module that holds the attribute.
        name: The attribute, with the path to the integer where it holds more than one:
            ``("normalized_shape", 0)``, ``("config", ".hidden_size")``.
        shared: It lies in an object that several modules may hold, such as a configuration.
    """

    owner: str
    name: tuple[Any, ...]
    shared: bool = False

    @property
    def attribute(self) -> str:
        """What the innermost attribute is called, without a position in it."""
        return next(str(part) for part in reversed(self.name) if isinstance(part, str)).removeprefix(".")

    def __str__(self) -> str:
        text = "".join(part if isinstance(part, str) else f"[{part!r}]" for part in self.name)
        return f"{self.owner}.{text}" if self.owner else text


def find_slots(model: nn.Module) -> dict[Slot, int]:
    """Every integer attribute of the model's modules, with its value; equal for a deep copy of the model."""
    found: dict[Slot, int] = {}

    def note(slot: Slot, value: int) -> int:
        found[slot] = int(value)
        return value

    _visit(model, note, write=False)
    return found


def set_slots(model: nn.Module, values: Mapping[Slot, int]) -> None:
    """Give integer attributes new values; lists, dictionaries and shared objects stay the same objects."""

    def change(slot: Slot, value: int) -> int:
        new = values.get(slot, value)
        return (
            value if new == value else new
        )  # the same object: an attribute of a class is not overridden for nothing

    _visit(model, change, write=True)


def trace_slots(model: nn.Module) -> None:
    """Replace every integer attribute by one that remembers its slot."""
    _visit(model, lambda slot, value: TracedInt(value, slot), write=True)


def _visit(model: nn.Module, change: Callable[[Slot, int], int], write: bool) -> None:
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in list(_attributes(module)):
            changed = _changed(value, path, (name,), change, seen, 0, False)
            if write and changed is not value:
                module.__dict__[name] = changed


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes of the module, then integers of its classes that it does not override."""
    for name, value in module.__dict__.items():
        if name not in _OF_ANY_MODULE:
            yield name, value
    taken = set(module.__dict__)
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        for name, value in vars(cls).items():
            if type(value) is int and not name.startswith("_") and name not in taken:
                taken.add(name)
                yield name, value


def _changed(
    value: Any, owner: str, name: tuple[Any, ...], change: Any, seen: set[int], depth: int, shared: bool
) -> Any:
    """The value with its integers changed: the same object where it can be written to or nothing changes."""
    if type(value) is int or type(value) is TracedInt:
        return change(Slot(owner, name, shared), value)
    if depth >= _DEEPEST or not _is_container(value):
        return value
    if isinstance(value, tuple):
        items = [_changed(v, owner, (*name, i), change, seen, depth + 1, shared) for i, v in enumerate(value)]
        return _tuple_like(value, items)
    if id(value) in seen:
        return value
    seen.add(id(value))
    store: Any = value
    if isinstance(value, list):
        entries: list[tuple[Any, Any]] = list(enumerate(value))
    elif isinstance(value, dict):
        entries = [(k, v) for k, v in value.items() if isinstance(k, (str, int))]
    else:
        store = vars(value)
        entries, shared = [(k, v) for k, v in store.items() if isinstance(k, str)], True
    for key, item in entries:
        part = f".{key}" if isinstance(key, str) else key
        new = _changed(item, owner, (*name, part), change, seen, depth + 1, shared)
        if new is not item:
            store[key] = new
    return value


def _is_container(value: Any) -> bool:
    if isinstance(value, (tuple, list, dict)):
        return len(value) <= _LARGEST
    return _is_settings(value)


def _is_settings(value: Any) -> bool:
    """Objects of the user's that hold attributes, such as a configuration: no modules, tensors or classes."""
    if isinstance(value, (nn.Module, torch.Tensor, type)) or callable(value):
        return False
    return hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in (
        "builtins",
        "torch",
    )


def _tuple_like(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    if type(value) in (tuple, torch.Size):
        return type(value)(items)
    make = getattr(type(value), "_make", None)  # named tuples
    return make(items) if make is not None else value
