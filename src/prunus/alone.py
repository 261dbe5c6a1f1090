"""One call at a time: what torch and prunus change in a process for a while is seen by all of its threads.

torch.export keeps what it is at in global variables and switches libraries off; exporting and verifying touch the state of random
generators, loggers, filters of warnings and numbers of threads; a model that is looked at is in evaluation mode. Two calls at
once would see, and restore, each other's changes. So the second waits.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["alone"]

P = ParamSpec("P")
R = TypeVar("R")


class _Lock:
    """Held by the thread that is in a call, as often as calls are inside of each other."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.inner = threading.RLock()


_LOCK = _Lock()
if hasattr(
    os, "register_at_fork"
):  # a child has none of its parent's other threads, one of which may be in a call
    os.register_at_fork(after_in_child=_LOCK.renew)


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function run in one thread at a time; functions that it calls, and what the user hands to it, may call others."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LOCK.inner:
            return function(*args, **kwargs)

    return run
