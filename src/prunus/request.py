"""What is asked for, checked: before a model is looked at, and then against its structure, before any work with data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.allocation import (
    Target,
    allocator_of,
    checked_floors,
    checked_multiple,
    checked_ratio,
    contained,
    counts_of_ratios,
    held_by,
    require_reachable,
)
from prunus.capture import require_values
from prunus.criteria import ByIndex, Dead, Options, as_criterion, require_data
from prunus.errors import ConfigError, PrunusError
from prunus.evidence import Progress, as_data
from prunus.evidence.batches import require_fitting
from prunus.evidence.losses import checked_loss
from prunus.patterns import checked_patterns
from prunus.structure import Group, LayerTable, Structure

__all__ = ["Problems", "Request", "Settled", "checked_flags", "requested", "settled"]


class Problems:
    """Problems of several arguments, which are raised together."""

    def __init__(self) -> None:
        self._found: list[PrunusError] = []

    def of(self, check: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """What a check returns; None where it raises, which is noted."""
        try:
            return check(*given, **named)
        except PrunusError as error:
            self._found.append(error)
            return None

    def settle(self) -> None:
        """Raise what was found: one problem as it is, several in one message.

        Raises:
            ConfigError: several; lists all.
            PrunusError: one.
        """
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            listed = "\n".join(f"  - {error}" for error in self._found)
            raise ConfigError(f"{len(self._found)} arguments make no sense:\n{listed}")


@dataclass(frozen=True)
class Request:
    """The arguments of `plan`, as far as they can be understood without a model.

    Attributes:
        criterion: that scores, or `ByIndex`.
        target: what is kept; None with `ByIndex`, and where `counts` says it.
        ratio: as given.
        table: as given.
        allocation, options, hold, floors, multiple_of, seed, data, loss, progress: see `plan`.
    """

    criterion: Any
    target: Target | None
    ratio: float | Mapping[Any, float] | None
    table: LayerTable | None
    allocation: str | None
    options: Options
    hold: tuple[Any, ...]
    floors: float | Mapping[str, float | int] | None
    multiple_of: int
    seed: int
    data: Any
    loss: Any
    progress: Callable[[Progress], None] | None


@dataclass(frozen=True)
class Settled:
    """A request that fits a structure.

    Attributes:
        request: the request.
        goal: a target, or how many units each group keeps.
        free: groups that may be pruned.
    """

    request: Request
    goal: Target | dict[str, int]
    free: list[Group]


def requested(problems: Problems, **given: Any) -> Request:
    """The arguments of `plan`, understood; what is wrong with them goes to the problems, which the caller settles."""
    by_index = isinstance(given["method"], ByIndex | Dead) or given["method"] == Dead.name
    criterion = (
        given["method"]
        if isinstance(given["method"], ByIndex | Dead)
        else problems.of(as_criterion, given["method"])
    )
    target = problems.of(_checked_goal, given["target"], given["ratio"], given["table"], by_index)
    options = problems.of(_checked_options, given["options"], criterion)
    problems.of(_nothing_to_allocate, given)
    if target is not None:
        problems.of(allocator_of, given["allocation"], target, criterion)
    hold = problems.of(checked_patterns, given["hold"], "hold")
    problems.of(checked_floors, given["floors"])
    problems.of(checked_multiple, given["multiple_of"], options or Options())
    problems.of(checked_number, "seed", given["seed"])
    data = problems.of(as_data, given["data"])
    problems.of(checked_loss, given["loss"])
    problems.of(checked_call, "progress", given["progress"])
    own = {name: given[name] for name in ("ratio", "table", "allocation", "floors", "multiple_of", "seed")}
    return Request(
        criterion, target, **own, options=options or Options(), hold=hold or (), data=data, loss=given["loss"],
        progress=given["progress"],
    )  # fmt: skip


def settled(structure: Structure, request: Request, *, ahead: bool = False) -> Settled:
    """The request, checked against a structure; of data, the first batch is looked at.

    Args:
        structure: the structure.
        request: from `requested`.
        ahead: other work with the data, or of the user's own, depends on the decision.

    Raises:
        ConfigError: names, numbers or data that do not fit the model; all problems at once.
        TargetError: the target is out of reach whatever the scores.
        SourceError: weights without values.
    """
    captured, problems = structure.captured, Problems()
    problems.of(require_values, captured.tensors, captured.names)
    goal = request.target or problems.of(_counts, structure, request)
    untouched = problems.of(held_by, structure, request.hold) if request.hold else set()
    problems.of(checked_floors, request.floors, structure)
    problems.settle()
    free = _free(structure, untouched, goal, request.options)
    if isinstance(goal, Target):
        ahead = bool(require_data(structure, request.criterion, free, request.data)) or ahead
    if isinstance(goal, Target) and ahead:
        require_reachable(
            structure,
            free,
            goal,
            floors=request.floors,
            multiple_of=request.multiple_of,
            options=request.options,
            allocation=allocator_of(request.allocation, goal, request.criterion),
        )
    if ahead and captured.partial is None:
        require_fitting(captured, request.data)
    return Settled(request, goal, free)


def checked_flags(**flags: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ConfigError: all of them at once.
    """
    odd = [f"{name}={value!r}" for name, value in flags.items() if not isinstance(value, bool | np.bool_)]
    if odd:
        raise ConfigError(f"{', '.join(odd)}: say True or False")


