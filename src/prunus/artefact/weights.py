"""Weights from a file, without running anything that the file contains."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from prunus.capture.reading.archive import Archive, DamagedArchiveError
from prunus.errors import SourceError
from prunus.files import as_path, open_file, shown

__all__ = ["load_weights"]

_TORCH = (".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(path: str | os.PathLike[str], *, max_size_bytes: int = 2**36) -> dict[str, Tensor]:
    """Read a state dict from a file.

    ``.safetensors`` files are read as they are; tied tensors get all names that the file gives them. Files
    of ``torch.save`` (``.pth``, ``.pt``, ``.bin``, ``.ckpt``) are read with ``weights_only=True``, which
    constructs tensors and plain containers and runs nothing else. A state dict inside a checkpoint (under
    ``state_dict``, ``model_state_dict`` or ``model``) is found, and the prefixes that ``DataParallel`` and
    ``torch.compile`` put before all names are taken off.

    Args:
        path: The file.
        max_size_bytes: Larger files are not read.

    Returns:
        Qualified name -> tensor on the CPU.

    Raises:
        SourceError: If there is no such file, it is too large or damaged, or holds more than tensors.
    """
    path = as_path(path, SourceError)
    suffix = path.suffix.lower()
    with open_file(path, SourceError, "; expected weights as .safetensors or .pth") as file:
        size = os.fstat(file.fileno()).st_size
    if size > max_size_bytes:
        raise SourceError(f"{shown(path)} has {size:,} bytes, more than the limit of {max_size_bytes:,}.")
    if suffix == ".safetensors":
        return _unprefixed(_from_safetensors(path))
    if suffix in _TORCH:
        return _unprefixed(_state_of(path, _from_torch(path)))
    raise SourceError(
        f"{shown(path)} is of no kind that holds weights; expected .safetensors, or .pth as "
        "torch.save(model.state_dict(), path) writes it."
    )


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:
        raise SourceError(f"{shown(path)} is damaged: {error}") from error
    tied = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors and name not in tensors}
    return {**tensors, **tied}


def _from_torch(path: Path) -> Any:
    with open_file(path, SourceError) as file:
        if file.read(2) == b"PK":
            try:
                Archive(file)
            except DamagedArchiveError as error:
                raise SourceError(
                    f"{shown(path)} is damaged, or not as torch.save writes it: {error}."
                ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SourceError(
            f"{shown(path)} is damaged or holds more than tensors, and is read only without running what it "
            f"contains: {str(error).splitlines()[0] if str(error) else type(error).__name__}\n"
            "If it holds a whole model or comes with other objects, convert it where you trust it: "
            "torch.save(torch.load(path, weights_only=False).state_dict(), 'weights.pth')."
        ) from error


def _state_of(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict in a checkpoint: the checkpoint itself, or what one of the usual keys holds."""
    if not isinstance(content, Mapping):
        raise SourceError(f"{shown(path)} holds a {type(content).__name__}, not a state dict.")
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    strange = [name for name, value in content.items() if not _is_plain(name, value)]
    if strange or not content:
        what = f"{strange[0]!r}: {_kind(content[strange[0]])}" if strange else "nothing"
        raise SourceError(
            f"{shown(path)} is no state dict: it holds {what}. Expected names and dense tensors, by themselves or "
            f"under one of {', '.join(_WRAPPERS)}."
        )
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in content.values()
    }
    if sum(storages.values()) > path.stat().st_size:
        raise SourceError(f"{shown(path)} claims tensors that are larger than the file.")
    return dict(content)


def _is_plain(name: Any, value: Any) -> bool:
    """Whether an entry is a dense tensor no larger than the memory behind it, which the file has filled."""
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_meta
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.layout} of {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while True:
        prefix = next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
