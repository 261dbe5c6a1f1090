"""Attributes whose numbers lost their origin on the way (through a cache, a float, a string): found by value."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import nn

from prunus.surgery.align import Use
from prunus.surgery.attributes import Slot
from prunus.surgery.constraints import Solution

__all__ = ["guesses"]

_MOST_TRIED = 8

_Place = tuple[type, tuple[object, ...]]  # a class and an attribute of it: decided once for all its modules


def guesses(model: nn.Module, slots: Mapping[Slot, int], solution: Solution) -> Iterator[dict[Slot, int]]:
    """Values for attributes that equal a number which has to change, in the modules that were running there.

    The first guess changes what can only be meant; where several attributes of a class have the value, each is tried.
    """
    modules = dict(model.named_modules())
    choices: dict[tuple[_Place, ...], list[dict[Slot, int]]] = defaultdict(list)
    for use in solution.written:
        found = _candidates(use, slots, solution)
        if found:
            places = tuple((type(modules[slot.owner]), slot.name) for slot in found)
            choices[places].append({slot: value for slot, value in found.items()})
    picks = itertools.product(*(range(len(places)) for places in choices))
    for pick in itertools.islice(picks, _MOST_TRIED):
        guess: dict[Slot, int] = {}
        for i, options in zip(pick, choices.values(), strict=True):
            for option in options:
                slot = list(option)[i]
                guess[slot] = option[slot]
        yield guess


def _candidates(use: Use, slots: Mapping[Slot, int], solution: Solution) -> dict[Slot, int]:
    """Unseen attributes of the innermost module that has any that make the number: alone, or as a factor of it."""
    if use.after is None:
        return {}
    path = use.call.path
    while True:
        mine = {
            slot: value for slot, value in slots.items() if slot.owner == path and slot not in solution.values
        }
        found = {slot: use.after for slot, value in mine.items() if value == use.before}
        known = [value for slot, value in slots.items() if slot.owner == path]
        for slot, value in mine.items():
            rest, remainder = divmod(use.before, value) if value > 1 else (0, 1)
            if not remainder and rest > 1 and rest in known and use.after % rest == 0:
                found.setdefault(slot, use.after // rest)
        if found or not path:
            return found
        path = path.rpartition(".")[0]
