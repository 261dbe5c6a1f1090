"""Execute a plan, whatever it says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunus.alone import alone
from prunus.api.pruning import execute, structure_of
from prunus.api.replacing import replaced
from prunus.api.result import Result, after
from prunus.api.scores import Scores
from prunus.capture import Dynamic, architecture_hash, capture, with_outputs
from prunus.decide import FOLLOWING
from prunus.decomposition.run import of_plan
from prunus.describe import asked, rebuild
from prunus.errors import PlanError
from prunus.evidence import as_data
from prunus.evidence.batches import require_fitting
from prunus.plan import Plan
from prunus.recovery import checked_steps, require_whole
from prunus.request import Problems, checked_flags

__all__ = ["apply"]


@alone
def apply(
    model: Any,
    plan: Plan | str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    dynamic: Dynamic | None = None,
    verify: bool = True,
    measure_latency: bool = False,
    data: Any = None,
    recover: bool | str | Sequence[str] = True,
    allow_bias: bool = False,
    evaluate: Callable[[nn.Module], float] | None = None,
) -> Result:
    """Execute a plan on a model; the model itself is not touched.

    Args:
        model: the model that the plan was made for, or a fresh one of the same architecture with any weights.
        plan: from `prunus.plan` or another compression, or the path of a plan.json or of a folder that prunus has written.
        example_inputs: only needed where the plan cannot describe them.
        dynamic: see `analyze`; by default as the plan was made.
        verify: compare the result with the masked original; nothing wrong is handed back. With False it is still done
            where the labels that are left do not settle that all operands fit.
        measure_latency: also time both models.
        data: calibration batches without labels. Pruned layers are then repaired on them (see `recover`), and the factors of
            replaced layers are the best ones on this data. Without it nothing is repaired, and factors are the best
            ones for the weights.
        recover: with data, the steps of the repair after pruning: `"compensate"` (layers are fitted to the original's outputs),
            `"batch_norm"` (statistics are estimated anew); True for all of them, False for none.
        allow_bias: with data, a layer without a bias, and without a batch normalization behind it that could take its place, is
            given one where that lowers its error by a hundredth or more. The result's plan names these layers, so that it makes
            the same architecture again. It seldom brings much.
        evaluate: a function from a model to a number, such as an accuracy. It gets models in evaluation mode: the original, what was
            cut, and the model after each step of the repair (`"original"`, `"cut"`, `"compensate"`, `"batch_norm"` in
            `result.report.evaluation`); of a plan with several steps or with replaced layers, the original and the `"result"`.
            The number after compensation costs a second repair where batch normalizations were estimated anew as well.

    Raises:
        PlanError: the plan is for another architecture, or breaks a constraint.
        SurgeryError, VerificationError: a defect of prunus; nothing is handed back.
    """
    problems = Problems()
    made: Plan = problems.of(plan_of, plan)
    problems.of(checked_flags, verify=verify, measure_latency=measure_latency, allow_bias=allow_bias)
    data, steps = problems.of(as_data, data), problems.of(checked_steps, recover)
    scores = problems.of(Scores, evaluate) if evaluate is not None else None
    problems.settle()
    one_step = made.then is None and not made.layers
    how = _How(verify, measure_latency, data, steps, allow_bias, scores)
    result = _applied(model, made, example_inputs, how, dynamic, each_step=one_step)
    following = made.then
    while following is not None:
        alone = dataclasses.replace(following, then=None)
        result = after(result, _applied(result.model, alone, None, how, None))
        following = following.then
    if scores and not one_step:
        scores.note("result", result.model)
        report = dataclasses.replace(result.report, evaluation=dict(scores.values))
        result = dataclasses.replace(result, report=report)
    return result


def plan_of(given: Any) -> Plan:
    """The plan itself, or the one in a file or in a saved result.

    Raises:
        PlanError: there is none, or it cannot be read.
    """
    if isinstance(given, Plan):
        return given
    if isinstance(given, Result):
        return given.plan
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        return Plan.load(path / "plan.json" if path.is_dir() else path)
    raise PlanError(f"the plan is a {type(given).__name__}: pass a prunus.Plan, or the path of a plan.json")


@dataclass(frozen=True)
class _How:
    """The arguments of `apply` that hold for every step of a plan."""

    verify: bool
    measure_latency: bool
    data: Any
    steps: tuple[str, ...]
    allow_bias: bool
    scores: Scores | None


def _applied(
    model: Any,
    plan: Plan,
    example_inputs: Any,
    how: _How,
    dynamic: Dynamic | None,
    each_step: bool = False,
) -> Result:
    """Execute one plan, without what follows it."""
    inputs = (
        example_inputs
        if example_inputs is not None
        else rebuild(plan.inputs)
        if isinstance(model, nn.Module)
        else None
    )
    captured = with_outputs(
        capture(model, inputs, asked(plan.inputs) if dynamic is None else dynamic), plan.outputs
    )
    if how.data is not None and how.steps:
        if not plan.layers:
            require_whole(captured)
        require_fitting(captured, how.data)
    if how.scores:
        how.scores.original(captured)
    plan = dataclasses.replace(plan, then=None)
    if not plan.layers:
        structure = structure_of(captured, plan.keep_class)
        return execute(structure, plan, **{**vars(how), "scores": how.scores if each_step else None})
    if plan.groups:
        raise PlanError("one plan both removes channels and replaces layers: put the second into its `then`")
    if plan.architecture != architecture_hash(captured):
        raise PlanError(
            f"this plan was made for another architecture. Make a new one with prunus.decompose.{FOLLOWING}"
        )
    work, ranks, biases = of_plan(captured, plan.layers)
    return replaced(captured, work, ranks, how.data, plan, biases=biases, measure_latency=how.measure_latency)