def checked_number(name: str, value: Any) -> None:
    """Refuse what is no whole number.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name}={value!r}: say a whole number")


def checked_call(name: str, value: Any) -> None:
    """Refuse what cannot be called, and is not None.

    Raises:
        ConfigError: it cannot be called.
    """
    if value is not None and not callable(value):
        raise ConfigError(f"{name} is a {type(value).__name__}: pass a function")


def checked_target(target: Any) -> Target:
    """The target.

    Raises:
        ConfigError: it is none; says how it is spelled.
    """
    if isinstance(target, Target):
        return target
    spelled = "prunus.Target(macs=0.5), or one of channels, params and size_bytes"
    if isinstance(target, int | float) and not isinstance(target, bool) and math.isfinite(target):
        raise ConfigError(f"target={target!r}: say what {target!r} is of: target={spelled}")
    if isinstance(target, Mapping):
        said = ", ".join(f"{name}={value!r}" for name, value in target.items())
        raise ConfigError(f"target is a dictionary: write target=prunus.Target({said})")
    raise ConfigError(f"target is {_what(target)}: write target={spelled}")


def _what(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _checked_goal(target: Any, ratio: Any, table: Any, by_index: bool) -> Target | None:
    """The target; None where numbers are given for each group, or indices."""
    given = {"target": target, "ratio": ratio, "table": table}
    given = {name: value for name, value in given.items() if value is not None}
    if by_index:
        if given:
            raise ConfigError("this method says what stays: it takes no target, ratio or table")
        return None
    if not given:
        raise ConfigError("say what to keep: target=prunus.Target(macs=0.5)")
    if len(given) > 1:
        raise ConfigError(f"give one of target, ratio and table; got {' and '.join(given)}")
    if table is not None and not isinstance(table, LayerTable):
        raise ConfigError(f"table must come from structure.layers(), got {type(table).__name__}")
    if isinstance(ratio, Mapping):
        checked_patterns(tuple(ratio), "ratio")
        for name, share in ratio.items():
            checked_ratio(share, name if isinstance(name, str) else type(name).__name__)
    elif ratio is not None:
        return Target(channels=round(1 - checked_ratio(ratio), 12))
    return None if target is None else checked_target(target)


def _nothing_to_allocate(given: Mapping[str, Any]) -> None:
    numbers = isinstance(given["ratio"], Mapping) or given["table"] is not None
    if numbers and (given["allocation"] is not None or given["floors"] is not None):
        raise ConfigError("numbers per layer leave nothing to allocation and floors: leave these out")


def _checked_options(options: Any, criterion: Any) -> Options:
    if options is not None and not isinstance(options, Options):
        raise ConfigError(f"options must be a prunus.Options, got {type(options).__name__}")
    return options or Options(layer_norm=getattr(criterion, "layer_norm", Options.layer_norm))


def _counts(structure: Structure, request: Request) -> dict[str, int]:
    """How many units each group keeps, by a table or ratios."""
    if request.table is not None:
        return request.table.counts(structure)
    return counts_of_ratios(structure, request.ratio) if isinstance(request.ratio, Mapping) else {}


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
