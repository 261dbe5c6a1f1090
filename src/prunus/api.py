"""The steps of a compression, each of which can be looked at and edited, and all of them in one call."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.allocation import Target
from prunus.artefact import save
from prunus.capture import Captured, architecture_hash, capture
from prunus.criteria import Options
from prunus.decide import check, plan
from prunus.decomposition.decide import Work
from prunus.decomposition.request import requested
from prunus.decomposition.run import decided, entries, executed, of_plan
from prunus.decomposition.table import RankTable
from prunus.describe import describe, rebuild
from prunus.errors import CaptureError, PlanError
from prunus.evidence import Evidence, Progress
from prunus.plan import Plan
from prunus.recovery import checked_steps
from prunus.recovery import recover as repaired
from prunus.report import Report, build_report
from prunus.report.decomposed import decomposition_report
from prunus.report.replaced import joined
from prunus.structure import LayerTable, Structure, find_structure
from prunus.surgery import compare, cut, lift, put_back, with_class_ties, write_back

__all__ = ["Result", "analyze", "apply", "compress", "decompose", "plan"]


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed model and how it came about.

    Attributes:
        model: an ordinary module, ready to run, train and export.
        plan: what was kept; `prunus.apply(fresh_model, plan)` does the same again.
        report: every layer and group before and after, totals, verification. Printing it gives a table.
        captured: the small model's graph.
        structure: the original's structure; None where it was not needed, as in a decomposition.
    """

    model: nn.Module
    plan: Plan
    report: Report
    captured: Captured = field(repr=False)
    structure: Structure | None = field(repr=False)

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
    data: Any = None,
    recover: bool | str | Sequence[str] = True,
) -> Result:
    """Execute a plan on a model; the model itself is not touched.

    Args:
        model: the model that the plan was made for, or a fresh one of the same architecture with any weights.
        plan: from `prunus.plan`, a file, or another compression.
        example_inputs: only needed where the plan cannot describe them.
        verify: compare the result with the masked original; nothing wrong is handed back. With False it is still done
            where the labels that are left do not settle that all operands fit.
        measure_latency: also time both models.
        data: calibration batches without labels. Pruned layers are then repaired on them (see `recover`), and the factors of
            replaced layers are the best ones on this data. Without it nothing is repaired, and factors are the best
            ones for the weights.
        recover: with data, the steps of the repair after pruning: `"compensate"` (layers are fitted to the original's outputs),
            `"batch_norm"` (statistics are estimated anew); True for all of them, False for none.

    Raises:
        PlanError: the plan is for another architecture, or breaks a constraint.
        SurgeryError, VerificationError: a defect of prunus; nothing is handed back.
    """
    data, steps = _reusable(data), checked_steps(recover)
    result = _applied(model, plan, example_inputs, verify, measure_latency, data, steps)
    following = plan.then
    while following is not None:
        alone = dataclasses.replace(following, then=None)
        result = _after(result, _applied(result.model, alone, None, verify, measure_latency, data, steps))
        following = following.then
    return result


def _applied(
    model: Any,
    plan: Plan,
    example_inputs: Any,
    verify: bool,
    measure_latency: bool,
    data: Any,
    steps: tuple[str, ...],
) -> Result:
    """Execute one plan, without what follows it."""
    inputs = (
        example_inputs
        if example_inputs is not None
        else rebuild(plan.inputs)
        if isinstance(model, nn.Module)
        else None
    )
    captured = capture(model, inputs)
    plan = dataclasses.replace(plan, then=None)
    if not plan.layers:
        structure = _structure(captured, plan.keep_class)
        return execute(
            structure, plan, verify=verify, measure_latency=measure_latency, data=data, steps=steps
        )
    if plan.groups:
        raise PlanError("one plan both removes channels and replaces layers: put the second into its `then`")
    if plan.architecture != architecture_hash(captured):
        raise PlanError("this plan was made for another architecture. Make a new one with prunus.decompose.")
    work, ranks, biases = of_plan(captured, plan.layers)
    return _replaced(captured, work, ranks, data, plan, biases=biases, measure_latency=measure_latency)


def _after(first: Result, second: Result) -> Result:
    """Two results, one made from the other's model, as one."""
    plan = first.plan.followed_by(second.plan)
    return dataclasses.replace(
        second, plan=plan, report=joined(first.report, second.report), structure=first.structure
    )


def execute(
    structure: Structure,
    plan: Plan,
    *,
    verify: bool = True,
    measure_latency: bool = False,
    data: Any = None,
    steps: tuple[str, ...] = (),
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Execute a plan on the model of a structure, without capturing it again. See `apply`.

    With data, `steps` say how the cut network is repaired.
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
    recovery = None
    if steps and data is not None and plan.groups:
        small, recovery = repaired(structure, small, keep, data, steps=steps, progress=progress)
        module = lift(small)
    own, remark = _own_class(structure, small, module, keep, plan)
    model, form = (module, "graph") if own is None else (own, "class")
    if structure.captured.partial:
        model = put_back(structure.captured, small, own)
    report = build_report(structure, small, plan, model, form, remark, verification, measure_latency)
    if recovery is not None:
        report = dataclasses.replace(report, recovery=recovery.to_dict())
    return Result(model, plan, report, small, structure)


def _reusable(data: Any) -> Any:
    """Data that can be gone through several times: what a generator yields is kept."""
    return list(data) if isinstance(data, Iterator) else data


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
        recover: the steps of the repair, see `apply`.

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
    data, steps = _reusable(data), checked_steps(recover)
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
        progress=progress,
    )


