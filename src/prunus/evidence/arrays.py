"""Arrays out of files that are not trusted: no pickles, and no more memory than the file has."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from prunus.errors import SourceError
from prunus.files import open_file, shown

__all__ = ["KINDS", "read_arrays"]

_UNPACKED, _TIMES = (
    2**28,
    100,
)  # bytes that any archive may unpack to, and how many times its size a larger one may


def read_arrays(file: Path) -> dict[str, Tensor]:
    """All arrays of an .npy, .npz or .safetensors file by name; that of an .npy file is called ``"0"``.

    Raises:
        SourceError: there is no such file, it is damaged, claims more than it has, or holds other things than numbers.
    """
    open_file(file, SourceError).close()
    try:
        return _READERS[file.suffix](file)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"{shown(file)} cannot be read as data: {error}") from error


def _npy(file: Path) -> dict[str, Tensor]:
    # a map of the file cannot be larger than the file
    return {"0": _tensor(np.array(np.load(file, mmap_mode="r", allow_pickle=False)))}


def _npz(file: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(_UNPACKED, _TIMES * os.path.getsize(file)):
        raise SourceError(
            f"{shown(file)} claims to unpack to {unpacked:,} bytes, more than {_TIMES} times its size. If that is what it holds, "
            "write it with numpy.savez, uncompressed."
        )
    found: Mapping[str, np.ndarray] = np.load(file, allow_pickle=False)
    return {name: _tensor(array) for name, array in found.items()}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": lambda file: load_file(file),
}
KINDS = tuple(_READERS)
