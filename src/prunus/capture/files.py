"""Open files that somebody names, and say in words what is wrong with those that cannot be opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from prunus.errors import PrunusError

__all__ = ["PICKLES", "open_file", "reason_of", "shown"]

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".tar", ".joblib")


def shown(name: object) -> str:
    """A name as it can be printed: what would move the cursor, change colors or begin a line is written out."""
    text = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    if len(text) > 300:
        text = f"{text[:150]}...{text[-100:]}"
    return text if text.isprintable() else repr(text)[1:-1]


def open_file(path: Path, error: type[PrunusError], expected: str = "") -> BinaryIO:
    """Open an ordinary file, without waiting for a pipe.

    Args:
        path: the file.
        error: of what class to raise.
        expected: what is said where it is something else.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"There is no file {shown(path)}.") from None
    except (OSError, ValueError) as problem:
        if path_is_folder(path):
            raise error(f"{shown(path)} is not a file{expected}.") from problem
        raise error(f"{shown(path)} cannot be opened: {reason_of(problem)}.") from problem
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{shown(path)} is not a file{expected}.")
    return os.fdopen(descriptor, "rb")


def path_is_folder(path: Path) -> bool:
    """Whether there is a folder; never raises."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def reason_of(error: OSError | ValueError) -> str:
    """Why the system refuses a name, in words."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "the name is too long"
    if isinstance(error, ValueError):
        return "the name has a character that no name can have"
    return error.strerror or str(error)
