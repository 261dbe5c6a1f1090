"""Calibration data from files of arrays, never from pickles."""

import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from prunus.errors import SourceError
from prunus.evidence.arrays import KINDS, read_arrays
from prunus.files import PICKLES, reason_of, shown

__all__ = ["CHUNK", "LABELS", "Arrays", "FileData"]

CHUNK = 32  # samples at a time, where all of them come at once
LABELS = "labels"


class Arrays(dict[str, Tensor]):
    """A batch of a file: where its names are none of the model's arguments, their order counts."""


class FileData:
    """Batches from a file of arrays, or from all such files in a folder, one file in memory at a time.

    Arrays are found by the names of the model's arguments; where they have other names they count in their order, and an
    array called `labels` is no argument. An .npy file is the only argument.

    Args:
        path: an .npy, .npz or .safetensors file, or a folder of these.
        batch: samples in a batch.

    Raises:
        SourceError: no such file, or none that can be read.
    """

    def __init__(self, path: Path, batch: int = CHUNK) -> None:
        self.files = _files(path)
        self._batch = batch
        if not self.files or not os.path.exists(path):
            raise SourceError(f"{shown(path)}: there is no {', '.join(KINDS)} file there.")
        for file in self.files:
            if file.suffix in PICKLES:
                raise SourceError(
                    f"{shown(file)} is a pickle, which can run code when it is opened. Save the tensors with "
                    "safetensors.torch.save_file({'x': tensor}, 'data.safetensors') instead."
                )
            if file.suffix not in KINDS:
                raise SourceError(f"{shown(file)}: calibration data comes as {', '.join(KINDS)}.")
        self._first = self._read(self.files[0])

    def __len__(self) -> int:
        if len(self.files) > 1:
            raise TypeError  # nobody has opened the others
        return -(-len(next(iter(self._first.values()))) // self._batch)

    def __iter__(self) -> Iterator[Arrays]:
        for number, file in enumerate(self.files):
            arrays = self._first if number == 0 else self._read(file)
            size = len(next(iter(arrays.values())))
            for start in range(0, size, self._batch):
                yield Arrays({name: a[start : start + self._batch] for name, a in arrays.items()})

    @staticmethod
    def _read(file: Path) -> dict[str, Tensor]:
        arrays = read_arrays(file)
        sizes = {name: tuple(array.shape) for name, array in arrays.items()}
        if not arrays or any(not shape for shape in sizes.values()):
            raise SourceError(
                f"{shown(file)} holds no samples: {sizes or 'nothing'}; the first axis counts samples."
            )
        if len({shape[0] for shape in sizes.values()}) > 1:
            raise SourceError(f"{shown(file)}: arrays of different numbers of samples: {sizes}.")
        return arrays


def _files(path: Path) -> list[Path]:
    """The file, or those of a folder that may hold arrays."""
    if not os.path.isdir(path):
        return [path]
    try:
        return sorted(file for file in path.iterdir() if file.suffix in KINDS)
    except OSError as error:
        raise SourceError(f"{shown(path)} cannot be opened: {reason_of(error)}.") from error
