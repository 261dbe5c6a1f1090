"""Memory that has been freed, given back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

__all__ = ["give_back"]

_NONE = 0  # bytes at the end of the heap that are kept for later


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found = ctypes.CDLL(None).malloc_trim  # glibc only
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found


def give_back() -> None:
    """Give freed memory back to the system where the C library can; elsewhere this does nothing.

    glibc serves blocks of up to 32 MB from one heap once such a block has been freed, and small blocks that stay keep
    the large holes between them: matrices of ever other sizes, one after the other, then hold several times what they need.
    """
    trim = _trim()
    if trim is not None:
        trim(_NONE)
