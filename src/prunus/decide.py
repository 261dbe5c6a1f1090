"""From a structure, a method and a target to a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prunus.allocation import (
    Choice,
    Target,
    allocate,
    allocator_of,
    checked_ratio,
    choice_by_index,
    contained,
    counts_of_ratios,
    held_by,
    keep_counts,
)
from prunus.capture import architecture_hash, output_paths
from prunus.criteria import ByIndex, Options, as_criterion, gather, score_groups
from prunus.describe import describe
from prunus.errors import ConfigError, PlanError
from prunus.evidence import Progress
from prunus.plan import GroupPlan, Plan
from prunus.structure import Group, LayerTable, Structure


def plan(
    structure: Structure,
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
    seed: int = 0,
    data: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """Decide what every group keeps. Give exactly one of `target`, `ratio` and `table`; none with `ByIndex`.

    Args:
        structure: from `prunus.analyze`.
        method: a criterion (`prunus.L2Norm()`), its registered name, or a callable `(GroupView) -> (units,) scores`.
        target: what is kept.
        ratio: share of the filters that is removed: 0.3 is `Target(channels=0.7)`. Or such shares per layer or group,
            `{"layer1.0.conv1": 0.3}`; all others are left alone.
        table: from `structure.layers()`, edited: how many channels every group keeps; the method decides which.
        allocation: how many channels each group keeps under the target: `"uniform"`, the same share of every group;
            `"global"`, all ranked together; `"slamp"`, all ranked by their share of what is left of their layer;
            `"isomorphic"`, ranked among groups of equal topology; `"erk"`, wide layers keep less; `"knapsack"`, what
            adds least error for what it saves, for scores that are errors. None: uniform for
            channels and ratios, global for others.
        options: how scores are normalized and combined, and numbers rounded; see `Options`.
        hold: layers that are never touched: paths, prefixes of paths or globs.
        floors: least share (float) or number (int) of channels that stay, for all or per pattern; by default 5 % where
            channels are ranked across the whole model. Numbers given per layer have no floor.
        multiple_of: every group keeps a multiple of this many channels, or all.
        seed: recorded in the plan; criteria that draw numbers have their own.
        data: for methods that look at activations or gradients: an iterable of batches like the example inputs (tensors,
            tuples, dictionaries or `prunus.Inputs`), or `prunus.evidence.Evidence` collected before.
        loss: `(outputs, batch) -> scalar`, for methods that use gradients; by default the cross-entropy with the labels that
            the batches carry.
        progress: called with a `prunus.evidence.Progress` before the first batch of data and after each.

    Returns:
        A frozen plan; `apply` executes it.

    Raises:
        ConfigError: bad method, allocation, pattern, floor, multiple, ratio or table; names the row.
        PlanError: scores or indices that do not fit.
        TargetError: the target cannot be reached; says what can.
    """
    if isinstance(method, ByIndex):
        if not (target is ratio is table is None):
            raise ConfigError("ByIndex says what stays: it takes no target, ratio or table")
        made = _plan(structure, choice_by_index(structure, method), "index", {}, seed)
        check(structure, made)
        return made
    criterion = as_criterion(method)
    options = _checked_options(options, criterion)
    goal = _goal(structure, target, ratio, table)
    free = _free(structure, held_by(structure, hold) if hold else set(), goal, options)

    def score(groups: Sequence[Group]) -> dict[str, np.ndarray]:
        evidence, multiplied = gather(structure, criterion, groups, data, loss, progress)
        return score_groups(structure, criterion, groups, options, evidence, multiplied)

    if isinstance(goal, Target):
        allocation = allocator_of(allocation, goal, criterion)
        choice = allocate(
            structure,
            score(free),
            goal,
            allocation=allocation,
            criterion=criterion,
            floors=floors,
            multiple_of=multiple_of,
            options=options,
        )
        said = {**goal.to_dict(), **({} if ratio is None else {"ratio": ratio})}
    else:
        if allocation is not None or floors is not None:
            raise ConfigError("numbers per layer leave nothing to allocation and floors: leave these out")
        choice, said, allocation = (
            keep_counts(structure, score, goal, free, multiple_of, options),
            {},
            "manual",
        )
    name = getattr(criterion, "name", type(criterion).__name__)
    made = _plan(structure, choice, name, said, seed)
    return dataclasses.replace(made, allocation=allocation, options=options.to_dict())


def _free(
    structure: Structure, untouched: set[str], goal: Target | dict[str, int], options: Options
) -> list[Group]:
    """Groups that may be pruned: where heads contain channels, one of the two under a target, either by numbers."""
    free = [g for g in structure.prunable if g.name not in untouched]
    if not isinstance(goal, Target):
        return free
    outer = [g for g in free if g.outer]
    if not options.whole_rows:
        return [g for g in free if not g.outer]
    inside = contained(structure, outer)
    return [g for g in free if g.name not in inside]


def _checked_options(options: Options | None, criterion: Any) -> Options:
    if options is not None and not isinstance(options, Options):
        raise ConfigError(f"options must be a prunus.Options, got {type(options).__name__}")
    return options or Options(layer_norm=getattr(criterion, "layer_norm", Options.layer_norm))


def _goal(
    structure: Structure,
    target: Target | None,
    ratio: float | Mapping[str, float] | None,
    table: LayerTable | None,
) -> Target | dict[str, int]:
    """A target, or how many units each group keeps."""
    given = {"target": target, "ratio": ratio, "table": table}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        raise ConfigError("say what to keep: target=prunus.Target(macs=0.5)")
    if len(given) > 1:
        raise ConfigError(f"give one of target, ratio and table; got {' and '.join(given)}")
    if ratio is not None:
        if isinstance(ratio, Mapping):
            return counts_of_ratios(structure, ratio)
        return Target(channels=round(1 - checked_ratio(ratio), 12))
    if table is not None:
        if not isinstance(table, LayerTable):
            raise ConfigError(f"table must come from structure.layers(), got {type(table).__name__}")
        return table.counts(structure)
    if not isinstance(target, Target):
        raise ConfigError(
            f"target must be a prunus.Target, such as prunus.Target(macs=0.5); got {type(target).__name__}"
        )
    return target


def _plan(structure: Structure, choice: Choice, method: str, target: dict[str, float], seed: int) -> Plan:
    groups = []
    for group in structure.groups:
        if group.name in choice and len(choice[group.name]) < group.size:
            members = tuple((m.parameter, m.axis) for m in group.members)
            groups.append(
                GroupPlan(group.name, group.size, tuple(int(i) for i in choice[group.name]), members)
            )
    return Plan(
        architecture=architecture_hash(structure.captured),
        groups=tuple(groups),
        inputs=describe(structure.captured.example),
        method=method,
        target=target,
        keep_class=structure.keep_class,
        seed=seed,
        outputs=_outputs(structure),
    )


def _outputs(structure: Structure) -> dict[str, str]:
    """Which outputs may get narrower or are dropped, each by its path, as `analyze` was told."""
    states = structure.captured.outputs
    if not states:
        return {}
    paths = output_paths(structure.captured.out_spec)
    return {path or "*": state for path, state in zip(paths, states, strict=True) if state != "keep"}


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
            f"this plan was made for another architecture ({detail}). Make a new one with prunus.plan."
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
