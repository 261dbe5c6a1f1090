"""Torch-Pruning, for comparison: in a process of its own, with a limit on time and memory."""

from __future__ import annotations

import contextlib
import copy
import resource
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.structure import Structure
from prunus.surgery.precision import OnePrecision
from prunus.surgery.reference import masked_outputs

ROUNDS, MEMORY_BYTES, SECONDS = 3, 12 << 30, 60  # on some models it would take all the memory there is
CLOSE = 1e-6  # relative, in float64


def torch_pruning(
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    kept: list[nn.Module],
    structure: Structure | None = None,
) -> dict[str, Any]:
    """CPU seconds to build its graph and remove half of the channels, the best of three, or None where its result does not run.

    With a structure, also whether its result computes what the original does without the channels that it removed. Run it last:
    the process's memory is limited from then on.
    """
    found: dict[str, Any] = {"torch_pruning_s": None, "torch_pruning_right": None}
    try:
        import torch_pruning as peer
    except ImportError:
        return found
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    names = {name for name, module in net.named_modules() if any(module is k for k in kept)}

    def pruned() -> tuple[nn.Module, float]:
        copied = copy.deepcopy(net)
        began = time.process_time()
        importance = peer.importance.MagnitudeImportance(p=2)
        ignored = [copied.get_submodule(name) for name in names]
        pruner = peer.pruner.MagnitudePruner(
            copied, args if args else kwargs, importance, pruning_ratio=0.5, ignored_layers=ignored
        )
        pruner.step()
        return copied, time.process_time() - began

    try:
        times = [pruned()[1] for _ in range(ROUNDS)]  # the first pays for what is loaded once
        with _recorded(peer) as kept_of:
            small = pruned()[0].eval()
        with torch.no_grad():
            small(*args, **kwargs)
        found["torch_pruning_s"] = min(times)
        found["torch_pruning_params"] = _count(small) / _count(net)
        signal.alarm(0)
        if structure is not None:
            found["torch_pruning_right"] = _is_right(structure, small, kept_of)
    except Exception:  # noqa: BLE001  (whatever goes wrong in the peer, it did not work)
        pass
    finally:
        signal.alarm(0)
    return found


def pruned_to(
    net: nn.Module,
    example: Tensor,
    macs: float,
    criterion: str,
    labelled: list[tuple[Tensor, Tensor]],
    left_alone: list[str],
) -> nn.Module:
    """Its result at a share of the multiply-accumulates: ranked globally, a little at a time until it is reached.

    Args:
        net: a classifier, which is copied.
        example: a batch of inputs.
        macs: the share that is left, of the whole network.
        criterion: `"l2"`, or `"taylor"`, for which `labelled` are batches of inputs and labels.
        left_alone: paths of layers that keep their outputs.
    """
    import torch_pruning as peer

    small = copy.deepcopy(net).eval()
    whole = peer.utils.count_ops_and_params(small, example)[0]
    ignored = [small.get_submodule(path) for path in left_alone]
    importances = {
        "l2": peer.importance.MagnitudeImportance(p=2),
        "taylor": peer.importance.TaylorImportance(),
    }
    pruner = peer.pruner.BasePruner(
        small, example, importances[criterion], global_pruning=True, pruning_ratio=1.0, iterative_steps=400, ignored_layers=ignored
    )  # fmt: skip
    if criterion == "taylor":
        for x, y in labelled:
            nn.functional.cross_entropy(small(x), y).backward()
    while peer.utils.count_ops_and_params(small, example)[0] > macs * whole:
        pruner.step()
    return small


@contextlib.contextmanager
def _recorded(peer: Any) -> Iterator[dict[int, tuple[Tensor, dict[int, np.ndarray]]]]:
    """Which indices of every axis its parameters keep: id of the parameter -> the parameter, axis -> indices."""
    function = peer.pruner.function.BasePruningFunc
    own, kept_of = function._prune_parameter_and_grad, {}

    def prune(self: Any, weight: Tensor, keep_idxs: Any, pruning_dim: int) -> Tensor:
        result = own(self, weight, keep_idxs, pruning_dim)
        axis, chosen = pruning_dim % weight.dim(), np.asarray(keep_idxs, dtype=int)
        before = kept_of.get(id(weight), (weight, {}))[1]
        whole = before.get(axis)
        kept_of[id(result)] = result, {**before, axis: chosen if whole is None else whole[chosen]}
        return result

    function._prune_parameter_and_grad = prune
    try:
        yield kept_of
    finally:
        function._prune_parameter_and_grad = own


def _is_right(
    structure: Structure, small: nn.Module, kept_of: dict[int, tuple[Tensor, dict[int, np.ndarray]]]
) -> bool:
    """Does it compute what the original does with these indices masked, and all that must leave with them?"""
    captured = structure.captured
    kept = {
        name: kept_of[id(p)][1]
        for name, p in small.named_parameters(remove_duplicate=False)
        if id(p) in kept_of
    }
    removed = np.zeros(structure.units.count, bool)
    for place in structure.labels.places:
        stays = kept.get(captured.names[place.placeholder], {}).get(place.axis)
        if stays is not None:
            gone = np.setdiff1d(np.arange(place.size), stays)
            removed[structure.units.of_label[place.start + gone]] = True
    keep = torch.from_numpy(structure.units.effective(removed))
    wanted = masked_outputs(captured, structure.tracks, keep, captured.run_inputs, torch.float64)
    inputs = pytree.tree_map_only(
        Tensor,
        lambda x: x.double() if x.is_floating_point() else x,
        (captured.run_inputs.args, captured.run_inputs.kwargs),
    )
    with torch.no_grad(), OnePrecision(torch.float64):
        got = pytree.tree_leaves(small.double()(*inputs[0], **inputs[1]))
    pairs = [
        (a, b) for a, b in zip(wanted, got, strict=True) if isinstance(a, Tensor) and a.is_floating_point()
    ]
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= CLOSE * float(a.abs().max()) for a, b in pairs
    )


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")
