"""What a model costs for any choice of units, by arithmetic: no surgery is tried."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prunus.capture import Captured
from prunus.structure import Structure


@dataclass(frozen=True)
class Cost:
    """Predicted totals. `macs` count one sample where the batch is dynamic, else the captured batch."""

    params: int
    macs: int
    size_bytes: int

    def of(self, unit: str) -> int:
        return int(getattr(self, unit))


class CostModel:
    """Exact costs as functions of which labels stay."""

    def __init__(self, structure: Structure) -> None:
        captured = structure.captured
        self.structure = structure
        axes: dict[str, list[tuple[int, int]]] = {name: [] for name in captured.tensors}
        for place in structure.labels.places:
            axes[place.placeholder].append((place.start, place.size))
        dependent = captured.input_dependent()
        self._tensors = _Products()
        self._is_parameter, self._bytes, self._persistent = [], [], []
        saved = _saved(structure)
        for name, tensor in captured.tensors.items():
            spans = [np.arange(start, start + size) for start, size in axes[name]]
            constant = (
                tensor.numel() // int(np.prod([len(s) for s in spans], dtype=np.int64))
                if spans
                else tensor.numel()
            )
            self._tensors.add(constant, [(s,) for s in spans])
            self._is_parameter.append(captured.kinds[name] == "parameter")
            self._bytes.append(tensor.element_size() if name in saved else 0)
        self._works, self._per_batch = _Products(), []
        nodes = {node.name: node for node in captured.graph.nodes}
        for work in structure.labels.works:
            self._works.add(work.constant, list(work.clusters))
            self._per_batch.append(nodes[work.node] in dependent)
        self._tensors.freeze()
        self._works.freeze()
        self._batch = captured.batch or 1
        self._uncaptured = _uncaptured(captured)
        self.original = self(np.ones(structure.labels.count, bool))

    def __call__(self, keep: np.ndarray) -> Cost:
        """Costs when just the labels in `keep` (labels,) stay."""
        sizes = self._tensors(keep)
        works = self._works(keep)
        per_batch = np.array(self._per_batch, bool)
        macs = (
            round(int(works[per_batch].sum()) / self._batch) + int(works[~per_batch].sum())
            if len(works)
            else 0
        )
        params = int(sizes[np.array(self._is_parameter, bool)].sum()) if len(sizes) else 0
        rest = self._uncaptured
        return Cost(rest.params + params, macs, rest.size_bytes + int((sizes * np.array(self._bytes)).sum()))


def _uncaptured(captured: Captured) -> Cost:
    """What the parts of a model cost that were not captured: nothing when it was captured as a whole."""
    if captured.partial is None:
        return Cost(0, 0, 0)
    known = {id(tensor) for tensor in captured.tensors.values()}
    rest = [p for p in captured.partial.whole.parameters() if id(p) not in known]
    state = captured.partial.whole.state_dict(keep_vars=True).values()
    saved = {id(t): t for t in state if isinstance(t, Tensor) and id(t) not in known}
    return Cost(sum(p.numel() for p in rest), 0, sum(t.numel() * t.element_size() for t in saved.values()))


def _saved(structure: Structure) -> set[str]:
    """Placeholders of what a checkpoint holds: parameters and persistent buffers."""
    captured = structure.captured
    if captured.owner is None:
        return {name for name, kind in captured.kinds.items() if kind in ("parameter", "buffer")}
    state = captured.owner.state_dict(keep_vars=True)
    return {name for name in captured.tensors if captured.names[name] in state}


class _Products:
    """Many products of counts at once: `constant * prod over clusters of (positions that stay)`."""

    def __init__(self) -> None:
        self.constants: list[int] = []
        self.clusters: list[tuple[np.ndarray, ...]] = []
        self.owner: list[int] = []

    def add(self, constant: int, clusters: list[tuple[np.ndarray, ...]]) -> None:
        for arrays in clusters:
            wide = np.broadcast_arrays(*arrays)
            self.clusters.append(tuple(a.reshape(-1) for a in wide))
            self.owner.append(len(self.constants))
        self.constants.append(constant)

    def freeze(self) -> None:
        depth = max((len(c) for c in self.clusters), default=0)
        self.layers = [
            np.concatenate([c[i] if i < len(c) else np.zeros(len(c[0]), np.int64) for c in self.clusters])
            for i in range(depth)
        ]
        self.starts = np.cumsum([0] + [len(c[0]) for c in self.clusters])[:-1]
        self.base = np.array(self.constants, dtype=np.int64)
        self.owners = np.array(self.owner, dtype=np.int64)
        self.clusters = []

    def __call__(self, keep: np.ndarray) -> np.ndarray:
        result = self.base.copy()
        if not self.layers:
            return result
        mask = keep[self.layers[0]]
        for layer in self.layers[1:]:
            mask = mask & keep[layer]  # label 0 stays always
        np.multiply.at(result, self.owners, np.add.reduceat(mask, self.starts, dtype=np.int64))
        return result
