"""Rows of a layer's inputs and outputs, drawn once and looked at several times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from prunus.recovery.layers import Layer, gain_of
from prunus.recovery.pair import Both, Pair

__all__ = ["Rows", "Sample"]

_ROWS, _FEWEST = 65536, 4096
_FOR_EACH = 8  # rows for each number that is fitted, if it takes what it will
_HELD_BYTES = 512 << 20  # rows that take more are gathered anew each time


@dataclass(frozen=True)
class Sample:
    """Rows of one batch.

    Attributes:
        held: whether they judge what others fit.
        x: (rows, groups, d) inputs.
        wanted: (rows, groups, out) what the layer should put out: what it did, and what its sum lacks already.
        start: (rows, groups, out) what the cut layer puts out.
        other: (rows, groups, out) what is added before the clip, or None.
    """

    held: bool
    x: Tensor
    wanted: Tensor
    start: Tensor
    other: Tensor | None


class Rows:
    """At most 65,536 rows, the same ones whenever they are iterated over; fewer where they are wide, as those of depthwise layers.

    Args:
        pair: both networks.
        layer: of the cut one.
        random: draws the rows.
    """

    def __init__(self, pair: Pair, layer: Layer, random: torch.Generator) -> None:
        self._pair, self._layer, self._random = pair, layer, random
        self._gain = gain_of(layer, pair.tensors) if layer.shortcut else None
        self._drawn: list[Tensor] = []
        self._kept: list[Sample] | None = None
        weight = pair.tensors[layer.weight]
        self._start = (
            layer.matrix(weight.detach().float()),
            None if layer.bias is None else pair.tensors[layer.bias].detach().float(),
        )
        wide = self._start[0].shape[2]
        numbers = wide * layer.groups + 3 * layer.width(weight)
        fewest = max(_FEWEST, _FOR_EACH * wide)
        self._count = min(_ROWS, max(fewest, _HELD_BYTES // (4 * numbers)))
        self._keeps = 4 * self._count * numbers <= _HELD_BYTES
        self.shares_sum = True  # what is added to the output is known, in both networks

    def __iter__(self) -> Iterator[Sample]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, per_batch = [], -(-self._count // self._pair.count)
        for i, both in enumerate(self._pair.at(self._layer.node)):
            wanted = self._wanted(both)
            if wanted is None:
                return
            if i == len(self._drawn):
                count = wanted.numel() // wanted.shape[self._layer.channel_axis]
                drawn = torch.randperm(count, generator=self._random)[:per_batch]
                self._drawn.append(drawn.sort().values)  # in the order in which they lie in memory
            sample = self._sample(both, wanted, self._drawn[i])
            if self._keeps:
                kept.append(sample)
            yield sample
        if self._keeps:
            self._kept = kept

    def _sample(self, both: Both, wanted: Tensor, rows: Tensor) -> Sample:
        layer, (matrix, bias) = self._layer, self._start
        kernel = tuple(self._pair.tensors[layer.weight].shape[2:])
        x = layer.inputs(self._pair.now(layer.source, both), rows, kernel).float()

        def picked(value: Tensor) -> Tensor:
            return layer.outputs(value, rows).float().reshape(len(rows), layer.groups, -1)

        start = torch.einsum("rgd,god->rgo", x, matrix)
        if bias is not None:
            start = start + bias.reshape(layer.groups, -1)
        target = picked(wanted)
        if layer.shortcut is not None:
            missing = self._missing(both, wanted.shape, layer.shortcut.other)
            if missing is not None:
                before, after, inverse = missing
                target = target + (picked(before) - picked(after)) * inverse
        other = None
        if layer.clip is not None and layer.clip.other is not None and self.shares_sum:
            other = picked(self._pair.now(layer.clip.other, both))
        return Sample(both.held, x, target, start, other)

    def _wanted(self, both: Both) -> Tensor | None:
        """What the layer did in the original, for one batch; None where that is not known."""
        pair, layer = self._pair, self._layer
        y = pair.wanted(layer.node.name, both)
        known = y is not None and y.shape[layer.channel_axis] == layer.width(pair.tensors[layer.weight])
        return y if known else None

    def _missing(self, both: Both, shape: torch.Size, node: fx.Node) -> tuple[Tensor, Tensor, Tensor] | None:
        """What the layer's output is added to, in both networks, and by what their difference has to be multiplied."""
        before, after = self._pair.wanted(node.name, both), self._pair.now(node, both)
        gain = self._gain
        if gain is None or before is None or before.shape != after.shape or before.shape != shape:
            self.shares_sum = False
            return None
        inverse = torch.where(gain.abs() > 1e-3 * gain.abs().max(), 1 / gain, 0.0).float()
        return before, after, inverse.reshape(self._layer.groups, -1)
