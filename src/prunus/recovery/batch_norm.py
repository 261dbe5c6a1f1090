"""Give a batch normalization the statistics of what it now sees."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from prunus.recovery.outcome import Repair
from prunus.recovery.pair import Pair
from prunus.recovery.statistics import Statistics

__all__ = ["estimate_anew"]


def estimate_anew(pair: Pair, node: fx.Node, path: str, anyway: bool) -> Repair | None:
    """Estimate one batch normalization; its tensors in `pair` are replaced.

    Args:
        pair: both networks.
        node: the normalization in the cut one.
        path: what the layer is called.
        anyway: also where that brings its outputs no nearer to the original's on held-out batches.

    Returns:
        What was done; None where it does not help, or what should come out is not known.
    """
    source, _, _, mean, variance = node.args[:5]
    assert isinstance(source, fx.Node) and isinstance(mean, fx.Node) and isinstance(variance, fx.Node)
    seen, held = Statistics(), Statistics()
    for both in pair.at(node):
        (held if both.held else seen).add(pair.now(source, both))
    old = (pair.tensors[mean.name], pair.tensors[variance.name])
    new = seen.settled(old)
    before, after, scale = 0.0, 0.0, 0.0
    for both in pair.at(node):
        if held.n and not both.held:
            continue
        wanted = pair.wanted(node.name, both)
        if wanted is None:
            return None
        x = pair.now(source, both)
        before += float((_normed(pair, node, x, old) - wanted).double().square().sum())
        after += float((_normed(pair, node, x, new) - wanted).double().square().sum())
        scale += float((wanted.double() - wanted.double().mean()).square().sum())
    if after >= before and not anyway:
        return None
    seen.merge(held)
    pair.tensors[mean.name], pair.tensors[variance.name] = seen.settled(old)
    scale = max(scale, 1e-30)
    return Repair(path, "batch_norm", before / scale, after / scale)


def _normed(pair: Pair, node: fx.Node, x: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
    weight, bias = (pair.tensors[a.name].detach() if isinstance(a, fx.Node) else None for a in node.args[1:3])
    return torch.nn.functional.batch_norm(x, *statistics, weight, bias, eps=float(node.args[7]))  # type: ignore[arg-type]
