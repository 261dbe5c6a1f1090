"""The original and the cut network side by side, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from prunus.capture import Captured
from prunus.recovery.footprint import Footprint, Share, footprint, shared_out
from prunus.recovery.lane import Lane
from prunus.recovery.layers import Layer, frozen_norm
from prunus.recovery.statistics import like
from prunus.recovery.store import Values
from prunus.structure import Structure
from prunus.surgery.biases import bias_path, give_bias
from prunus.surgery.masks import Masks, kept_values

__all__ = ["HELD", "Batches", "Both", "Pair", "share_of", "stops_of"]

HELD = 4  # every fourth batch judges what the others fit


@dataclass(frozen=True)
class Batches:
    """The data.

    Attributes:
        leaves: for each batch, the values of the graph's inputs.
        sizes: for each batch, the number of samples.
    """

    leaves: tuple[tuple[Any, ...], ...]
    sizes: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return next((v.device for v in self.leaves[0] if isinstance(v, Tensor)), torch.device("cpu"))


@dataclass(frozen=True, eq=False)
class Both:
    """One batch in both networks.

    Attributes:
        was, now: values of the original and of the cut network.
        held: whether the batch judges what others fit.
    """

    was: Values
    now: Values
    held: bool


class Pair:
    """Two networks that go through the data together.

    Args:
        structure: of the original.
        small: the cut network.
        keep: (labels,) bool: what stays.
        batches: the data.
        folder, resident: see `Lane`.
        allow_bias: layers may be given a bias; the cut network has to have a graph of its own then.

    Attributes:
        tensors: of the cut network; what is put here is used by all that runs afterwards.
        biases: paths of layers that were given a bias.
        leaves: values of the graph's inputs in the first batch.
    """

    def __init__(
        self,
        structure: Structure,
        small: Captured,
        keep: Tensor,
        batches: Batches,
        folder: Path | None = None,
        resident: int = 0,
        allow_bias: bool = False,
    ) -> None:
        self.biases: list[str] = []
        self.leaves = batches.leaves[0]
        self._captured, self._allow_bias = small, allow_bias
        self._weights = structure.captured.tensors
        self._mixed: dict[str, Tensor] = {}  # layer -> (outputs, original outputs)
        self.tensors = dict(small.tensors)
        self.count = len(batches.leaves)
        self._masks = Masks(structure.tracks, keep)
        self._original = Lane(
            structure.captured, structure.captured.tensors, batches.leaves, folder, resident
        )
        self._small = Lane(small, self.tensors, batches.leaves, folder, resident)

    def bias_path(self, node: fx.Node) -> str | None:
        """Path of a layer that may be given a bias; None of any other."""
        return bias_path(self._captured, node) if self._allow_bias else None

    def give_bias(self, node: fx.Node, path: str, bias: Tensor) -> None:
        """Let a layer add a bias from now on."""
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        name = give_bias(self._captured, node, path, bias.to(self.tensors[weight.name]))
        self.tensors[name] = self._captured.tensors[name]
        self.biases.append(path)

    def weight(self, name: str) -> Tensor:
        """A tensor of the original."""
        return self._weights[name]

    def kept_along(self, weight: str, axis: int) -> Tensor:
        """(n,) which rows or columns of a weight of the original stay, in their order."""
        size = self._weights[weight].shape[axis]
        mask = self._masks.of(weight)
        if mask is None or mask.shape[axis] == 1:
            return torch.arange(size)
        return torch.nonzero(mask.movedim(axis, 0).flatten(1).any(1))[:, 0]

    def mix(self, layer: Layer, rows: Tensor, matrix: Tensor) -> None:
        """Let a linear layer put out mixtures of what that of the original does, also as far as it is fitted later.

        Args:
            layer: of the cut network, whose tensors go by the same names in the original.
            rows: (n,) the outputs that become mixtures.
            matrix: (n, original outputs).
        """
        name, weight = layer.node.name, self._weights[layer.weight].detach().double()
        if name not in self._mixed:
            kept = self.kept_along(layer.weight, 0).to(weight.device)
            self._mixed[name] = torch.eye(len(weight), dtype=torch.float64, device=weight.device)[kept]
        mixed = self._mixed[name]
        mixed[rows.to(weight.device)] = matrix.to(weight.device)
        inputs = self.kept_along(layer.weight, 1).to(weight.device)
        self._set(layer.weight, mixed @ weight[:, inputs])
        if layer.bias is not None:
            self._set(layer.bias, mixed @ self._weights[layer.bias].detach().double())

    def _set(self, name: str, value: Tensor) -> None:
        self.tensors[name] = like(self.tensors[name], value)

    def at(self, node: fx.Node, past: bool = True) -> Iterator[Both]:
        """Every batch, with the original past a node of the cut network (or just before it), and that just before it."""
        for i in range(self.count):
            with (
                self._original.batch(i, self._original.by_name[node.name], inclusive=past) as was,
                self._small.batch(i, node, inclusive=False) as now,
            ):
                yield Both(was, now, self.count >= 2 and i % HELD == min(HELD, self.count) - 1)

    def now(self, node: fx.Node, both: Both) -> Tensor:
        """A value of the cut network."""
        return self._small.read(node, both.now)

    def change(self, node: fx.Node, how: Callable[[Tensor], Tensor]) -> None:
        """Let the cut network go on with another value than it has, as a layer that was repaired would have made it."""
        self._small.change(node, how)

    def kept_heads(self, name: str, both: Both) -> Tensor | None:
        """An original value, of the entries along axis 1 of which something is left."""
        node = self._original.by_name.get(name)
        if node is None:
            return None
        value, mask = self._original.read(node, both.was), self._masks.of(name)
        if mask is None or mask.shape[1] == 1:
            return value
        stays = mask.transpose(0, 1).flatten(1).any(1)
        return value.index_select(1, torch.nonzero(stays)[:, 0].to(value.device))

    def wanted(self, name: str, both: Both) -> Tensor | None:
        """What a value of the cut network is in the original: the positions that it has, in its order; None where that is not known."""
        node = self._original.by_name.get(name)
        if node is None:
            return None
        if name in self._mixed:
            value = self._original.read(node, both.was)
            return value @ self._mixed[name].mT.to(value)
        value, mask = self._original.read(node, both.was), self._masks.of(name)
        if mask is None:
            return value
        varying = [axis for axis, size in enumerate(mask.shape) if size > 1]
        if len(varying) == 1:
            return _taken(value, varying[0], torch.nonzero(mask.flatten())[:, 0].to(value.device))
        shape = getattr(self._small.by_name[name].meta.get("val"), "shape", None)
        try:  # rows that keep different indices
            return None if shape is None else kept_values(value, mask, (value.shape[0], *map(int, shape[1:])))
        except RuntimeError:  # labels along a merged batch are those of one batch size
            return None


def _taken(value: Tensor, axis: int, index: Tensor) -> Tensor:
    """What `index_select` gives, which along the last axis of more than two takes five times as long."""
    if axis != value.dim() - 1:
        return value.index_select(axis, index)
    return value.reshape(-1, value.shape[-1]).index_select(1, index).reshape(*value.shape[:-1], -1)


def stops_of(
    original: Captured, small: Captured, layers: set[fx.Node], attentions: set[fx.Node], norms: bool
) -> list[fx.Node]:
    """Nodes of the cut network that are looked at: those whose inputs differ from the original's, and some attentions."""
    changed, names = _changed(original, small), {node.name for node in original.graph.nodes}
    return [
        node
        for node in small.graph.nodes
        if node in attentions
        or (
            node.name in names
            and any(n in changed for n in node.all_input_nodes if n.name not in small.tensors)
            and (node in layers or (norms and frozen_norm(small, node)))
        )
    ]


def _changed(original: Captured, small: Captured) -> set[fx.Node]:
    """Values of the small graph that differ from the original's."""
    found: set[fx.Node] = set()
    for node in small.graph.nodes:
        was = original.tensors.get(node.name)
        cut = node.name in small.tensors and (was is None or was.shape != small.tensors[node.name].shape)
        if cut or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def share_of(
    original: Captured, small: Captured, stops: Sequence[fx.Node], batches: Batches, budget_bytes: int | None
) -> Share:
    """Which batches stay in memory between two stops."""
    by_name = {node.name: node for node in original.graph.nodes}
    needs: dict[int, Footprint] = {}
    for size in set(batches.sizes):
        one = footprint(original, [(by_name[node.name], True) for node in stops], size)
        other = footprint(small, [(node, False) for node in stops], size)
        needs[size] = Footprint(one.kept + other.kept, one.peak + other.peak)
    return shared_out([needs[size] for size in batches.sizes], budget_bytes, batches.device)
