"""Archives as torch writes them: a zip file whose entries are uncompressed and lie one behind the other."""

from __future__ import annotations

import io
import os
import zipfile
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

__all__ = ["Archive", "DamagedArchiveError"]

_LEAST_HEADER, _CHUNK = 30, 2**24
_END = b"PK\x05\x06"
_MOST_ENTRIES = 1_000_000


class DamagedArchiveError(Exception):
    """What is wrong with an archive."""


class Archive:
    """The entries of an archive below its one folder, by name.

    Nothing in it can unpack to more than the file has: entries are stored as they are, do not overlap, and lie in the file.

    Args:
        file: open for reading; stays open.

    Raises:
        DamagedArchiveError: it is no such archive.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.size_bytes = file.seek(0, os.SEEK_END)
        try:
            self._zip = zipfile.ZipFile(file)
            entries = self._zip.infolist()
            _require_plain_end(file, self.size_bytes, self._zip)
            _require_stored(entries, self._zip.start_dir)
        except DamagedArchiveError:
            raise
        except Exception as error:
            raise DamagedArchiveError(f"it is no whole archive ({type(error).__name__}: {error})") from error
        roots = {entry.filename.partition("/")[0] for entry in entries}
        names = [entry.filename.partition("/")[2] for entry in entries]
        if len(roots) != 1 or not all(names):
            raise DamagedArchiveError("its entries are not in one folder")
        if len(set(names)) != len(names):
            raise DamagedArchiveError("it holds one entry twice")
        self._entries = dict(zip(names, entries, strict=True))

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def size_of(self, name: str) -> int:
        """Bytes of an entry."""
        return self._entry(name).file_size

    def read(self, name: str) -> bytes:
        """The content of an entry.

        Raises:
            DamagedArchiveError: there is no such entry, or its checksum is another.
        """
        return bytes(self.read_tensor(name).numpy())

    def read_tensor(self, name: str) -> Tensor:
        """The content of an entry as bytes: a tensor of its own memory."""
        entry = self._entry(name)
        content = torch.empty(entry.file_size, dtype=torch.uint8)
        into, at = content.numpy(), 0
        try:
            with self._zip.open(entry) as stream:
                while chunk := stream.read(_CHUNK):
                    into[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
                    at += len(chunk)
        except Exception as error:
            raise DamagedArchiveError(f"{name} cannot be read ({error})") from error
        if at != entry.file_size:
            raise DamagedArchiveError(f"{name} is cut short")
        return content

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise DamagedArchiveError(f"{name} is missing")
        return self._entries[name]


def require_archive(content: bytes) -> None:
    """Check an archive within another one before torch reads it.

    Raises:
        DamagedArchiveError: it is no such archive.
    """
    Archive(io.BytesIO(content))


def _require_plain_end(file: BinaryIO, size: int, archive: zipfile.ZipFile) -> None:
    """The directory is at the very end: all programs that read zip files find the same one."""
    file.seek(max(size - 22, 0))
    end = file.read(22)
    if not end.startswith(_END) or archive.comment:
        raise DamagedArchiveError("it does not end with its directory")


def _require_stored(entries: list[zipfile.ZipInfo], end: int) -> None:
    if len(entries) > _MOST_ENTRIES:
        raise DamagedArchiveError(f"it has {len(entries):,} entries")
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise DamagedArchiveError("it is a compressed archive, which torch does not write")
        if entry.flag_bits & 1:
            raise DamagedArchiveError("it is encrypted")
        if entry.header_offset < at:
            raise DamagedArchiveError("its entries overlap")
        at = entry.header_offset + _LEAST_HEADER + len(entry.orig_filename) + entry.file_size
    if at > end:
        raise DamagedArchiveError("its entries are larger than the file")
