"""Weights and constants of a ``.pt2`` file: bytes in the archive, and a description of the tensors over them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.serde.schema import Layout
from torch._export.serde.serialize import deserialize_scalar_type

from prunus.capture.reading.archive import Archive
from prunus.capture.reading.plain import NotPlainError

__all__ = ["read_tensors"]

_RECORD = re.compile(r"(weight|tensor)_\d+")


def read_tensors(archive: Archive, folder: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that a configuration describes; those over the same bytes share their memory.

    Args:
        archive: holds the bytes.
        folder: of the entries.
        config: of torch's `PayloadConfig`, as checked JSON.

    Raises:
        NotPlainError: a tensor is not plain data, or claims more than the file has.
    """
    records: dict[str, Tensor] = {}
    tensors = {}
    for name, about in config["config"].items():
        record = about["path_name"]
        if not name.isprintable() or len(name) > 1000:
            raise NotPlainError(f"it holds a tensor of the name {name[:80]!r}, which cannot be printed")
        if not _RECORD.fullmatch(record):
            raise NotPlainError(f"{name} is a pickled object ({record[:80]})")
        if record not in records:
            records[record] = archive.read_tensor(folder + record)
        tensors[name] = _over(records[record], about, name, archive.size_bytes)
    return tensors


def _over(content: Tensor, about: dict[str, Any], name: str, limit: int) -> Tensor:
    """One tensor over the bytes of a record."""
    meta = about["tensor_meta"]
    if meta is None or meta["layout"] != Layout.Strided:
        raise NotPlainError(f"{name} is no ordinary dense tensor")
    dtype = deserialize_scalar_type(meta["dtype"])
    sizes, strides = _numbers(meta["sizes"], name), _numbers(meta["strides"], name)
    (offset,) = _numbers([meta["storage_offset"]], name)
    count = 1
    for size in sizes:
        count *= size
    if count * dtype.itemsize > limit:
        raise NotPlainError(f"it claims a tensor {name} of {tuple(sizes)}, which is larger than the file")
    if len(content) % dtype.itemsize:
        raise NotPlainError(f"{name} has {len(content)} bytes, which are no whole number of {dtype}")
    tensor = content.view(dtype).as_strided(sizes, strides, offset)
    if meta["device"]["type"] != "cpu":
        tensor = tensor.to(torch.device(meta["device"]["type"], meta["device"].get("index")))
    return nn.Parameter(tensor, requires_grad=meta["requires_grad"]) if about["is_param"] else tensor


def _numbers(sizes: list[dict[str, Any]], name: str) -> list[int]:
    numbers = [size.get("as_int", -1) for size in sizes]
    if any(number < 0 or number >= 2**63 for number in numbers):
        raise NotPlainError(f"{name} has sizes that are no numbers")
    return numbers
