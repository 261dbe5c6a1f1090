"""Execute a plan, whatever it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus.api.pruning import execute, structure_of
from prunus.api.replacing import replaced
from prunus.api.result import Result, after, reusable
from prunus.api.scores import Scores
from prunus.capture import architecture_hash, capture, with_outputs
from prunus.decomposition.run import of_plan
from prunus.describe import rebuild
from prunus.errors import PlanError
from prunus.plan import Plan
from prunus.recovery import checked_steps

__all__ = ["apply"]


def apply(
    model: Any,
    plan: Plan,
    *,
    example_inputs: Any = None,
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
    data, steps = reusable(data), checked_steps(recover)
    scores = None if evaluate is None else Scores(evaluate)
    one_step = plan.then is None and not plan.layers
    how = _How(verify, measure_latency, data, steps, allow_bias, scores)
    result = _applied(model, plan, example_inputs, how, each_step=one_step)
    following = plan.then
    while following is not None:
        alone = dataclasses.replace(following, then=None)
        result = after(result, _applied(result.model, alone, None, how))
        following = following.then
    if scores and not one_step:
        scores.note("result", result.model)
        report = dataclasses.replace(result.report, evaluation=dict(scores.values))
        result = dataclasses.replace(result, report=report)
    return result


@dataclass(frozen=True)
class _How:
    """The arguments of `apply` that hold for every step of a plan."""

    verify: bool
    measure_latency: bool
    data: Any
    steps: tuple[str, ...]
    allow_bias: bool
    scores: Scores | None


def _applied(model: Any, plan: Plan, example_inputs: Any, how: _How, each_step: bool = False) -> Result:
    """Execute one plan, without what follows it."""
    inputs = (
        example_inputs
        if example_inputs is not None
        else rebuild(plan.inputs)
        if isinstance(model, nn.Module)
        else None
    )
    captured = with_outputs(capture(model, inputs), plan.outputs)
    if how.scores:
        how.scores.original(captured)
    plan = dataclasses.replace(plan, then=None)
    if not plan.layers:
        structure = structure_of(captured, plan.keep_class)
        return execute(structure, plan, **{**vars(how), "scores": how.scores if each_step else None})
    if plan.groups:
        raise PlanError("one plan both removes channels and replaces layers: put the second into its `then`")
    if plan.architecture != architecture_hash(captured):
        raise PlanError("this plan was made for another architecture. Make a new one with prunus.decompose.")
    work, ranks, biases = of_plan(captured, plan.layers)
    return replaced(captured, work, ranks, how.data, plan, biases=biases, measure_latency=how.measure_latency)
