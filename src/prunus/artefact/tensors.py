"""State dicts as safetensors: each tensor once, tied ones with all of their names."""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prunus.errors import ArtefactError

__all__ = ["write_state"]


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a ``.safetensors`` file.

    A tensor with several names is written under the first. The metadata maps each other name to that one,
    the convention of ``safetensors.torch.save_model``.

    Raises:
        ArtefactError: If an entry is no tensor.
        OSError: If it cannot be written.
    """
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        kind = type(state[strange[0]]).__name__
        raise ArtefactError(
            f"The state_dict holds {strange[0]}, which is a {kind}; only tensors can be saved."
        )
    first: dict[object, str] = {}
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    for name, tensor in state.items():
        kept = first.setdefault(_memory(tensor), name)
        if kept != name:
            others[name] = kept
        else:
            # views of one another are separate tensors in the file
            tensors[name] = tensor.detach().cpu().contiguous()
    _separate(tensors)
    path.touch()
    mode = path.stat().st_mode  # as the umask says, where safetensors makes files for the owner alone
    try:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt", **others})
        path.chmod(mode)
    except safetensors.SafetensorError as error:
        raise _os_error(error, path) from error


def _memory(tensor: Tensor) -> object:
    if not tensor.numel():
        return id(tensor)
    return (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())


def _separate(tensors: dict[str, Tensor]) -> None:
    """Give tensors that share a part of their memory memory of their own."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())


def _os_error(error: Exception, path: Path) -> OSError:
    """The error of the operating system that safetensors wraps in a text."""
    text = str(error)
    number = text.rpartition("os error ")[2].rstrip(') "}')
    if number.isdigit():
        return OSError(int(number), os.strerror(int(number)), str(path))
    return OSError(f"{path.name}: {text}")
