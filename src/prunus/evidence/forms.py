"""The forms in which calibration data comes, and batches out of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from prunus.errors import ConfigError
from prunus.evidence.files import CHUNK, FileData
from prunus.evidence.store import Evidence
from prunus.inputs import Inputs

__all__ = ["FORMS", "as_data", "batches_of", "length_of"]

FORMS = "batches of what the model takes: tensors, arrays, tuples, dictionaries or prunus.Inputs"


class _Again:
    """What an iterator yields, which is kept for the next time; no more of it is read than is asked for."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source, self._seen = source, []

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            while number < len(self._seen):
                yield self._seen[number]
                number += 1
            try:
                self._seen.append(next(self._source))
            except StopIteration:
                return


class _Called:
    """What a function returns, which is called for every pass."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        made = self._make()
        if not isinstance(made, Iterable):
            raise ConfigError(f"data() returned a {type(made).__name__}: let it return {FORMS}")
        return iter(made)


def as_data(data: Any) -> Any:
    """Data in a form that can be gone through several times; nothing of it is read.

    Args:
        data: an iterable of batches (a list, a `DataLoader`, a generator), a function that makes one, a torch `Dataset`, the path
            of a file of arrays or of a folder of these; or one tensor, array, dictionary or `Inputs` of all samples. None and
            `Evidence` stay as they are.

    Raises:
        ConfigError: anything else.
        SourceError: a path without such files.
    """
    data = _known(data)
    once = isinstance(data, Iterator) or (_is_other(data) and iter(data) is iter(data))
    return _Again(iter(data)) if once else data


def _known(data: Any) -> Any:
    """Data as something to iterate over, or of which batches can be cut."""
    if data is None or isinstance(data, Evidence | Tensor | Inputs | Mapping | FileData | _Again | _Called):
        return data
    if isinstance(data, np.ndarray):
        return _tensor(data)
    if isinstance(data, str | os.PathLike):
        return FileData(Path(data))
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=CHUNK, generator=torch.Generator())
    if callable(data) and not isinstance(data, Iterable | type):
        return _Called(data)
    if isinstance(data, bytes | type) or not isinstance(data, Iterable):
        raise ConfigError(f"data is a {type(data).__name__}: pass an iterable of {FORMS}")
    if isinstance(data, list | tuple) and not data:
        raise ConfigError(f"data is empty: pass {FORMS}, like the example inputs")
    return data


def _is_other(data: Any) -> bool:
    """An iterable of a class of the user's own, which may be one that can be gone through once."""
    known = (Evidence, Tensor, Inputs, Mapping, FileData, _Again, _Called, DataLoader, list, tuple)
    return data is not None and not isinstance(data, known)


def _tensor(array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise ConfigError(
            f"data is an array of {array.dtype}, which are no numbers that torch knows"
        ) from error


def length_of(data: Any) -> int | None:
    """How many batches there are, where that can be known."""
    if isinstance(data, Tensor | Mapping | Inputs):
        size = _size(data)
        return -(-size // CHUNK) if size else None
    try:
        return len(data)
    except TypeError:
        return None


def batches_of(data: Any) -> Iterator[Any]:
    """The batches as they are given."""
    data = _known(data)
    return _cut(data) if isinstance(data, Tensor | Mapping | Inputs) else iter(data)


def _size(data: Tensor | Mapping | Inputs) -> int:
    leaves = pytree.tree_leaves((data.args, data.kwargs) if isinstance(data, Inputs) else _plain(data))
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim]
    return int(sizes[0]) if sizes else 0


def _plain(data: Any) -> Any:
    return dict(data) if isinstance(data, Mapping) else data


def _cut(data: Any) -> Iterator[Any]:
    size = _size(data)

    def part(start: int) -> Any:
        def sliced(leaf: Any) -> Any:
            matches = isinstance(leaf, Tensor | np.ndarray) and leaf.ndim and leaf.shape[0] == size
            return leaf[start : start + CHUNK] if matches else leaf

        if isinstance(data, Inputs):
            return Inputs(*pytree.tree_map(sliced, (data.args, data.kwargs)))
        return pytree.tree_map(sliced, _plain(data))

    return (part(start) for start in range(0, size, CHUNK))
