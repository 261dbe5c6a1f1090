"""Remove channels: find the structure, plan, cut, verify, repair, give the class back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus.allocation import Target
from prunus.alone import alone
from prunus.api.class_first import class_first
from prunus.api.forming import Cut, Form, Former, as_tensor, structure_of
from prunus.api.result import Result
from prunus.api.scores import Scores
from prunus.capture import (
    Captured,
    Dynamic,
    capture,
    checked_dynamic,
    checked_outputs,
    require_values,
    with_outputs,
)
from prunus.criteria import Options
from prunus.decide import check, decided
from prunus.evidence import Evidence, Progress
from prunus.plan import Plan
from prunus.recovery import Checkpoint, Recovery, checked_checkpoint, checked_steps, require_whole
from prunus.recovery import recover as repaired
from prunus.report import build_report, errors_by_group
from prunus.request import Problems, checked_flags, requested, settled
from prunus.structure import LayerTable, Structure
from prunus.surgery import (
    axes_written_as_numbers,
    compare,
    fold_constants,
    shapes_that_hold,
    with_zero_biases,
)

__all__ = ["analyze", "compress", "execute", "structure_of"]


@alone
def analyze(
    model: Any,
    example_inputs: Any = None,
    *,
    keep_class: bool = False,
    outputs: Mapping[str, str] | str | None = None,
    dynamic: Dynamic = "auto",
) -> Structure:
    """Find which channels of a model live and die together, and why some cannot.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or the path of a `.pt2` file. It is left as found.
        example_inputs: a tensor, a tuple of arguments, a dictionary of keywords, or `prunus.Inputs`; not needed for exported
            programs. A list holds several examples, each in one of these forms: all are verified, and where only parts of the
            model can be captured, what each of them reaches is united (the experts of a mixture). An argument that is a list
            is `([...],)`.
        keep_class: add the constraints that the user's own class needs to run afterwards, such as equal widths of q, k and v
            in one packed layer.
        outputs: which outputs need not stay as they are: `{"1": "free", "aux": "drop"}`. Keys are places in what the model
            returns (indices, keys and names of fields, joined by dots, or the beginning of such a path, or a glob). The channels
            of a free output may leave, so that it gets narrower, as in a backbone whose maps go into layers of your own. What is
            dropped is not computed, held or verified any more; a result in graph form returns None in its place, and the user's
            own class comes back only if its forward still runs. One word goes for all outputs.
        dynamic: which axes of the inputs may have other sizes than in the example: `"auto"` (every axis that can), `"batch"`, `"none"`,
            or axes by the name of the input, `{"x": [0, 2, 3]}`. What cannot be free is fixed, and the report says why; only for
            axes given by name that is an error. Exported programs keep the axes that they were exported with.

    Raises:
        ConfigError: an output that is not there, or an axis.
        CaptureError: the model cannot be exported, the inputs do not fit it, or its weights are not finite.
        StructureError: the graph cannot be followed.
    """
    problems = Problems()
    problems.of(checked_flags, keep_class=keep_class)
    problems.of(checked_outputs, outputs)
    problems.of(checked_dynamic, dynamic)
    problems.settle()
    captured = with_outputs(capture(model, example_inputs, dynamic), outputs)
    structure = structure_of(captured, keep_class)
    stuck = axes_written_as_numbers(structure)
    if stuck and captured.model is not None and captured.partial is None:
        captured = with_outputs(capture(model, example_inputs, captured.shapes.asked - stuck), outputs)
        structure = structure_of(captured, keep_class)
    return structure


@alone
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
    scores: Scores | None = None,
    checkpoint: Checkpoint | None = None,
    tried: Cut | None = None,
    notes: tuple[str, ...] = (),
) -> Result:
    """Execute a plan on the model of a structure, without capturing it again. See `apply`.

    With data, `steps` say how the cut network is repaired, and `allow_bias` whether layers without a bias may be given one.
    `scores` are told of every step; `checkpoint` remembers the repair. `tried` is what the plan was cut to before, and `notes`
    are remarks on that for the report.
    """
    check(structure, plan)
    require_values(structure.captured.tensors, structure.captured.names)
    made = Cut(structure, plan) if tried is None else tried
    if verify:
        made = made.with_shapes(shapes_that_hold(structure.captured))
    verification = (
        compare(structure.captured, structure.tracks, as_tensor(made.keep), made.module, made.small)
        if verify or made.small.unsettled
        else None
    )
    small, recovery = with_zero_biases(made.small, plan.biases), None
    small, folded = fold_constants(structure, small, as_tensor(made.keep), allow_bias)
    plan = dataclasses.replace(plan, biases=(*plan.biases, *folded.biases))
    formed = Former(structure, made.keep, plan)
    if scores:
        scores.original(structure.captured)
    if steps and data is not None and plan.groups:
        repair = _Repair(formed, small, data, steps, allow_bias, progress, checkpoint)
        form, small, recovery = repair.run()
        plan = dataclasses.replace(plan, biases=(*plan.biases, *recovery.biases))
        if scores:
            scores.note("cut", formed(repair.small).model)
            repair.note(scores, recovery, form.model)
    else:
        form = formed(small) if plan.biases or folded.into else made.form
        if scores:
            scores.note("cut", form.model)
    report = build_report(
        structure, small, plan, form.model, form.name, form.remark, verification, measure_latency
    )
    report = dataclasses.replace(
        report,
        notes=(*report.notes, *folded.notes, *notes),
        recovery=recovery
        and recovery.to_dict() | {"groups": errors_by_group(structure, plan.keep, recovery)},
        evaluation=dict(scores.values) if scores else None,
    )
    return Result(form.model, plan, report, small, structure)


@dataclass(frozen=True)
class _Repair:
    """The repair of a cut network, and the model that comes of it."""

    formed: Former
    small: Captured
    data: Any
    steps: tuple[str, ...]
    allow_bias: bool
    progress: Callable[[Progress], None] | None
    checkpoint: Checkpoint | None

    def run(self) -> tuple[Form, Captured, Recovery]:
        """Repair; without biases where they would cost the user's own class."""
        found, recovery = self._repaired(self.steps, self.allow_bias)
        form = self.formed(found)
        if form.name == "graph" and recovery.biases and self.formed(self.small).name == "class":
            found, recovery = self._repaired(self.steps, False)
            form = self.formed(found)
        return form, found, recovery

    def note(self, scores: Scores, recovery: Recovery, model: nn.Module) -> None:
        """Note the value after each step."""
        *earlier, last = self.steps
        scores.note(last, model)
        for step in earlier:  # both are done in one go; only another one tells them apart
            if any(repair.step == last for repair in recovery.repairs):
                scores.note(step, self.formed(self._repaired((step,), bool(recovery.biases))[0]).model)
            else:
                scores.values[step] = scores.values[last]
        scores.values[last] = scores.values.pop(last)  # in the order of the steps

    def _repaired(self, steps: tuple[str, ...], allow_bias: bool) -> tuple[Captured, Recovery]:
        structure, keep = self.formed.structure, self.formed.keep
        finished = self.checkpoint.finished(keep, steps, allow_bias) if self.checkpoint else None
        return repaired(
            structure,
            self.small,
            keep,
            self.data,
            steps=steps,
            progress=self.progress,
            allow_bias=allow_bias,
            finished=finished,
        )


