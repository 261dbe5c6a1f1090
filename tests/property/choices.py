"""How a random network is chosen: by hypothesis in tests, by a seed for replaying one case by hand."""

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from hypothesis import strategies as st

T = TypeVar("T")


class Pick(Protocol):
    """What the builders of networks and plans ask for."""

    def integer(self, low: int, high: int) -> int: ...

    def one_of(self, options: Sequence[T]) -> T: ...

    def subset(self, size: int, kept: int) -> np.ndarray: ...


class Drawn:
    """Choices drawn by hypothesis, which shrinks them to the first option and the lower bound."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def one_of(self, options: Sequence[T]) -> T:
        return self._draw(st.sampled_from(options))

    def subset(self, size: int, kept: int) -> np.ndarray:
        # one number for the whole subset: which indices they are hardly matters to shrinking
        seed = self._draw(st.integers(0, 2**16))
        return _subset(np.random.default_rng(seed), size, kept)


class Seeded:
    """The same from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def one_of(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def subset(self, size: int, kept: int) -> np.ndarray:
        return _subset(np.random.default_rng(self._random.randint(0, 2**16)), size, kept)


def _subset(rng: np.random.Generator, size: int, kept: int) -> np.ndarray:
    return np.sort(rng.permutation(size)[:kept])
