"""Torch does not print what prunus reports otherwise."""

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TextIO

from prunus.capture.forgetting import sources_forgotten

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from printing the graph and its own traceback of errors that are reported otherwise.

    What the model's forward itself prints to stderr is passed on, and what other threads print is not held up.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    held = sys.stderr = _Held(sys.stderr)
    try:
        with warnings.catch_warnings(), sources_forgotten():
            # such attributes are put back afterwards
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export")
            yield
        held.pass_on()
    finally:
        logger.setLevel(level)
        held.end()
        if sys.stderr is held:  # else somebody has put another in its place
            sys.stderr = held.real


class _Held(io.TextIOBase):
    """The stream that it is made of, which holds back what this thread writes until it is passed on."""

    def __init__(self, real: TextIO) -> None:
        super().__init__()
        self.real = real
        self._thread: int | None = threading.get_ident()
        self._texts: list[str] = []

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self.real.write(text)
        self._texts.append(text)
        return len(text)

    def flush(self) -> None:
        self.real.flush()

    def pass_on(self) -> None:
        self.real.write("".join(self._texts))

    def end(self) -> None:
        """Hold nothing back any more: somebody may have kept the stream."""
        self._thread = None

    def fileno(self) -> int:
        return self.real.fileno()

    def isatty(self) -> bool:
        return self.real.isatty()