def decompose(
    model: Any,
    example_inputs: Any = None,
    *,
    method: Any = "svd",
    target: Target | None = None,
    ranks: Any = None,
    table: RankTable | None = None,
    data: Any = None,
    hold: Sequence[str] = (),
    multiple_of: int = 1,
    floor: int | float = 1,
    correct_bias: bool = True,
    measure_latency: bool = False,
) -> Result:
    """Replace layers by chains of smaller ones. Give exactly one of `target`, `ranks` and `table`.

    A replaced layer becomes an `nn.Sequential` of plain layers in its place: `conv1.0`, `conv1.1`... Layers whose weight is used
    otherwise than by calling the layer are left alone; the report says why.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, the path of a `.pt2` file, or the `Result` of an earlier step, whose plan
            is then continued. It is left as found.
        example_inputs: see `analyze`; not needed for results.
        method: `"svd"`, `"tucker"`, `"cp"`, `"spatial_svd"`, or an object of `prunus.decomposition`; or several, of which
            each layer gets the first that takes it.
        target: what is kept of the model's `macs`, `params` or `size_bytes`; ranks are chosen so that as little as possible is
            lost at the layers' outputs.
        ranks: `EVBMF()` or `Energy(0.95)` of `prunus.decomposition`, or ranks per layer: `{"conv1": [8, 16], "fc": 10}`. Ranks
            are those of one group, for convolutions with groups.
        table: from `prunus.decomposition.rank_table`, edited.
        data: calibration batches like the example inputs, without labels; they are read several times. With it,
            errors count at the layers' outputs; without, in the weights.
        hold: layers that are never touched: paths, prefixes of paths or globs.
        multiple_of: estimated and chosen ranks are multiples of this, or full.
        floor: smallest rank, as a number or a share (a float) of the full one, where ranks are not given.
        correct_bias: with data, the bias takes up the mean of what is lost; a layer without one gets one.
        measure_latency: also time both models, and refuse replacements that are no faster on this machine.

    Returns:
        The result: model, plan, report.

    Raises:
        ConfigError: options, ranks or data that do not fit; all problems of the ranks at once.
        TargetError: no ranks reach the target.
        PrunusError: see `analyze`; the model is as it was.

    Example:
        >>> import torch, prunus
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
        >>> result = prunus.decompose(net, torch.randn(4, 32), ranks={"0": 8})
        >>> result.model[0]
        Sequential(
          (0): Linear(in_features=32, out_features=8, bias=False)
          (1): Linear(in_features=8, out_features=64, bias=True)
        )
    """
    request = requested(method, target, ranks, table, multiple_of, floor, correct_bias)
    data = _reusable(data)
    earlier = model if isinstance(model, Result) else None
    source: Any = model
    if earlier is not None:
        source = earlier.model
        example_inputs = earlier.captured.example if example_inputs is None else example_inputs
    captured = capture(source, example_inputs)
    if captured.partial is not None:
        raise CaptureError(
            f"the model can only be captured in parts ({', '.join(captured.partial.parts)}), and layers are replaced in whole "
            "models: decompose such a part by itself, and put it back"
        )
    if captured.model is None:
        captured = capture(lift(captured), captured.example)
    work, chosen = decided(captured, request, data, hold)
    made = Plan(
        architecture=architecture_hash(captured),
        groups=(),
        inputs=describe(captured.example),
        method="+".join(each.name for each in request.methods),
        target=target.to_dict() if target is not None else {},
        options={} if target is not None else {"ranks": "manual" if isinstance(request.goal, Mapping) else str(request.goal)},
    )  # fmt: skip
    result = _replaced(
        captured, work, chosen, data, made, centered=correct_bias, measure_latency=measure_latency
    )
    return result if earlier is None else _after(earlier, result)


def _replaced(
    captured: Captured,
    work: Work,
    ranks: Mapping[str, tuple[int, ...]],
    data: Any,
    plan: Plan,
    *,
    biases: Mapping[str, bool] | None = None,
    centered: bool = True,
    measure_latency: bool = False,
) -> Result:
    """Replace layers at chosen ranks."""
    outcome = executed(
        captured,
        work,
        ranks,
        data,
        centered=centered,
        biases=biases,
        only_faster=measure_latency and biases is None,
    )
    plan = dataclasses.replace(plan, layers=entries(outcome))
    small = capture(outcome.model, captured.example)
    report = decomposition_report(captured, small, outcome, plan, measure_latency)
    return Result(outcome.model, plan, report, small, None)
