"""Integers that remember where they come from.

A forward that runs on such integers says by itself which attribute ended up in which shape: `self.heads` in a `view`
arrives there as an integer that knows its name, and `self.dim // self.heads` as one that knows the division.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

__all__ = ["Computed", "Source", "TracedInt", "evaluate", "leaves", "observing_equality", "source_of"]

Source = Any  # a leaf (any hashable name), or a Computed

_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}
_on_equal: ContextVar[Callable[[Any, Any], None] | None] = ContextVar("_on_equal", default=None)


@dataclass(frozen=True)
class Computed:
    """An integer made from two others, at least one of which is traced."""

    operation: str
    left: Source
    right: Source


class TracedInt(int):
    """An ordinary integer, and the source it comes from; arithmetic with it is traced in turn."""

    source: Source

    def __new__(cls, value: int, source: Source) -> TracedInt:
        traced = super().__new__(cls, value)
        traced.source = source
        return traced

    def __neg__(self) -> TracedInt:
        return TracedInt(-int(self), Computed("mul", self.source, -1))

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)  # type: ignore[arg-type]
        observer = _on_equal.get()
        if equal is True and observer is not None:
            observer(self.source, source_of(other))  # type: ignore[arg-type]
        return equal

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    __hash__ = int.__hash__

    def __int__(self) -> int:
        return int.__int__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)  # a copy is a plain number: what leaves the traced run forgets it

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)


def source_of(value: int) -> Source:
    """The source of a traced integer; an ordinary integer is its own."""
    return value.source if isinstance(value, TracedInt) else int(value)


def _traced(name: str, reflected: bool) -> Callable[[TracedInt, Any], Any]:
    function = _BINARY[name]

    def method(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented if not isinstance(other, float) else _plain(name, self, other, reflected)
        left, right = (other, self) if reflected else (self, other)
        value = function(int(left), int(right))
        return TracedInt(value, Computed(name, source_of(left), source_of(right)))

    return method


def _plain(name: str, one: int, other: float, reflected: bool) -> float:
    left, right = (other, int(one)) if reflected else (int(one), other)
    return _BINARY[name](left, right)  # type: ignore[arg-type]


for _name in _BINARY:
    setattr(TracedInt, f"__{_name}__", _traced(_name, False))
    setattr(TracedInt, f"__r{_name}__", _traced(_name, True))


def leaves(source: Source) -> Iterator[Any]:
    """The named leaves of a source; numbers written in the code are no leaves."""
    if isinstance(source, Computed):
        yield from leaves(source.left)
        yield from leaves(source.right)
    elif not isinstance(source, int):
        yield source


def evaluate(source: Source, values: Mapping[Any, int | None]) -> int | None:
    """The number that a source makes when its leaves have these values; None when one of them is not known."""
    if isinstance(source, Computed):
        left, right = evaluate(source.left, values), evaluate(source.right, values)
        if left is None or right is None:
            return None
        if right == 0 and source.operation in ("floordiv", "mod"):
            return None
        return _BINARY[source.operation](left, right)
    return source if isinstance(source, int) else values.get(source)


@contextmanager
def observing_equality(observer: Callable[[Source, Source], None]) -> Iterator[None]:
    """Call `observer` with both sources whenever a traced integer is compared with its equal."""
    token = _on_equal.set(observer)
    try:
        yield
    finally:
        _on_equal.reset(token)
