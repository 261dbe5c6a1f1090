"""Remove channels: find the structure, plan, cut, verify, repair, give the class back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.allocation import Target
from prunus.api.result import Result, reusable
from prunus.capture import Captured, capture
from prunus.criteria import Options
from prunus.decide import check, plan
from prunus.evidence import Evidence, Progress
from prunus.plan import Plan
from prunus.recovery import Recovery, checked_steps
from prunus.recovery import recover as repaired
from prunus.report import build_report
from prunus.structure import LayerTable, Structure, find_structure
from prunus.surgery import compare, cut, lift, put_back, with_class_ties, with_zero_biases, write_back

__all__ = ["analyze", "compress", "execute", "structure_of"]


def analyze(model: Any, example_inputs: Any = None, *, keep_class: bool = False) -> Structure:
    """Find which channels of a model live and die together, and why some cannot.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or the path of a `.pt2` file. It is left as found.
        example_inputs: a tensor, a tuple, a dictionary of keywords, or `prunus.Inputs`; not needed for exported programs.
        keep_class: add the constraints that the user's own class needs to run afterwards, such as equal widths of q, k and v
            in one packed layer.

    Raises:
        CaptureError: the model cannot be exported, the inputs do not fit it, or its weights are not finite.
        StructureError: the graph cannot be followed.
    """
    return structure_of(capture(model, example_inputs), keep_class)


def structure_of(captured: Captured, keep_class: bool) -> Structure:
    """The structure, with what the user's class needs if it is to be kept."""
    structure = find_structure(captured, keep_class=keep_class)
    return with_class_ties(structure) if keep_class else structure


def execute(
    structure: Structure,
    plan: Plan,
    *,
    verify: bool = True,
    measure_latency: bool = False,
    data: Any = None,
    steps: tuple[str, ...] = (),
    allow_bias: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Execute a plan on the model of a structure, without capturing it again. See `apply`.

    With data, `steps` say how the cut network is repaired, and `allow_bias` whether layers without a bias may be given one.
    """
    check(structure, plan)
    keep = structure.keep_labels(plan.keep)
    small = cut(structure, keep)
    module = lift(small)
    verification = (
        compare(structure.captured, structure.tracks, _tensor(keep), module, small)
        if verify or small.unsettled
        else None
    )
    small, recovery = with_zero_biases(small, plan.biases), None
    own, remark = None, ""
    if steps and data is not None and plan.groups:
        small, recovery, own, remark = _repaired(
            structure, small, keep, plan, data, steps, allow_bias, progress
        )
        plan = dataclasses.replace(plan, biases=(*plan.biases, *recovery.biases))
        module = lift(small)
    else:
        module = lift(small) if plan.biases else module
        own, remark = _own_class(structure, small, module, keep, plan)
    model, form = (module, "graph") if own is None else (own, "class")
    if structure.captured.partial:
        model = put_back(structure.captured, small, own)
    report = build_report(structure, small, plan, model, form, remark, verification, measure_latency)
    if recovery is not None:
        report = dataclasses.replace(report, recovery=recovery.to_dict())
    return Result(model, plan, report, small, structure)


def _repaired(
    structure: Structure,
    small: Captured,
    keep: np.ndarray,
    plan: Plan,
    data: Any,
    steps: tuple[str, ...],
    allow_bias: bool,
    progress: Callable[[Progress], None] | None,
) -> tuple[Captured, Recovery, nn.Module | None, str]:
    """The repaired network, what was done, and the user's own class or why not."""
    found, recovery = repaired(
        structure, small, keep, data, steps=steps, progress=progress, allow_bias=allow_bias
    )
    own, remark = _own_class(structure, found, lift(found), keep, plan)
    if own is None and recovery.biases and _own_class(structure, small, lift(small), keep, plan)[0]:
        # the class is worth more than biases that it cannot take
        return _repaired(structure, small, keep, plan, data, steps, False, progress)
    return found, recovery, own, remark


def _own_class(
    structure: Structure, small: Captured, module: nn.Module, keep: np.ndarray, plan: Plan
) -> tuple[nn.Module | None, str]:
    if structure.captured.model is None:
        return None, "the source was an exported program, which has no class"
    if not plan.groups and not plan.biases:
        return copy.deepcopy(structure.captured.model), ""
    return write_back(structure, small, module, _tensor(keep))


def _tensor(keep: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(keep))


def compress(
    model: Any,
    example_inputs: Any = None,
    *,
    method: Any = None,
    target: Target | None = None,
    ratio: float | Mapping[str, float] | None = None,
    table: LayerTable | None = None,
    allocation: str | None = None,
    options: Options | None = None,
    hold: Sequence[str] = (),
    floors: float | Mapping[str, float | int] | None = None,
    multiple_of: int = 1,
    keep_class: bool = False,
    verify: bool = True,
    measure_latency: bool = False,
    seed: int = 0,
    data: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    recover: bool | str | Sequence[str] = True,
    allow_bias: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Make a model smaller: analyze, plan and apply in one call.

    With a few hundred inputs as `data`, without labels, the accuracy that pruning costs is largely won back: channels are chosen
    by what the others cannot replace, and the layers that read them are fitted to what the original computes.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or the path of a `.pt2` file. It is left as found.
        example_inputs: see `analyze`.
        method: see `plan`; by default `"obs"` with data and `"l2"` without.
        target, ratio, table, allocation, options, hold, floors, multiple_of, seed, loss, progress: see `plan`.
        keep_class: see `analyze`.
        verify, measure_latency: see `apply`. What is verified is the cut network, before it is repaired.
        data: an iterable of batches like the example inputs, see `plan`; used by methods that look at data, and for the
            repair, for which 1,024 samples are taken.
        recover, allow_bias: the steps of the repair, and whether it may give biases to layers, see `apply`.

    Returns:
        The result: model, plan, report.

    Raises:
        PrunusError: see `analyze`, `plan` and `apply`; the model and all files are as they were.

    Example:
        >>> import torch, prunus
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> result = prunus.compress(net, torch.randn(4, 8), target=prunus.Target(channels=0.5))
        >>> result.model[0].out_features
        8
    """
    data, steps = reusable(data), checked_steps(recover)
    structure = analyze(model, example_inputs, keep_class=keep_class)
    if method is None:
        method = "l2" if data is None or isinstance(data, Evidence) else "obs"
    made = plan(
        structure,
        method=method,
        target=target,
        ratio=ratio,
        table=table,
        allocation=allocation,
        options=options,
        hold=hold,
        floors=floors,
        multiple_of=multiple_of,
        seed=seed,
        data=data,
        loss=loss,
        progress=progress,
    )
    batches = None if isinstance(data, Evidence) else data  # sums cannot be repaired on
    return execute(
        structure,
        made,
        verify=verify,
        measure_latency=measure_latency,
        data=batches,
        steps=steps,
        allow_bias=allow_bias,
        progress=progress,
    )
