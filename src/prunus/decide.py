"""From a structure, a method and a target to a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prunus.allocation import (
    Target,
    allocate,
    allocator_of,
    choice_by_index,
    choice_of_dead,
    keep_counts,
)
from prunus.alone import alone
from prunus.capture import architecture_hash
from prunus.criteria import ByIndex, Dead, Options, gather, score_groups
from prunus.errors import ConfigError, PlanError, TargetError
from prunus.evidence import Progress
from prunus.plan import Plan, plan_of
from prunus.request import Problems, Request, Settled, requested, settled
from prunus.structure import Group, LayerTable, Structure

FOLLOWING = (
    " If it is of a later round, made for what an earlier plan leaves, do both at once: apply(model, "
    "first.followed_by(second))."
)


@alone
def plan(
    structure: Structure,
    *,
    method: Any = "l2",
    target: Target | None = None,
    ratio: float | Mapping[Any, float] | None = None,
    table: LayerTable | None = None,
    allocation: str | None = None,
    options: Options | None = None,
    hold: Any = (),
    floors: float | Mapping[str, float | int] | None = None,
    multiple_of: int = 1,
    seed: int = 0,
    data: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """Decide what every group keeps. Give exactly one of `target`, `ratio` and `table`; none with `ByIndex` and `"dead"`.

    Args:
        structure: from `prunus.analyze`.
        method: a criterion (`prunus.L2Norm()`), its registered name, or a callable `(GroupView) -> (units,) scores`.
        target: what is kept.
        ratio: share of the filters that is removed: 0.3 is `Target(channels=0.7)`. Or such shares per layer or group,
            `{"layer1.0.conv1": 0.3}`, also by globs, modules of the model and classes: `{nn.Conv2d: 0.3}`; all others are left alone.
        table: from `structure.layers()`, edited: how many channels every group keeps; the method decides which.
        allocation: how many channels each group keeps under the target: `"uniform"`, the same share of every group;
            `"global"`, all ranked together; `"slamp"`, all ranked by their share of what is left of their layer;
            `"isomorphic"`, ranked among groups of equal topology; `"erk"`, wide layers keep less; `"knapsack"`, what
            adds least error for what it saves, for scores that are errors. None: uniform for
            channels and ratios, global for others.
        options: how scores are normalized and combined, and numbers rounded; see `Options`.
        hold: layers that are never touched, one or several: paths, prefixes of paths, globs, modules of the model or classes.
        floors: least share (float) or number (int) of channels that stay, for all or per pattern; by default 5 % where
            channels are ranked across the whole model. Numbers given per layer have no floor.
        multiple_of: every group keeps a multiple of this many channels, or all.
        seed: recorded in the plan; criteria that draw numbers have their own.
        data: for methods that look at activations or gradients. Batches like the example inputs (tensors, arrays, tuples,
            dictionaries by the names of the forward's arguments, or `prunus.Inputs`; what a batch has beyond the inputs counts as
            labels), as an iterable such as a list, a generator or a `DataLoader`, or a function that makes one. Or all samples at
            once: a tensor, an array, a dictionary of these, a torch `Dataset`, or the path of an .npy, .npz or .safetensors file
            or a folder of these. Or `prunus.evidence.Evidence` collected before.
        loss: for methods that use gradients: a module such as `nn.CrossEntropyLoss()`, called with outputs and labels, or a
            function `(outputs, batch) -> scalar`; by default the cross-entropy with the labels that the batches carry.
        progress: called with a `prunus.evidence.Progress` before the first batch of data and after each.

    Returns:
        A frozen plan; `apply` executes it.

    Raises:
        ConfigError: bad method, allocation, pattern, floor, multiple, ratio or table; names the row.
        PlanError: scores or indices that do not fit.
        TargetError: the target cannot be reached; says what can.
    """
    problems = Problems()
    problems.of(_require_structure, structure)
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
    problems.settle()
    return decided(structure, settled(structure, request))


def _require_structure(given: Any) -> None:
    if not isinstance(given, Structure):
        raise ConfigError(
            f"structure: pass what prunus.analyze(model, inputs) returns, not a {type(given).__name__}"
        )


def decided(structure: Structure, wanted: Settled) -> Plan:
    """The plan that a settled request means.

    Raises:
        PrunusError: see `plan`.
    """
    request, goal, free = wanted.request, wanted.goal, wanted.free
    criterion, options = request.criterion, request.options
    if isinstance(criterion, ByIndex):
        made = plan_of(structure, choice_by_index(structure, criterion), "index", {}, request.seed)
        check(structure, made)
        return made

    if isinstance(criterion, Dead):
        evidence = None
        if request.data is not None:
            evidence, _ = gather(structure, criterion, free, request.data, None, request.progress)
        choice = choice_of_dead(structure, free, evidence, request.multiple_of)
        made = plan_of(structure, choice, criterion.name, {}, request.seed)
        check(structure, made)
        return made

    def score(groups: Sequence[Group]) -> dict[str, np.ndarray]:
        evidence, multiplied = gather(
            structure, criterion, groups, request.data, request.loss, request.progress
        )
        return score_groups(structure, criterion, groups, options, evidence, multiplied)

    if isinstance(goal, Target):
        allocation = allocator_of(request.allocation, goal, criterion)
        choice = allocate(
            structure,
            score(free),
            goal,
            allocation=allocation,
            criterion=criterion,
            floors=request.floors,
            multiple_of=request.multiple_of,
            options=options,
        )
        said = {**goal.to_dict(), **({} if request.ratio is None else {"ratio": request.ratio})}
    else:
        choice = keep_counts(structure, score, goal, free, request.multiple_of, options)
        said, allocation = {}, "manual"
    name = getattr(criterion, "name", type(criterion).__name__)
    made = plan_of(structure, choice, name, said, request.seed)
    if not made.groups and _asks(request):
        raise TargetError(_nothing(structure, request, goal))
    return dataclasses.replace(made, allocation=allocation, options=options.to_dict())


def _asks(request: Request) -> bool:
    """Whether anything is to be removed."""
    if isinstance(request.ratio, Mapping):
        return any(request.ratio.values())
    return request.target is not None and request.target.fraction < 1


def _nothing(structure: Structure, request: Request, goal: Target | dict[str, int]) -> str:
    asked = goal if isinstance(goal, Target) else f"ratio={request.ratio}"
    widest = max((g.row_size for g in structure.prunable), default=0)
    return (
        f"{asked} removes nothing: in groups of at most {widest} channels (of a row) it rounds to all of them. Ask for less "
        f"to be kept, or leave out what rounds up: floors, multiple_of and the options' step_size."
    )


def check(structure: Structure, made: Plan) -> None:
    """Check that a plan fits a structure.

    Raises:
        PlanError: another architecture, unknown groups, sizes or constraints that do not fit; all problems at once.
    """
    if made.architecture != architecture_hash(structure.captured):
        names = {g.name for g in structure.groups}
        odd = [g.name for g in made.groups if g.name not in names]
        sizes = {g.name: g.size for g in structure.groups}
        other = [
            f"{g.name} has {sizes[g.name]} channels here, {g.size} in the plan"
            for g in made.groups
            if sizes.get(g.name, g.size) != g.size
        ]
        detail = (
            "; ".join([f"no group {n!r}" for n in odd[:3]] + other[:3]) or "operators or constants differ"
        )
        raise PlanError(
            f"this plan was made for another architecture ({detail}). Make a new one with prunus.plan.{FOLLOWING}"
        )
    problems = []
    counts: dict[str, int] = {}
    for entry in made.groups:
        group = structure.group(entry.name)
        if group.held is not None:
            problems.append(f"{entry.name} is held: it {group.held}")
        elif entry.size != group.size:
            problems.append(f"{entry.name} has {group.size} units here, {entry.size} in the plan")
        elif group.rows is not None:
            stays = np.zeros(group.size, bool)
            stays[list(entry.keep)] = True
            per_row = np.unique(stays[group.rows].sum(1))
            if len(per_row) > 1:
                problems.append(
                    f"{entry.name}: its {group.row_count} rows must keep equally many channels, not {per_row.tolist()}"
                )
            counts[entry.name] = int(per_row[0])
        else:
            counts[entry.name] = len(entry.keep)
    for name, count in counts.items():
        group = structure.group(name)
        for other in group.tied:
            if counts.get(other, structure.group(other).row_size) != count:
                problems.append(
                    f"{name} keeps {count} per row, {other} {counts.get(other, structure.group(other).row_size)}: they must agree"
                )
    if not problems:
        problems += [
            f"all channels of {place} would go; at least one must stay"
            for place in structure.emptied(structure.keep_labels(made.keep))[:3]
        ]
    if problems:
        raise PlanError("the plan does not fit the model: " + "; ".join(problems))
