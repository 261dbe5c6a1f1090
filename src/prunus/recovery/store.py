"""What is still needed of each batch: in memory as far as that goes, the rest in files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunus.errors import ConfigError

__all__ = ["Store", "spill_folder"]

Values = dict[fx.Node, Any]


class Store:
    """The values of a graph, for each batch.

    A batch in a file is there as a whole: values that share memory, such as a tensor and a view of it, share it again when
    they are read, so that what is written to one in place is seen in the other.

    Args:
        given: for each batch, the values at the start.
        folder: for the files; None keeps all in memory.
        resident: how many batches stay in memory, from the first on.
    """

    def __init__(self, given: list[Values], folder: Path | None, resident: int) -> None:
        self._values = given
        self._folder, self._resident = folder, resident
        self._files: dict[int, Path] = {}
        self._nodes: dict[int, dict[str, fx.Node]] = {}

    def spills(self, index: int) -> bool:
        """Whether a batch goes to a file between two visits."""
        return self._folder is not None and index >= self._resident

    def take(self, index: int) -> Values:
        """The values of a batch, which may be changed until they are put back."""
        values = self._values[index]
        if index in self._files:
            read = torch.load(self._files[index], weights_only=True)
            values.update({node: read[name] for name, node in self._nodes[index].items()})
        return values

    def put(self, index: int, values: Values, changed: bool) -> None:
        """Put a batch back; with `changed` false its file is still good."""
        if not self.spills(index):
            return
        held = {node: value for node, value in values.items() if _holds_tensors(value)}
        if changed or index not in self._files:
            assert self._folder is not None
            self._nodes[index] = {node.name: node for node in held}
            path = self._folder / f"{id(self):x}-{index}.pt"
            torch.save({node.name: value for node, value in held.items()}, path)
            self._files[index] = path
        for node in held:
            del values[node]


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


@contextmanager
def spill_folder(size_bytes: int) -> Iterator[Path | None]:
    """A folder that is gone afterwards, whatever happens; None if nothing needs one.

    It is where `TMPDIR` says, and else in /var/tmp where there is one: /tmp is in memory on many machines.

    Args:
        size_bytes: how much is to be written to it.

    Raises:
        ConfigError: there is not so much room.
    """
    if not size_bytes:
        yield None
        return
    parent = None if "TMPDIR" in os.environ or not os.access("/var/tmp", os.W_OK) else "/var/tmp"
    with tempfile.TemporaryDirectory(prefix="prunus-", dir=parent) as folder:
        free = shutil.disk_usage(folder).free
        if free < size_bytes:
            raise ConfigError(
                f"the repair needs {size_bytes / 1e9:.1f} GB beside the memory, and {folder} has room for {free / 1e9:.1f} GB: "
                "pass fewer batches, set TMPDIR to a folder on a larger disk, or pass recover=False"
            )
        yield Path(folder)
