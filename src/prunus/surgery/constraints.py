"""What the attributes have to become, from what became of the numbers that they made."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prunus.capture import Captured
from prunus.surgery.align import Alignment, Use, uses
from prunus.surgery.attributes import Slot
from prunus.surgery.provenance import Source, evaluate, leaves
from prunus.surgery.record import INPUT, Recording, SizeOf

__all__ = ["Solution", "solve_slots"]

_LARGEST_SEARCHED = 8192
_Values = dict[Any, "int | None"]


@dataclass
class Solution:
    """New values of the attributes that the forward was seen to use.

    Attributes:
        values: Slot -> its value from now on; slots that were not seen are missing.
        unmet: Uses that these values do not satisfy, with the number that they make instead.
        written: Numbers in the code, not from any attribute, that would have to change.
    """

    values: dict[Slot, int] = field(default_factory=dict)
    unmet: list[tuple[Use, int | None]] = field(default_factory=list)
    written: list[Use] = field(default_factory=list)


@dataclass(frozen=True)
class _Constraint:
    source: Source
    after: int

    def unknown(self, values: _Values) -> list[Slot]:
        return list(dict.fromkeys(leaf for leaf in leaves(self.source) if leaf not in values))


def solve_slots(
    slots: dict[Slot, int], recording: Recording, alignment: Alignment, captured: Captured, small: Captured
) -> Solution:
    """Solve for the attributes: those alone in a use first, then those that arithmetic leads back to."""
    seen = list(uses(alignment))
    values = _sizes(seen, recording, alignment, captured, small)
    constraints = [_Constraint(use.source, use.after) for use in seen if use.after is not None]
    for left, right in dict.fromkeys(recording.equalities):
        for one, other in ((left, right), (right, left)):
            known = None if isinstance(one, int) else evaluate(one, values)
            if known is not None:
                constraints.append(_Constraint(other, known))
    _solve(slots, [c for c in dict.fromkeys(constraints) if _is_usable(c, values)], values)
    for pair in recording.equalities:
        if any(
            isinstance(side, int) for side in pair
        ):  # compared with a number: the answer has to stay the same
            for leaf in (leaf for side in pair for leaf in leaves(side) if isinstance(leaf, Slot)):
                values.setdefault(leaf, slots[leaf])
    solution = Solution(
        {slot: value for slot, value in values.items() if isinstance(slot, Slot) and value is not None}
    )
    for use in seen:
        got = evaluate(use.source, values)
        if isinstance(use.source, int):
            if use.after != use.before:
                solution.written.append(use)
        elif got is not None and got != use.after:
            solution.unmet.append((use, got))
    return solution


def _is_usable(constraint: _Constraint, values: _Values) -> bool:
    used = list(leaves(constraint.source))
    return bool(used) and all(values.get(leaf, 0) is not None for leaf in used)


def _sizes(
    seen: Iterable[Use], recording: Recording, alignment: Alignment, captured: Captured, small: Captured
) -> _Values:
    """New values of all sizes that the forward read from tensors."""
    shapes = {name: small.tensors[p].shape for p, name in captured.names.items() if p in small.tensors}
    sources = [use.source for use in seen] + [side for pair in recording.equalities for side in pair]
    found: _Values = {}
    for source in sources:
        for leaf in leaves(source):
            if not isinstance(leaf, SizeOf) or leaf in found:
                continue
            if leaf.made_by == INPUT:
                found[leaf] = leaf.before
            elif isinstance(leaf.made_by, int):
                found[leaf] = alignment.size_after(leaf.made_by, leaf.output, leaf.axis)
            else:
                shape = shapes.get(leaf.made_by)
                found[leaf] = shape[leaf.axis] if shape is not None else None
    return found


def _solve(slots: dict[Slot, int], constraints: list[_Constraint], values: _Values) -> None:
    """Extend `values` by all slots that the constraints determine."""
    votes: dict[Slot, Counter[int]] = defaultdict(Counter)
    for c in constraints:
        if isinstance(c.source, Slot):
            votes[c.source][c.after] += 1
    for slot, counted in votes.items():
        values[slot] = max(counted, key=lambda value: (counted[value], value == slots[slot]))
    while True:
        single: dict[Slot, list[_Constraint]] = defaultdict(list)
        for c in constraints:
            unknown = c.unknown(values)
            if len(unknown) == 1:
                single[unknown[0]].append(c)
        for slot, mine in single.items():
            values[slot] = _value_for(slot, slots[slot], mine, values)
        if not single and not _assume(slots, constraints, values):
            return


def _value_for(slot: Slot, before: int, mine: list[_Constraint], values: _Values) -> int | None:
    """The value that meets the most constraints; the old one where that does."""
    top = min(2 * max(before, *(c.after for c in mine)), _LARGEST_SEARCHED)
    best, best_met = None, 0
    for value in (before, *range(1, top + 1)):
        values[slot] = value
        met = sum(evaluate(c.source, values) == c.after for c in mine)
        if met > best_met:
            best, best_met = value, met
            if met == len(mine):
                break
    del values[slot]
    return best


def _assume(slots: dict[Slot, int], constraints: list[_Constraint], values: _Values) -> bool:
    """Where several unknown attributes make one number, let all but one stay as they are."""
    for c in constraints:
        unknown = c.unknown(values)
        if len(unknown) < 2:
            continue
        stay = {slot: slots[slot] for slot in unknown}
        if evaluate(c.source, {**values, **stay}) != c.after:
            for slot in unknown:
                rest = {k: v for k, v in stay.items() if k is not slot}
                if _value_for(slot, slots[slot], [c], {**values, **rest}) is not None:
                    values.update(rest)
                    return True
        values.update(stay)
        return True
    return False
