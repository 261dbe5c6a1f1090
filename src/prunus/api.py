"""The steps of a compression, each of which can be looked at and edited, and all of them in one call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.allocation import Target
from prunus.artefact import save
from prunus.capture import Captured, capture
from prunus.criteria import Options
from prunus.decide import check, plan
from prunus.describe import rebuild
from prunus.evidence import Progress
from prunus.plan import Plan
from prunus.report import Report, build_report
from prunus.structure import LayerTable, Structure, find_structure
from prunus.surgery import compare, cut, lift, put_back, with_class_ties, write_back

__all__ = ["Result", "analyze", "apply", "compress", "plan"]


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed model and how it came about.

    Attributes:
        model: an ordinary module, ready to run, train and export.
        plan: what was kept; `prunus.apply(fresh_model, plan)` does the same again.
        report: every layer and group before and after, totals, verification. Printing it gives a table.
        captured: the small model's graph.
        structure: the original's structure.
    """

    model: nn.Module
    plan: Plan
    report: Report
    captured: Captured = field(repr=False)
    structure: Structure = field(repr=False)

    def save(self, directory: str | Path, *, overwrite: bool = False, onnx: bool = False) -> Path:
        """Write plan.json, model.safetensors, model.pt2, report.json (and model.onnx): all of it or nothing.

        Raises:
            ArtefactError: the folder exists and `overwrite` is not set, or it cannot be written.
        """
        return save(self, directory, overwrite=overwrite, onnx=onnx)


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
    return _structure(capture(model, example_inputs), keep_class)


def _structure(captured: Captured, keep_class: bool) -> Structure:
    structure = find_structure(captured, keep_class=keep_class)
    return with_class_ties(structure) if keep_class else structure


def apply(
    model: Any,
    plan: Plan,
    *,
    example_inputs: Any = None,
    verify: bool = True,
    measure_latency: bool = False,
) -> Result:
    """Execute a plan on a model; the model itself is not touched.

    Args:
        model: the model that the plan was made for, or a fresh one of the same architecture with any weights.
        plan: from `prunus.plan`, a file, or another compression.
        example_inputs: only needed where the plan cannot describe them.
        verify: compare the result with the masked original; nothing wrong is handed back. With False it is still done
            where the labels that are left do not settle that all operands fit.
        measure_latency: also time both models.

    Raises:
        PlanError: the plan is for another architecture, or breaks a constraint.
        SurgeryError, VerificationError: a defect of prunus; nothing is handed back.
    """
    inputs = (
        example_inputs
        if example_inputs is not None
        else rebuild(plan.inputs)
        if isinstance(model, nn.Module)
        else None
    )
    return execute(
        _structure(capture(model, inputs), plan.keep_class),
        plan,
        verify=verify,
        measure_latency=measure_latency,
    )


def execute(
    structure: Structure, plan: Plan, *, verify: bool = True, measure_latency: bool = False
) -> Result:
    """Execute a plan on the model of a structure, without capturing it again. See `apply`."""
    check(structure, plan)
    keep = structure.keep_labels(plan.keep)
    small = cut(structure, keep)
    module = lift(small)
    verification = (
        compare(structure.captured, structure.tracks, _tensor(keep), module, small)
        if verify or small.unsettled
        else None
    )
    own, remark = _own_class(structure, small, module, keep, plan)
    model, form = (module, "graph") if own is None else (own, "class")
    if structure.captured.partial:
        model = put_back(structure.captured, small, own)
    report = build_report(structure, small, plan, model, form, remark, verification, measure_latency)
    return Result(model, plan, report, small, structure)


def _own_class(
    structure: Structure, small: Captured, module: nn.Module, keep: np.ndarray, plan: Plan
) -> tuple[nn.Module | None, str]:
    if structure.captured.model is None:
        return None, "the source was an exported program, which has no class"
    if not plan.groups:
        return copy.deepcopy(structure.captured.model), ""
    return write_back(structure, small, module, _tensor(keep))


def _tensor(keep: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(keep))


def compress(
    model: Any,
    example_inputs: Any = None,
    *,
    method: Any = "l2",
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
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Make a model smaller: analyze, plan and apply in one call.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or the path of a `.pt2` file. It is left as found.
        example_inputs: see `analyze`.
        method, target, ratio, table, allocation, options, hold, floors, multiple_of, seed, data, loss, progress: see `plan`.
        keep_class: see `analyze`.
        verify, measure_latency: see `apply`.

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
    structure = analyze(model, example_inputs, keep_class=keep_class)
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
    return execute(structure, made, verify=verify, measure_latency=measure_latency)
