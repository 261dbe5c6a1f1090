"""Both operands of a product of two activations in one layout, row facing row as the product has them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, fx

from prunus.capture import size_of
from prunus.capture.sizes import is_symbolic
from prunus.evidence.arrange import split_labels
from prunus.evidence.places import Place, Spot

__all__ = ["Operands"]


class Operands:
    """How the two operands of a product become (samples, rows, n, columns): what is multiplied faces each other.

    Rows are the positions along which units differ, as heads; all other products that lie side by side are samples. Which units
    rows share does not matter: rotary tables give all heads the same.

    Attributes:
        units: (rows, columns) numbers of units, -1 for none.
    """

    def __init__(self, place: Place) -> None:
        assert place.facing is not None and place.other is not None and place.other_spot is not None
        self._facing = place.facing
        sides = [
            (place.facing.left, place.node, place.spot),
            (place.facing.right, place.other, place.other_spot),
        ]
        sizes = _sizes(sides)
        labelled = {letter for letters, _, spot in sides for letter in (letters[axis] for axis in spot.axes)}
        self._rows = [letter for letter in place.facing.batch if letter in labelled]
        names = [*self._rows, *place.facing.summed]
        units = np.full([sizes[name] for name in names], -1)
        for letters, _, spot in sides:
            units = np.maximum(units, _spread(letters, spot, names, units.shape))
        self._splits: dict[
            str, tuple[int, bool]
        ] = {}  # letter -> labels along it, and whether they are the outer part
        for i, letter in enumerate(self._rows):
            if any(is_symbolic(n.meta["val"].shape[s.index(letter)]) for s, n, _ in sides):
                units = self._split(units, i, letter)
        flat = units.reshape(math.prod(units.shape[: len(self._rows)]), -1)
        self._taken = np.flatnonzero((flat >= 0).any(1))
        self.units = flat[self._taken]

    def _split(self, units: np.ndarray, axis: int, letter: str) -> np.ndarray:
        """Note how an axis that batch and rows share comes apart; the units of the rows alone."""
        found = split_labels(np.moveaxis(units, axis, 0), merged=True)
        if found is None:
            return units
        count, outer = self._splits[letter] = found
        return units.take(np.arange(count) * (units.shape[axis] // count if outer else 1), axis)

    def __call__(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Both operands as (samples, rows, n, columns)."""
        facing = self._facing
        wide = {
            n: max(left.shape[facing.left.index(n)], right.shape[facing.right.index(n)]) for n in facing.batch
        }
        sides = (self._side(x, s, wide) for x, s in ((left, facing.left), (right, facing.right)))
        return tuple(x.index_select(1, torch.from_numpy(self._taken).to(x.device)) for x in sides)  # pyright: ignore[reportReturnType]

    def _side(self, x: Tensor, letters: str, wide: dict[str, int]) -> Tensor:
        facing = self._facing
        for (
            letter,
            size,
        ) in wide.items():  # heads of keys that several heads of queries share, and what is broadcast
            axis = letters.index(letter)
            x = x.repeat_interleave(size // x.shape[axis], axis) if x.shape[axis] != size else x
        samples = [n for n in facing.batch if n not in self._rows]
        free = [n for n in letters if n not in facing.batch and n not in facing.summed]
        rows, columns = list(self._rows), list(facing.summed)
        names = list(letters)
        for letter, (count, outer) in self._splits.items():
            axis = names.index(letter)
            x = x.unflatten(axis, (count, -1) if outer else (-1, count))
            names[axis : axis + 1] = [letter, letter * 2] if outer else [letter * 2, letter]
            samples.append(letter * 2)
        parts = (samples, rows, free, columns)
        x = x.permute([names.index(n) for part in parts for n in part])
        sizes, at = [], 0
        for part in parts:
            sizes.append(math.prod(x.shape[at : at + len(part)]))
            at += len(part)
        return x.reshape(sizes)


def _sizes(sides: list[tuple[str, fx.Node, Spot]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for letters, node, _ in sides:
        for letter, size in zip(letters, size_of(node), strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return sizes


def _spread(letters: str, spot: Spot, names: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """The units of one operand over the named axes; what is shared by several rows is repeated."""
    units, mine = spot.units, [letters[axis] for axis in spot.axes]
    for i in reversed([i for i, letter in enumerate(mine) if letter not in names]):
        units, mine = units.take(0, i), [letter for letter in mine if letter != mine[i]]
    order = [name for name in names if name in mine]
    units = units.transpose([mine.index(name) for name in order])
    for i, name in enumerate(order):
        size = shape[names.index(name)]
        units = np.repeat(units, size // units.shape[i], i)
    return units.reshape([shape[i] if name in mine else 1 for i, name in enumerate(names)])
