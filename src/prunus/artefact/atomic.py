"""Put a folder in place as a whole: whatever happens, there is the old one or the new one, never half."""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prunus.errors import ArtefactError
from prunus.files import reason_of, shown

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["interrupted_save", "new_folder", "require_free"]

Own = Callable[[Path], str | None]

_NEW, _OLD = "prunus-new", "prunus-old"
_ABANDONED_AFTER_S = 24 * 3600
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def new_folder(target: Path, *, overwrite: bool, own: Own) -> Iterator[Path]:
    """Yield a temporary folder beside the target; when the block ends well, it becomes the target.

    Everything in it is flushed to the disk first. If the block raises, or nothing more can be written, the
    temporary folder goes and the target is as it was. A process that is killed leaves its temporary folder
    behind, and the next save to the same target removes it.

    Args:
        target: Where the folder goes. Parents are created.
        overwrite: Replace a folder that is there already.
        own: Why a folder is no earlier result and nothing besides; None if it is. Such a folder is not replaced.

    Raises:
        ArtefactError: If the target exists and may not be replaced, or the disk cannot take the folder.
    """
    try:
        target = Path(os.path.realpath(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target)
        require_free(target, overwrite, own)
        folder, lock = _temporary(target)
    except (OSError, ValueError) as error:
        raise _cannot_write(target, error) from error
    placed = False
    try:
        yield folder
        _flush(folder)
        if target.exists():
            require_free(target, overwrite, own, by_now=True)
        _place(folder, target)
        placed = True
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        if not placed:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def interrupted_save(target: Path) -> Path | None:
    """The previous folder where a save was killed in the moment of exchanging the two.

    Possible only where the file system cannot exchange two folders in one step.
    """
    old = sorted(_leftovers(target, _OLD))
    return old[0] if old and not target.exists() else None


def require_free(target: Path, overwrite: bool, own: Own, *, by_now: bool = False) -> None:
    """Check that a folder can be written, as `new_folder` does first of all and last of all.

    Raises:
        ArtefactError: If the target exists and may not be replaced, or no folder can have that name.
    """
    try:
        if not _exists(target):
            return
        empty = target.is_dir() and not any(target.iterdir())
    except (OSError, ValueError) as error:
        raise _cannot_write(target, error) from error
    if not target.is_dir():
        raise ArtefactError(f"{shown(target)} is a file; a result is saved to a folder.")
    if not overwrite:
        since = "exists by now: another process has written it" if by_now else "exists already"
        raise ArtefactError(
            f"The folder {shown(target)} {since}. Choose another, or pass overwrite=True to replace it."
        )
    strange = None if empty else own(target)
    if strange:
        raise ArtefactError(
            f"{shown(target)} is not replaced, because it is not just a result that prunus saved: {strange} Choose another "
            "folder, or move what is yours and remove the rest."
        )


def _exists(target: Path) -> bool:
    """Whether there is something of that name; an error where nothing could be."""
    try:
        os.stat(target)
        return True
    except FileNotFoundError:
        parent = next(folder for folder in target.absolute().parents if os.path.isdir(folder))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{shown(parent)} may not be written to") from None
        return False


# --- temporary folders


def _temporary(target: Path) -> tuple[Path, int | None]:
    """A new folder beside the target, locked for as long as this process lives."""
    while True:
        folder = target.parent / f".{target.name}.{_NEW}-{secrets.token_hex(4)}"
        folder.mkdir()
        if fcntl is None:
            return folder, None
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                continue  # another save is just taking it for a leftover
            return folder, None  # the file system has no locks
        if folder.exists():
            return folder, lock
        os.close(lock)


def _leftovers(target: Path, kind: str) -> list[Path]:
    try:
        entries = list(target.parent.iterdir())
    except OSError:
        return []
    prefix = f".{target.name}.{kind}-"
    return [
        entry
        for entry in entries
        if entry.name.startswith(prefix) and entry.is_dir() and not entry.is_symlink()
    ]


def _clean(target: Path) -> None:
    """Remove what killed saves left behind, and put back what one of them had moved away."""
    old = interrupted_save(target)
    if old is not None:
        os.rename(old, target)
    for folder in [*_leftovers(target, _NEW), *_leftovers(target, _OLD)]:
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that made a temporary folder is gone: the system releases its lock then."""
    try:
        if fcntl is None:
            return time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S
    finally:
        os.close(lock)
    return True


# --- into place


def _flush(folder: Path) -> None:
    for entry in folder.iterdir():
        _flush_one(entry)
    _flush_one(folder)


def _flush_one(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(folder: Path, target: Path) -> None:
    if not target.exists():
        os.rename(folder, target)
    elif _exchange(folder, target):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _swap(folder, target)
    _flush_one(target.parent)


def _swap(folder: Path, target: Path) -> None:
    """Replace a folder in two steps; a process killed between them is found by `interrupted_save`."""
    old = target.parent / f".{target.name}.{_OLD}-{secrets.token_hex(4)}"
    os.rename(target, old)
    try:
        os.rename(folder, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names in one step, where the system can (Linux)."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    result = rename(
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(one)),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(other)),
        ctypes.c_uint(_RENAME_EXCHANGE),
    )
    return result == 0


def _cannot_write(target: Path, error: OSError | ValueError) -> ArtefactError:
    reason = reason_of(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        with contextlib.suppress(OSError):
            reason += f" ({shutil.disk_usage(target.parent).free:,} bytes free)"
    was = "is as it was before" if os.path.isdir(target) else "was not created"
    return ArtefactError(f"The result could not be saved: {reason}. {shown(target)} {was}.")
