"""What is finished of a long repair, on disk: a run that was killed goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils import _pytree as pytree

from prunus.capture import Captured, architecture_hash
from prunus.criteria import as_criterion, needs_of
from prunus.errors import ConfigError
from prunus.evidence import Evidence, Progress, collect
from prunus.evidence.forms import batches_of
from prunus.files import reason_of, write_file
from prunus.inputs import Inputs
from prunus.recovery.outcome import Repair
from prunus.recovery.pair import Pair
from prunus.structure import Structure

__all__ = ["Checkpoint", "Finished", "checked_checkpoint"]


def checked_checkpoint(folder: Any, data: Any) -> None:
    """Refuse a folder that cannot be one, and one for which there is nothing to note.

    Raises:
        ConfigError: no path, a file, or no data.
    """
    if folder is None:
        return
    if not isinstance(folder, str | os.PathLike):
        raise ConfigError(f"checkpoint is a {type(folder).__name__}: pass the path of a folder")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ConfigError(
            f"checkpoint={str(folder)!r} is a file: pass the path of a folder, new or from an interrupted run"
        )
    if data is None:
        raise ConfigError("checkpoint: without data there is nothing to note; leave it out, or pass data=")


class Checkpoint:
    """A folder that remembers what calibration data said and which layers are repaired.

    What it remembers belongs to one model with its weights and to data with one first batch: for any others it starts anew,
    beside what is there.

    Args:
        folder: made where there is none.
        captured: the original.
        data: an iterable of batches that can be iterated over again, or evidence.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], captured: Captured, data: Any) -> None:
        self._data = data
        self._folder = Path(folder) / _digest(captured, data)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"checkpoint={str(folder)!r:.300} is no folder that can be made: {reason_of(error)}"
            ) from error

    def evidence(
        self,
        structure: Structure,
        method: Any,
        loss: Callable[[Any, Any], Any] | None,
        progress: Callable[[Progress], None] | None,
    ) -> Any:
        """What the data say for a method, from the file or from the data; the data where nothing is to be collected."""
        needs = needs_of(as_criterion(method))
        if not needs or self._data is None or isinstance(self._data, Evidence):
            return self._data
        file = (
            self._folder
            / f"evidence-{_short(repr((structure.keep_class, sorted(need.key for need in needs))))}.safetensors"
        )
        if file.is_file():
            return Evidence.load(file)
        found = collect(structure, needs, self._data, loss=loss, progress=progress)
        found.save(file)
        return found

    def finished(self, keep: np.ndarray, steps: tuple[str, ...], allow_bias: bool) -> Finished:
        """The layers that are done of one repair."""
        said = np.packbits(np.asarray(keep, dtype=bool)).tobytes().hex() + repr((steps, allow_bias))
        return Finished(self._folder / f"repair-{_short(said)}")

    def remove(self) -> None:
        """Remove what is no longer needed, and the folder if nothing else is in it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            self._folder.parent.rmdir()
        except OSError:
            pass  # something else is in it


class Finished:
    """One file for each place that a repair has passed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def restore(self, number: int, pair: Pair, node: torch.fx.Node) -> tuple[str, Repair | None] | None:
        """Put back what was done at a place; None where nothing is known. A file that cannot be read counts as none."""
        file = self._file(number)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as opened:
                about = json.loads((opened.metadata() or {})["about"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
            path, repair = str(about["path"]), Repair(**about["repair"]) if about["repair"] else None
            given = tensors.pop("given bias") if about["bias"] else None
        except Exception:  # noqa: BLE001  whatever a damaged file does to those who read it
            return None
        if any(
            name not in pair.tensors or pair.tensors[name].shape != t.shape for name, t in tensors.items()
        ):
            return None
        if given is not None:
            pair.give_bias(node, path, given)
        for name, tensor in tensors.items():
            was = pair.tensors[name]
            made = tensor.to(was.device, was.dtype)
            trained = isinstance(was, torch.nn.Parameter)
            pair.tensors[name] = torch.nn.Parameter(made, was.requires_grad) if trained else made
        return path, repair

    def note(
        self, number: int, before: Mapping[str, Tensor], pair: Pair, path: str, repair: Repair | None
    ) -> None:
        """Write down what changed at a place, all or nothing."""
        changed = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in pair.tensors.items()
            if name in before and tensor is not before[name]
        }
        given = [name for name in pair.tensors if name not in before]
        if given:
            changed["given bias"] = pair.tensors[given[0]].detach().cpu().contiguous()
        about = {"path": path, "bias": bool(given), "repair": asdict(repair) if repair else None}
        with contextlib.suppress(OSError):  # writing says why
            self._folder.mkdir(exist_ok=True)
        write_file(self._file(number), save(changed, {"about": json.dumps(about)}), ConfigError, "checkpoint")

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05}.safetensors"


def _digest(captured: Captured, data: Any) -> str:
    """Of the architecture, the weights and the first batch."""
    hashed = hashlib.sha256(architecture_hash(captured).encode())
    first = None if data is None or isinstance(data, Evidence) else next(batches_of(data), None)
    leaves = pytree.tree_leaves((first.args, first.kwargs) if isinstance(first, Inputs) else first)
    for tensor in (*captured.tensors.values(), *leaves):
        if isinstance(tensor, Tensor):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            hashed.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return hashed.hexdigest()[:16]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
