"""What a way to factor a kernel says about itself."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from prunus.decomposition.geometry import Geometry
from prunus.decomposition.metric import Metric
from prunus.decomposition.steps import Step
from prunus.errors import ConfigError

__all__ = ["METHODS", "Curve", "Method", "as_method", "register"]


@dataclass(frozen=True, eq=False)
class Curve:
    """What is lost at which ranks.

    Attributes:
        ranks: (choices, ranks) whole numbers.
        lost: (choices,) share of the layer's output that is lost, from 0 to 1: squared, relative to the metric's energy.
    """

    ranks: np.ndarray
    lost: np.ndarray


class Method(ABC):
    """A way to write a kernel as a chain of smaller ones; sees numbers and geometries, never a model."""

    name: ClassVar[str]
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)

    @abstractmethod
    def refusal(self, geometry: Geometry) -> str | None:
        """Why a layer of this geometry cannot be factored this way; None if it can."""

    @abstractmethod
    def full(self, geometry: Geometry) -> tuple[int, ...]:
        """The largest rank of each kind that says anything, per group."""

    @abstractmethod
    def layout(self, geometry: Geometry, ranks: tuple[Any, ...]) -> list[Geometry]:
        """The layers of the chain at these ranks, which may be arrays; those of zero inputs are left out."""

    @abstractmethod
    def fit(self, kernel: Tensor, geometry: Geometry, ranks: tuple[int, ...], metric: Metric) -> list[Tensor]:
        """The kernels of the layers of `layout`, those left out included as anything."""

    @abstractmethod
    def curve(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> Curve:
        """What is lost at all ranks that are worth considering."""

    @abstractmethod
    def unfoldings(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> list[Tensor]:
        """For each kind of rank, the matrices (groups, rows, columns) whose rank it is; empty where there are none."""

    def steps(self, kernel: Tensor, geometry: Geometry, ranks: tuple[int, ...], metric: Metric) -> list[Step]:
        """The chain at these ranks."""
        layouts = self.layout(geometry, ranks)
        kernels = self.fit(kernel, geometry, ranks, metric)
        return [
            Step(g, k.reshape(g.groups, g.group_outputs, g.group_inputs, g.taps))
            for g, k in zip(layouts, kernels, strict=True)
            if g.inputs
        ]

    def options(self) -> dict[str, Any]:
        """The fields that differ from the defaults, for a plan."""
        default = type(self)()
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in given.items() if value != getattr(default, name)}


METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Make a method known by its name.

    Raises:
        ConfigError: another has that name.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise ConfigError(f"there is a method {method.name!r} already: {METHODS[method.name].__qualname__}")
    return method


def as_method(given: Any, options: dict[str, Any] | None = None) -> Method:
    """A method itself, or the one of a registered name.

    Raises:
        ConfigError: no such method, or options that it does not have.
    """
    if isinstance(given, Method):
        return given
    if isinstance(given, type) and issubclass(given, Method):
        given = given.name
    if not isinstance(given, str) or given not in METHODS:
        raise ConfigError(f"method {given!r} is none of {', '.join(sorted(METHODS))}")
    try:
        return METHODS[given](**(options or {}))
    except TypeError as error:
        raise ConfigError(f"method {given!r}: {error}") from error
