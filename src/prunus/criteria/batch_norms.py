"""Batch normalizations right behind layers: what they multiply the weights by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from prunus.criteria.reaching import Reaching

__all__ = ["batch_norm_gains", "batch_norm_scales"]


def _batch_norms(reaching: Reaching) -> Iterator[tuple[str, bool, Any]]:
    """Weight of a layer, whether that is transposed, and the batch normalization that alone reads its output."""
    for node in reaching.structure.captured.graph.nodes:
        if not str(node.target).startswith("aten.batch_norm"):
            continue
        layer = node.args[0]
        if layer is None or layer.op != "call_function" or len(layer.users) != 1:
            continue
        name = str(layer.target)
        if not name.startswith(("aten.conv", "aten.linear")):
            continue
        if reaching.is_source(layer.args[1]):
            yield layer.args[1].name, "transpose" in name, node


def batch_norm_gains(reaching: Reaching) -> dict[str, Tensor]:
    """Weight -> (out,) gain of the batch normalization (with running statistics) right behind its layer."""
    gains: dict[str, Tensor] = {}
    for kernel, transposed, node in _batch_norms(reaching):
        _, weight, _, mean, variance = (*node.args[:5], *(None,) * (5 - len(node.args[:5])))
        if transposed or mean is None or variance is None:
            continue
        eps = node.args[7] if len(node.args) > 7 else 1e-5
        scale, spread = _tensor(reaching, weight), _tensor(reaching, variance)
        if spread is not None and (weight is None or scale is not None):
            gains[kernel] = (1 if scale is None else scale) / (spread + eps).sqrt()
    return gains


def batch_norm_scales(reaching: Reaching) -> dict[str, Tensor]:
    """Weight -> (out,) weight of the batch normalization right behind its layer."""
    found = {kernel: _tensor(reaching, node.args[1]) for kernel, _, node in _batch_norms(reaching)}
    return {kernel: scale for kernel, scale in found.items() if scale is not None}


def _tensor(reaching: Reaching, node: fx.Node | None) -> Tensor | None:
    return None if node is None else reaching.tensor(node)
