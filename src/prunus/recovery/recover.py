"""Repair a cut network layer by layer: each is fitted to the original's outputs, on inputs from the repaired layers before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from prunus.capture import Captured
from prunus.errors import ConfigError
from prunus.evidence import Progress
from prunus.evidence.batches import checked_batches
from prunus.recovery.lane import Lane
from prunus.recovery.layers import Layer, find_layers, frozen_norm, gain_of
from prunus.recovery.least_squares import Fit, Moments, fit
from prunus.recovery.outcome import STEPS, Recovery, Repair
from prunus.recovery.statistics import Statistics, like
from prunus.structure import Structure
from prunus.surgery.masks import Masks, kept_values

__all__ = ["recover"]

SAMPLES = 1024  # more hardly help, and all of them are held in memory
_HELD = 4  # every fourth batch judges what the others fit
_ROWS_PER_INPUT, _LEAST_ROWS, _MOST_ROWS = 24, 8192, 65536


def recover(
    structure: Structure,
    small: Captured,
    keep: np.ndarray | Tensor,
    data: Any,
    *,
    steps: Sequence[str] = STEPS,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Captured, Recovery]:
    """Give a cut network weights with which it computes what the original does, as nearly as its sizes allow.

    Both networks run side by side over the data, once. Each linear layer and convolution whose input has changed is fitted
    anew (`"compensate"`): its inputs come from the small network with all earlier layers repaired, its targets from the
    original. Where its output is added to something, such as a shortcut, the target includes what that sum lacks already,
    so that errors do not add up along the network. The solution is that of ridge regression about the weights
    that were cut out, `dW = C_tx (C_xx + r I)^-1`, with an offset for the bias; `r` is what leaves the least error on a
    quarter of the batches that was held out, which may be to change nothing. A layer without a bias takes its offset up in
    the batch normalization behind it, or goes without one. Then batch normalizations get the statistics of what they
    now see (`"batch_norm"`), where that brings their outputs nearer to the original's on held-out data, or in any case when
    this is the only step.

    Args:
        structure: of the original.
        small: the cut network, whose tensors stay as they are.
        keep: (labels,) bool: what stays.
        data: an iterable of batches like the example inputs, without labels; the first 1,024 samples are used.
        steps: which of `STEPS`.
        progress: called after each layer.

    Returns:
        The network with repaired tensors, and what was done.

    Raises:
        ConfigError: data that is empty or does not fit.

    References:
        He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, arXiv:1707.06168 (least squares,
        inputs of the pruned and targets of the original network); Frantar and Alistarh, Optimal Brain Compression, NeurIPS
        2022, arXiv:2208.11580.
    """
    if structure.captured.partial is not None:
        raise ConfigError(
            "a model that was captured in parts cannot be repaired: what its parts are called with is not known for other "
            "data. Pass recover=False."
        )
    batches, samples = _batches(structure.captured, data)
    repairer = _Repairer(structure, small, torch.as_tensor(keep), batches, tuple(steps))
    started = time.perf_counter()
    work = repairer.work()
    for number, node in enumerate(work):
        repairer.visit(node)
        if progress is not None:
            spent = time.perf_counter() - started
            progress(Progress(number + 1, len(work), spent, spent / (number + 1) * (len(work) - number - 1)))
    recovery = Recovery(
        tuple(steps), samples, time.perf_counter() - started, tuple(repairer.repairs), tuple(repairer.left)
    )
    return small.with_(tensors=repairer.tensors), recovery


def _batches(captured: Captured, data: Any) -> tuple[list[tuple[Any, ...]], int]:
    found, samples = [], 0
    for batch in islice(checked_batches(captured, data), SAMPLES):
        found.append(batch.leaves)
        samples += batch.samples
        if samples >= SAMPLES:
            break
    if len(found) == 1 and captured.batch is not None and samples >= _HELD:
        (leaves,) = found  # something must be held out
        parts = [
            torch.tensor_split(leaf, _HELD) if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == samples
            else (leaf,) * _HELD
            for leaf in leaves
        ]  # fmt: skip
        found = list(zip(*parts, strict=True))
    return found, samples


class _Repairer:
    def __init__(
        self,
        structure: Structure,
        small: Captured,
        keep: Tensor,
        batches: list[tuple[Any, ...]],
        steps: tuple[str, ...],
    ) -> None:
        self.tensors = dict(small.tensors)
        self.repairs: list[Repair] = []
        self.left: list[str] = []
        self._steps = steps
        self._small, self._names = small, small.names
        self._masks = Masks(structure.tracks, keep)
        self._layers = find_layers(small) if "compensate" in steps else {}
        self._changed = _changed(structure.captured, small)
        self._original = Lane(structure.captured, structure.captured.tensors, batches)
        self._lane = Lane(small, self.tensors, batches)
        self._random = torch.Generator().manual_seed(0)

    def work(self) -> list[fx.Node]:
        """The nodes that are looked at."""
        norms = "batch_norm" in self._steps
        return [
            node
            for node in self._small.graph.nodes
            if node.name in self._original.by_name
            and any(n in self._changed for n in node.all_input_nodes if n not in self._weights(node))
            and (node in self._layers or (norms and frozen_norm(self._small, node)))
        ]

    def _weights(self, node: fx.Node) -> set[fx.Node]:
        return {n for n in node.all_input_nodes if n.name in self.tensors}

    def visit(self, node: fx.Node) -> None:
        """Repair one layer."""
        self._original.run_to(self._original.by_name[node.name], inclusive=True)
        self._lane.run_to(node, inclusive=False)
        if node in self._layers:
            self._compensate(self._layers[node])
        else:
            self._norm(node)

    # ------------------------------------------------------------------ least squares
    def _compensate(self, layer: Layer) -> None:
        weight = self.tensors[layer.weight].detach()
        path = self._names[layer.weight].rpartition(".")[0]
        gain = gain_of(layer, self.tensors) if layer.shortcut else None
        sums, variance = (Moments(), Moments()), Moments()
        size = weight[0].numel()
        per_batch = -(-min(max(_ROWS_PER_INPUT * size, _LEAST_ROWS), _MOST_ROWS) // len(self._lane.values))
        for i, (was, now) in enumerate(zip(self._original.values, self._lane.values, strict=True)):
            wanted = self._wanted(layer, was, now, gain)
            if wanted is None:
                self.left.append(path)
                return
            outputs = layer.outputs(wanted)
            rows = torch.randperm(len(outputs), generator=self._random)[:per_batch]
            x = layer.inputs(self._lane.read(layer.source, now), rows, tuple(weight.shape[2:])).float()
            t = outputs[rows].float().reshape(len(rows), layer.groups, -1)
            sums[_is_held(i, len(self._lane.values))].add(x, t - self._predicted(layer, x))
            variance.add(x[:, :, :1], t)
        bias = layer.bias is not None or layer.norm is not None
        train, held = sums if sums[1].n else (sums[0], sums[0])
        found = fit(train, held, bias)
        self._apply(layer, path, found, float(variance.centered(True)[2].sum()))

    def _wanted(
        self, layer: Layer, was: dict[fx.Node, Any], now: dict[fx.Node, Any], gain: Tensor | None
    ) -> Tensor | None:
        """What the layer should put out, for one batch: what it did, and what its sum lacks already."""
        y = self._kept(layer.node.name, was[self._original.by_name[layer.node.name]])
        if y is None or y.shape[layer.channel_axis] != self.tensors[layer.weight].shape[0]:
            return None
        if layer.shortcut is None or gain is None:
            return y
        other = layer.shortcut.other
        if other.name not in self._original.by_name:
            return y
        before = self._kept(other.name, self._original.read(self._original.by_name[other.name], was))
        after = self._lane.read(other, now)
        if before is None or before.shape != after.shape or before.shape != y.shape:
            return y
        inverse = torch.where(gain.abs() > 1e-3 * gain.abs().max(), 1 / gain, 0.0).to(y.dtype)
        inverse = inverse.reshape(-1, *(1,) * layer.spatial)
        return y + (before - after) * inverse

    def _kept(self, name: str, value: Tensor) -> Tensor | None:
        """The positions of an original value that the small network has, in its order."""
        mask = self._masks.of(name)
        if mask is None:
            return value
        varying = [axis for axis, size in enumerate(mask.shape) if size > 1]
        if len(varying) == 1:
            return value.index_select(varying[0], torch.nonzero(mask.flatten())[:, 0])
        shape = getattr(self._lane.by_name[name].meta.get("val"), "shape", None)
        try:  # rows that keep different indices
            return None if shape is None else kept_values(value, mask, (value.shape[0], *map(int, shape[1:])))
        except RuntimeError:  # labels along a merged batch are those of one batch size
            return None

    def _predicted(self, layer: Layer, x: Tensor) -> Tensor:
        weight = self.tensors[layer.weight].detach().float()
        y = torch.einsum("rgd,god->rgo", x, weight.reshape(layer.groups, -1, x.shape[2]))
        if layer.bias is None:
            return y
        return y + self.tensors[layer.bias].detach().float().reshape(layer.groups, -1)

    def _apply(self, layer: Layer, path: str, found: Fit, variance: float) -> None:
        if found.weight is None:
            self.left.append(path)
            return
        weight = self.tensors[layer.weight]
        self.tensors[layer.weight] = like(
            weight, weight.detach().double() + found.weight.reshape(weight.shape)
        )
        if found.bias is not None:
            offset = found.bias.reshape(-1)
            if layer.bias is not None:
                bias = self.tensors[layer.bias]
                self.tensors[layer.bias] = like(bias, bias.detach().double() + offset)
            else:
                assert layer.norm is not None and isinstance(layer.norm.args[3], fx.Node)
                mean = self.tensors[layer.norm.args[3].name]
                self.tensors[layer.norm.args[3].name] = like(mean, mean.double() - offset)
        scale = max(variance, 1e-30)
        self.repairs.append(
            Repair(path, "compensate", found.before / scale, found.after / scale, found.ridge)
        )

    # ------------------------------------------------------------------ batch normalization
    def _norm(self, node: fx.Node) -> None:
        source, _, _, mean, variance = node.args[:5]
        assert isinstance(source, fx.Node) and isinstance(mean, fx.Node) and isinstance(variance, fx.Node)
        seen, held = Statistics(), Statistics()
        for i, now in enumerate(self._lane.values):
            (held if _is_held(i, len(self._lane.values)) else seen).add(self._lane.read(source, now))
        path = self._names[mean.name].rpartition(".")[0]
        old = (self.tensors[mean.name], self.tensors[variance.name])
        new = seen.settled(old)
        before, after, scale = 0.0, 0.0, 0.0
        for i, (was, now) in enumerate(zip(self._original.values, self._lane.values, strict=True)):
            if held.n and not _is_held(i, len(self._lane.values)):
                continue
            wanted = self._kept(node.name, was[self._original.by_name[node.name]])
            if wanted is None:
                return
            x = self._lane.read(source, now)
            before += float((self._normed(node, x, old) - wanted).double().square().sum())
            after += float((self._normed(node, x, new) - wanted).double().square().sum())
            scale += float((wanted.double() - wanted.double().mean()).square().sum())
        if after >= before and self._steps != ("batch_norm",):
            self.left.append(path)
            return
        seen.merge(held)
        self.tensors[mean.name], self.tensors[variance.name] = seen.settled(old)
        scale = max(scale, 1e-30)
        self.repairs.append(Repair(path, "batch_norm", before / scale, after / scale))

    def _normed(self, node: fx.Node, x: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        weight, bias = (
            self.tensors[a.name].detach() if isinstance(a, fx.Node) else None for a in node.args[1:3]
        )
        return torch.nn.functional.batch_norm(x, *statistics, weight, bias, eps=float(node.args[7]))  # type: ignore[arg-type]


def _is_held(index: int, count: int) -> bool:
    return count >= 2 and index % _HELD == min(_HELD, count) - 1


def _changed(original: Captured, small: Captured) -> set[fx.Node]:
    """Values of the small graph that differ from the original's."""
    found: set[fx.Node] = set()
    for node in small.graph.nodes:
        was = original.tensors.get(node.name)
        cut = node.name in small.tensors and (was is None or was.shape != small.tensors[node.name].shape)
        if cut or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found
