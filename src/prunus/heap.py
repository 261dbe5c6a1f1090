"""What becomes of memory that has been freed."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["freed_memory_kept", "give_back"]

_NONE = 0  # bytes at the end of the heap that are kept for later
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # in glibc's malloc.h
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
# what glibc itself has come to once blocks of 32 MB have been freed
_AFTERWARDS = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}


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


@functools.cache
def _option() -> Callable[[int, int], int] | None:
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return None  # somebody has chosen
    try:
        found = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes, found.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return found


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside the block, freed memory is used again instead of being given back to the system, which happens at the end.

    glibc gets blocks of more than 32 MB, as activations are, from the system each time, which clears every page: half of the
    time of a forward pass of a large residual network. Afterwards large blocks come from the system again, except where
    one fits into a hole that the block has left in the heap: such a one stays, when it is freed, until the next
    :func:`give_back`. Where the C library is another one, or its options were set by the environment, this does nothing.
    """
    option = _option()
    if option is None:
        yield
        return
    for name, value in _KEEPING.items():
        option(name, value)
    try:
        yield
    finally:
        for name, value in _AFTERWARDS.items():
            option(name, value)
        give_back()
