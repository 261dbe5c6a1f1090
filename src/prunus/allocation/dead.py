"""What stays where all leaves that computes a constant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, fx

from prunus.allocation.budget import Choice
from prunus.constants import Bounds, Reader, bounds_of, reader_of
from prunus.constants.bounds import small
from prunus.constants.interpret import keeps_apart
from prunus.criteria import Dead
from prunus.criteria.reaching import Reaching
from prunus.evidence import Evidence
from prunus.evidence.places import Place, Places, Spot
from prunus.structure import Group, Structure
from prunus.structure.labels import compact, varying

__all__ = ["choice_from", "choice_of_dead"]

_ROUNDS = 8  # what only dead units read is dead as well, and so on
_STILL = 1e-9  # of the mean square: rounding of sums leaves less


def choice_of_dead(
    structure: Structure, groups: Sequence[Group], evidence: Evidence | None, multiple_of: int = 1
) -> Choice:
    """Group name -> units that stay, so that the outputs stay as they are.

    Args:
        structure: the structure.
        groups: those that may be pruned; what contains others is left alone.
        evidence: moments of what layers read, for units that never vary on data.
        multiple_of: every group keeps a multiple of this many channels, or all.
    """
    groups = [group for group in groups if not group.outer]
    search, choice = _Search(structure, groups, evidence), {}
    for _ in range(_ROUNDS):
        dead = search.dead(structure.keep_labels(choice))
        found = choice_from(groups, dead, choice, multiple_of)
        if {name: len(keep) for name, keep in found.items()} == {n: len(keep) for n, keep in choice.items()}:
            break
        choice = found
    return choice


class _Search:
    def __init__(self, structure: Structure, groups: list[Group], evidence: Evidence | None) -> None:
        self.structure, self.groups, self.evidence = structure, groups, evidence
        self.places = Places(structure, groups)
        self.bounds = bounds_of(structure.captured)
        self.reaching = Reaching(structure)
        self.exact = [True] * len(groups)
        works = {work.node for work in structure.labels.works}
        for node in structure.captured.graph.nodes:
            if node.op == "call_function" and node in self.places.dependent and node.name not in works:
                self._look(node)

    def _look(self, node: fx.Node) -> None:
        """Groups that meet an operator which mixes their channels, or is not known not to, stay."""
        out = self.places.spots(node)
        for operand in node.all_input_nodes:
            for number in self.places.spots(operand) if operand in self.places.dependent else ():
                if not keeps_apart(node, number in out):
                    self.exact[number] = False

    def dead(self, keep: np.ndarray) -> dict[str, np.ndarray]:
        """Group -> (units,) whether each is dead, given what stays of all others (labels,)."""
        dead = {g.name: np.full(g.size, exact) for g, exact in zip(self.groups, self.exact, strict=True)}
        sides: dict[tuple[str, str], np.ndarray] = {}
        for place in self.places.read:
            node, _, side = place.layer.rpartition(":")
            units = self._units(place, keep, len(dead[place.group]))
            if side in ("0", "1") and place.reader is not None and node == place.reader.name:
                key = (place.group, node)  # a product with zero is zero, whatever the other side is
                sides[key] = sides.get(key, np.zeros_like(units)) | units
            else:
                dead[place.group] &= units
        for (name, _), units in sides.items():
            dead[name] &= units
        return dead

    def _units(self, place: Place, keep: np.ndarray, size: int) -> np.ndarray:
        """(units,) whether what is read at one place does not need the unit."""
        assert place.reader is not None
        reader = reader_of(self.structure.captured, place.reader)
        mine = reader is not None and reader.node.args[0] is place.node and len(place.spot.axes) == 1
        known, zero = _constant(self.bounds.get(place.node.name), place.spot)
        fine = zero
        if mine and reader is not None:
            fine = zero | known if reader.takes_up else zero
            unread = self._unread(reader, keep)
            fine = fine if unread is None or len(unread) != len(fine) else fine | unread
        needed = place.spot.units.reshape(-1)[~fine.reshape(-1)]
        units = np.ones(size, bool)
        units[needed[needed >= 0]] = False
        return units | self._still(place, reader if mine else None, size)

    def _unread(self, reader: Reader, keep: np.ndarray) -> np.ndarray | None:
        """(channels,) whether all weights that read an input, for outputs that stay, are zero."""
        weight = self.reaching.tensor(reader.node.args[1])  # type: ignore[arg-type]
        if weight is None:
            return None
        stays = torch.from_numpy(self._line(reader, keep, reader.outputs(weight)))
        return (~reader.by_input(weight.cpu() * stays.view(-1, *(1,) * (weight.dim() - 1)))).numpy()

    def _line(self, reader: Reader, keep: np.ndarray, size: int) -> np.ndarray:
        value, line = self.structure.values[reader.node.name], np.ones(size, bool)
        for track in value.tracks:
            axes = varying(track)
            if axes == (reader.axis % track.dim(),):
                line &= keep[compact(track, axes).numpy()]
        return line

    def _still(self, place: Place, reader: Reader | None, size: int) -> np.ndarray:
        """(units,) whether the data never moves a unit here, and its mean can be made up for."""
        seen = self.evidence.per_sample(Dead.KEY, place.group) if self.evidence else {}
        if place.layer not in seen:
            return np.zeros(size, bool)
        count, total, squares = seen[place.layer].double().unbind(1)
        mean, square = total / count.clamp(min=1e-300), squares / count.clamp(min=1e-300)
        still = square - mean.square() <= _STILL * square
        takes_up = reader is not None and reader.takes_up
        return (still & (square == 0) if not takes_up else still).numpy()


def _constant(bounds: Bounds | None, spot: Spot) -> tuple[np.ndarray, np.ndarray]:
    """Where a value is constant at the positions of a spot, and where it is zero; (sizes of the axes) each."""
    nowhere = np.zeros(spot.units.shape, bool)
    if bounds is None:
        return nowhere, nowhere
    ends = []
    for end in (bounds.low, bounds.high):
        end = small(end)
        if any(size > 1 for axis, size in enumerate(end.shape) if axis not in spot.axes):
            return nowhere, nowhere
        shape = [size if axis in spot.axes else 1 for axis, size in enumerate(bounds.low.shape)]
        ends.append(end.expand(shape).reshape(spot.units.shape))
    known: Tensor = (ends[0] == ends[1]) & ends[0].isfinite()
    return known.numpy(), (known & (ends[0] == 0)).numpy()


def choice_from(
    groups: Sequence[Group], dead: dict[str, np.ndarray], before: Choice, multiple_of: int
) -> Choice:
    """Units that stay: as many leave each row as are dead in the row with the fewest, of all groups that are tied.

    Those that left `before` leave first: others may have been found dead because of it.
    """
    rows = {g.name: np.arange(g.size)[None] if g.rows is None else g.rows for g in groups}
    counts = {
        g.name: min(int(dead[g.name][rows[g.name]].sum(1).min()), rows[g.name].shape[1] - 1) for g in groups
    }
    choice: Choice = {}
    for group in groups:
        mine = rows[group.name]
        count = min(counts.get(name, 0) for name in (group.name, *group.tied))
        while count and (group.size - count * len(mine)) % multiple_of:
            count -= 1
        if count:
            stayed = np.isin(np.arange(group.size), before.get(group.name, np.arange(group.size)))
            ordered = [row[np.argsort(stayed[row], kind="stable")] for row in mine]
            gone = np.concatenate([row[dead[group.name][row]][:count] for row in ordered])
            choice[group.name] = np.setdiff1d(np.arange(group.size), gone)
    return choice
