"""Arithmetic on sizes that a graph asks for, within bounds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from prunus.errors import CaptureError

__all__ = ["calculated"]

_BITS = 63  # of a size


def calculated(function: Callable[..., Any], args: Sequence[Any]) -> Any:
    """What a Python function of numbers gives, such as `operator.mul`.

    Raises:
        CaptureError: it cannot be calculated, or is no size: the result has more than 63 bits, or would take long to find out.
    """
    name = getattr(function, "__name__", str(function))
    try:
        if _is_large(function, args):
            raise OverflowError("it is too large for a size")
        found = function(*args)
        if type(found) is int and found.bit_length() > _BITS:
            raise OverflowError("it is too large for a size")
    except Exception as error:
        raise CaptureError(f"{name}{tuple(args)!r:.100} cannot be calculated: {error}") from error
    return found


def _is_large(function: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether a power or a shift is large, from its operands alone."""
    if len(args) != 2 or not all(isinstance(each, int) for each in args):
        return False
    base, by = args
    if function is operator.pow:
        return base.bit_length() * abs(by) > 2 * _BITS
    return function is operator.lshift and by > _BITS
