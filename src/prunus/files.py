"""Files that somebody names: opened without waiting or trust, written as a whole, and named so that they can be printed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from prunus.errors import PrunusError

__all__ = ["PICKLES", "as_path", "open_file", "read_text", "reason_of", "shown", "write_file"]

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".tar", ".joblib")


def shown(name: object) -> str:
    """A name as it can be printed: what would move the cursor, change colors or begin a line is written out."""
    text = str(name)
    if len(text) > 300:
        text = f"{text[:150]}...{text[-100:]}"
    return text if text.isprintable() else repr(text)[1:-1]


def as_path(given: object, error: type[PrunusError]) -> Path:
    """What somebody passes as a path; `error` is raised where it is none."""
    if isinstance(given, str | os.PathLike):
        return Path(given)
    raise error(f"a path is text or a pathlib.Path, not a {type(given).__name__}")


def open_file(path: Path, error: type[PrunusError], expected: str = "", *, missing: str = "") -> BinaryIO:
    """Open an ordinary file, or a link to one, without waiting for a pipe.

    Args:
        path: the file.
        error: of what class to raise.
        expected: what is said where it is a folder, a pipe or a device.
        missing: what is said where there is none.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise error(missing or f"There is no file {shown(path)}.") from None
    except (OSError, ValueError) as problem:
        if os.path.isdir(path):
            raise error(f"{shown(path)} is not a file{expected}.") from problem
        raise error(f"{shown(path)} cannot be opened: {reason_of(problem)}.") from problem
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{shown(path)} is not a file{expected}.")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, error: type[PrunusError], what: str, most_bytes: int) -> str:
    """The text of a file of limited size; `what` it should be is said where it is not."""
    with open_file(path, error, missing=f"no {what} at {shown(path)}") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise error(f"{shown(path)} has {size:,} bytes: too large for a {what}")
        try:
            return file.read(most_bytes).decode("utf-8-sig")
        except UnicodeDecodeError as problem:
            raise error(f"{shown(path)} is no {what}: it is not text") from problem
        except OSError as problem:
            raise error(f"{shown(path)} cannot be read: {reason_of(problem)}") from problem


def write_file(path: Path, content: str | bytes, error: type[PrunusError], what: str) -> None:
    """Write a file as a whole: whatever happens, there is the old one or the new one."""
    temporary = path.parent / f".prunus-{secrets.token_hex(4)}"
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(temporary, path)
    except (OSError, ValueError) as problem:
        raise error(f"the {what} cannot be written to {shown(path)}: {reason_of(problem)}") from problem
    finally:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)


def reason_of(error: OSError | ValueError) -> str:
    """Why the system refuses a name, in words."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "the name is too long"
    if isinstance(error, ValueError):
        return "the name has a character that no name can have"
    return error.strerror or str(error)