@alone
def compress(
    model: Any,
    example_inputs: Any = None,
    *,
    method: Any = None,
    target: Target | None = None,
    ratio: float | Mapping[Any, float] | None = None,
    table: LayerTable | None = None,
    allocation: str | None = None,
    options: Options | None = None,
    hold: Any = (),
    floors: float | Mapping[str, float | int] | None = None,
    multiple_of: int = 1,
    keep_class: bool | None = None,
    outputs: Mapping[str, str] | str | None = None,
    dynamic: Dynamic = "auto",
    verify: bool = True,
    measure_latency: bool = False,
    seed: int = 0,
    data: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    recover: bool | str | Sequence[str] = True,
    allow_bias: bool = False,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
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
        keep_class: whether the user's own class has to come back. None: it is tried first, and channels are held for it where that
            costs a tenth more parameters, MACs or error at most; the report says how much it does or would. True: at any cost.
            False: nothing is held for it, so that it comes back only where it costs nothing.
        outputs, dynamic: see `analyze`.
        verify, measure_latency: see `apply`. What is verified is the cut network, before it is repaired.
        data: batches like the example inputs, in any of the forms that `plan` lists; used by methods that look at data, and for the
            repair, for which 1,024 samples are taken.
        recover, allow_bias: the steps of the repair, and whether it may give biases to layers, see `apply`.
        evaluate: a function from a model to a number, such as an accuracy, that is called after each step, see `apply`.
        checkpoint: a folder in which finished parts of the work on data are noted. The same call after an interruption, with the
            same model and data, goes on where it was; what was noted is removed in the end.

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
    if method is None:
        method = "l2" if data is None or isinstance(data, Evidence) else "obs"
    problems = Problems()
    request = requested(
        problems,
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
    problems.of(
        checked_flags,
        keep_class=bool(keep_class) if keep_class is None else keep_class,
        verify=verify,
        measure_latency=measure_latency,
        allow_bias=allow_bias,
    )
    problems.of(checked_outputs, outputs)
    problems.of(checked_dynamic, dynamic)
    steps = problems.of(checked_steps, recover)
    scores = problems.of(Scores, evaluate) if evaluate is not None else None
    problems.of(checked_checkpoint, checkpoint, data)
    problems.settle()
    data = request.data
    structure = analyze(model, example_inputs, outputs=outputs, dynamic=dynamic)
    if data is not None and not isinstance(data, Evidence) and steps:
        require_whole(structure.captured)
    wanted = settled(structure, request, ahead=bool(steps) or scores is not None)
    if scores:
        scores.original(structure.captured)  # what it raises, it raises before the work
    noted = None if checkpoint is None else Checkpoint(checkpoint, structure.captured, data)

    def planned(asked: Structure) -> Plan:
        fits = wanted if asked is structure else settled(asked, request)
        if noted:
            seen = noted.evidence(asked, method, loss, progress)
            fits = dataclasses.replace(fits, request=dataclasses.replace(request, data=seen))
        return decided(asked, fits)

    made, notes = class_first(structure, planned, keep_class)
    batches = None if isinstance(data, Evidence) else data  # sums cannot be repaired on
    result = execute(
        made.structure,
        made.plan,
        tried=made,
        notes=notes,
        verify=verify,
        measure_latency=measure_latency,
        data=batches,
        steps=steps,
        allow_bias=allow_bias,
        progress=progress,
        scores=scores,
        checkpoint=noted,
    )
    if noted:
        noted.remove()
    return result
