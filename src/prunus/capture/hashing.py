"""A fingerprint of an architecture."""

import hashlib
from typing import Any

import torch
from torch import fx

from prunus.capture.captured import Captured

__all__ = ["architecture_hash"]


def architecture_hash(captured: Captured) -> str:
    """Fingerprint of what a model computes, apart from the values of its weights.

    Covers the calls with their constant arguments and the names, shapes and dtypes of parameters, buffers and
    constants. Does not depend on weights' values, on devices, or on the size of a dynamic batch.

    Returns:
        SHA-256 as 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    number: dict[fx.Node, int] = {}
    for node in captured.graph.nodes:
        number[node] = len(number)
        if node.op == "placeholder":
            line = _placeholder(captured, node)
        else:
            line = f"{node.op} {node.target} {_argument(node.args, number)} {_argument(node.kwargs, number)}"
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _placeholder(captured: Captured, node: fx.Node) -> str:
    if node.name in captured.tensors:
        tensor = captured.tensors[node.name]
        names = sorted((captured.names[node.name], *captured.aliases.get(captured.names[node.name], ())))
        return f"{captured.kinds[node.name]} {names} {tuple(tensor.shape)} {tensor.dtype}"
    value = node.meta.get("val")
    return f"input {value.dim()} {value.dtype}" if isinstance(value, torch.Tensor) else f"input {value!r}"


def _argument(value: Any, number: dict[fx.Node, int]) -> str:
    if isinstance(value, fx.Node):
        return f"%{number[value]}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_argument(item, number) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_argument(value[key], number)}" for key in sorted(value)) + "}"
    if isinstance(value, torch.device):
        return "device"
    return repr(value)
