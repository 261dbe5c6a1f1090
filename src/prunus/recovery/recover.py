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
from prunus.heap import freed_memory_kept
from prunus.recovery.attention import narrowed
from prunus.recovery.batch_norm import estimate_anew
from prunus.recovery.checkpoint import Finished
from prunus.recovery.compensate import compensate
from prunus.recovery.heads import mix_heads
from prunus.recovery.layers import Layer, find_layers
from prunus.recovery.logits import path_of, repair_attention
from prunus.recovery.outcome import STEPS, Recovery, Repair
from prunus.recovery.pair import HELD, Batches, Pair, share_of, stops_of
from prunus.recovery.store import spill_folder
from prunus.structure import Structure
from prunus.surgery.biases import with_own_graph

__all__ = ["recover", "require_whole"]

SAMPLES = 1024  # more hardly help


def recover(
    structure: Structure,
    small: Captured,
    keep: np.ndarray | Tensor,
    data: Any,
    *,
    steps: Sequence[str] = STEPS,
    progress: Callable[[Progress], None] | None = None,
    budget_bytes: int | None = None,
    allow_bias: bool = False,
    finished: Finished | None = None,
) -> tuple[Captured, Recovery]:
    """Give a cut network weights with which it computes what the original does, as nearly as its sizes allow.

    Both networks run side by side over the data, once. Each linear layer and convolution whose input has changed is fitted anew
    (`"compensate"`): its inputs come from the small network with all earlier layers repaired, its targets from the original.
    Where its output is added to something, such as a shortcut, the target includes what that sum lacks already, so that errors
    do not add up along the network. The solution is that of ridge regression about the weights that were cut out, `dW = C_tx
    (C_xx + r I)^-1`, with an offset for the bias; `r` is what leaves the least error on a quarter of the batches that was held
    out, which may be to change nothing. A layer without a bias takes its offset up in the batch normalization behind it, or is
    given a bias where that is allowed, possible and helps. Heads keep mixtures of
    their channels (`mix_heads`). Attention whose queries and keys have lost width gets the logits
    that are nearest to the original's. Then batch normalizations get the statistics of what they now see (`"batch_norm"`),
    where that brings their outputs nearer to the original's on held-out data, or in any case when this is the only step.

    Args:
        structure: of the original.
        small: the cut network, whose tensors stay as they are.
        keep: (labels,) bool: what stays.
        data: an iterable of batches like the example inputs, without labels; the first 1,024 samples are used.
        steps: which of `STEPS`.
        progress: called after each layer.
        budget_bytes: memory for the values of both networks; None for half of what is free. What these will take is told from
            the graphs beforehand, and the batches that do not fit wait in files of a temporary folder.
        allow_bias: whether layers may be given a bias.
        finished: where places that are done are noted, and taken from in another run.

    Returns:
        The network with repaired tensors, and what was done.

    Raises:
        ConfigError: data that is empty or does not fit; no room on the disk for what does not fit into memory.

    References:
        He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, arXiv:1707.06168 (least squares,
        inputs of the pruned and targets of the original network); Frantar and Alistarh, Optimal Brain Compression, NeurIPS
        2022, arXiv:2208.11580.
    """
    require_whole(structure.captured)
    batches = _batches(structure.captured, data)
    if allow_bias:
        small = with_own_graph(small)
    layers = find_layers(small) if "compensate" in steps else {}
    attentions = narrowed(structure.captured, small) if "compensate" in steps else {}
    stops = stops_of(structure.captured, small, set(layers), set(attentions), "batch_norm" in steps)
    share = share_of(structure.captured, small, stops, batches, budget_bytes)
    started = time.perf_counter()
    repairs: list[Repair] = []
    left: list[str] = []
    with spill_folder(share.disk_bytes) as folder, freed_memory_kept():
        pair = Pair(structure, small, torch.as_tensor(keep), batches, folder, share.resident, allow_bias)
        if layers:
            repairs += mix_heads(pair, structure.captured, small, layers, batches)
        for number, node in enumerate(stops):
            found = finished.restore(number, pair, node) if finished else None
            if found is None:
                before = dict(pair.tensors)
                found = _repaired(pair, small, node, layers, attentions, tuple(steps), number)
                if finished:
                    finished.note(number, before, pair, *found)
            path, repair = found
            if repair is None:
                left.append(path)
            else:
                repairs.append(repair)
            if progress is not None:
                spent = time.perf_counter() - started
                remaining = spent / (number + 1) * (len(stops) - number - 1)
                progress(Progress(number + 1, len(stops), spent, remaining))
    seconds = time.perf_counter() - started
    recovery = Recovery(
        tuple(steps),
        sum(batches.sizes),
        seconds,
        tuple(repairs),
        tuple(left),
        tuple(pair.biases),
        share.disk_bytes,
    )
    return small.with_(tensors=pair.tensors), recovery


def require_whole(captured: Captured) -> None:
    """Refuse a model that cannot be repaired.

    Raises:
        ConfigError: it was captured in parts.
    """
    if captured.partial is not None:
        raise ConfigError(
            "a model that was captured in parts cannot be repaired: what its parts are called with is not known for other "
            "data. Pass recover=False."
        )


def _repaired(
    pair: Pair,
    small: Captured,
    node: fx.Node,
    layers: dict[fx.Node, Layer],
    attentions: dict[fx.Node, Any],
    steps: tuple[str, ...],
    number: int,
) -> tuple[str, Repair | None]:
    """Repair at one place: its path, and what was done."""
    if node in layers:
        path = path_of(small, layers[node].weight)
        # random numbers of its own, the same in a run that goes on from here
        return path, compensate(pair, layers[node], path, torch.Generator().manual_seed(number))
    if node in attentions:
        return repair_attention(pair, small, layers, *attentions[node])
    path = path_of(small, str(node.args[3]))
    return path, estimate_anew(pair, node, path, anyway=steps == ("batch_norm",))


def _batches(captured: Captured, data: Any) -> Batches:
    found, sizes = [], []
    for batch in islice(checked_batches(captured, data), SAMPLES):
        found.append(batch.leaves)
        sizes.append(batch.samples)
        if sum(sizes) >= SAMPLES:
            break
    if len(found) == 1 and captured.batch is not None and sizes[0] >= HELD:
        (leaves,) = found  # something must be held out
        parts = [
            torch.tensor_split(leaf, HELD) if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == sizes[0]
            else (leaf,) * HELD
            for leaf in leaves
        ]  # fmt: skip
        found = list(zip(*parts, strict=True))
        sizes = [sizes[0] // HELD + (i < sizes[0] % HELD) for i in range(HELD)]
    return Batches(tuple(found), tuple(sizes))
