"""What a criterion is: numbers about a group in, one score per unit out. Criteria never see operators."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from prunus.errors import ConfigError


@dataclass(frozen=True, eq=False)
class MemberView:
    """One parameter of a group, as a criterion sees it.

    Attributes:
        parameter: qualified name in the user's model.
        axis: the axis along which the group's units lie.
        produces: the parameter makes the group's channels (rather than consuming or scaling them).
        weight: (units, elements) all that belongs to each unit, batch normalization folded in where one follows.
        norm_scale: (units, positions) weight of the batch normalization right behind the layer, None where there is none.
    """

    parameter: str
    axis: int
    produces: bool
    weight: Tensor
    norm_scale: Tensor | None = None

    def power_sum(self, power: int) -> Tensor:
        """(units,) float32 sums of the absolute weights of each unit, raised to a power of 1 or 2."""
        weight = self.weight.float()
        return (weight.abs() if power == 1 else weight.square()).sum(1)


@dataclass(frozen=True, eq=False)
class GroupView:
    """A group as a criterion sees it.

    Attributes:
        name: the group's name.
        size: number of units.
        members: weights of two or more dimensions that the group occupies.
        seed: a number that differs between groups and is the same in every run.
        evidence: what calibration data says, for criteria with `needs`: key -> layer -> (units, ...) sums per sample.
        multiplied: the units disappear in a product of two activations, as pairs of queries and keys do.
        samples: how many the evidence is of.
        mixable: (rows, units per row) where what stays of each row may be mixtures of all of it, for criteria with `mixes`.
    """

    name: str
    size: int
    members: tuple[MemberView, ...]
    seed: int = 0
    evidence: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    multiplied: bool = False
    samples: int = 0
    mixable: np.ndarray | None = None

    def seen(self, key: str, *, required: bool = True) -> dict[str, Tensor]:
        """Layer -> (units, ...) sums per sample, of one of the criterion's needs.

        Raises:
            ConfigError: there are none, and they are required.
        """
        found = dict(self.evidence.get(key, {}))
        if not found and required:
            raise ConfigError(
                f"{key.partition(':')[0]} has seen no data for group {self.name!r}: pass data=, an iterable of batches like the "
                f"example inputs. Where the group's channels are never read, leave it alone with hold={[self.name]!r}."
            )
        return found


@runtime_checkable
class Criterion(Protocol):
    """Scores the units of a group: high = keep.

    Any object with a `score` method will do, and so does a plain callable `(GroupView) -> Tensor`. One that looks at
    calibration data says so with an attribute `needs`, a tuple of `prunus.evidence.Need`.
    """

    name: ClassVar[str]

    def score(self, group: GroupView) -> Tensor:
        """Return one score per unit, (units,)."""
        ...


CRITERIA: dict[str, Callable[[], Criterion]] = {}


def register(name: str) -> Callable[[type], type]:
    """Register a criterion class under the name by which the command line and `method="..."` know it."""
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"a criterion is registered under a name, not {name!r}: @register_criterion('mine')"
        )

    def add(cls: type) -> type:
        if name in CRITERIA:
            raise ConfigError(f"two criteria are called {name!r}")
        cls.name = name
        CRITERIA[name] = cls
        return cls

    return add


def chosen_from(criterion: object, **known: tuple[object, ...]) -> None:
    """Check options of a criterion.

    Raises:
        ConfigError: values that are none of the known ones; all of them at once.
    """
    problems = [
        f"{name}={getattr(criterion, name)!r} is none of {', '.join(map(repr, values))}"
        for name, values in known.items()
        if getattr(criterion, name) not in values or type(getattr(criterion, name)) not in map(type, values)
    ]
    if problems:
        raise ConfigError(f"{type(criterion).__name__}: " + "; ".join(problems))


def as_criterion(method: object) -> Criterion:
    """A criterion from its registered name, an object with a `score` method, or a plain callable.

    Raises:
        ConfigError: an unknown name, or something that cannot score.
    """
    if isinstance(method, str):
        if method not in CRITERIA:
            near = difflib.get_close_matches(method, CRITERIA, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown method {method!r}.{hint} Known: {', '.join(sorted(CRITERIA))}.")
        return CRITERIA[method]()
    if isinstance(method, type):
        raise ConfigError(f"pass an object, `{method.__name__}()`, not the class {method.__name__}")
    if callable(getattr(method, "score", None)):
        return method  # type: ignore[return-value]
    if callable(method):
        return _Function(method)  # pyright: ignore[reportArgumentType]
    raise ConfigError(
        f"method must be a name, an object with `score(group)`, or a callable; got {type(method).__name__}"
    )


class _Function:
    """A plain callable as a criterion."""

    name: ClassVar[str] = "function"

    def __init__(self, function: Callable[[GroupView], Tensor]) -> None:
        self.function = function

    def score(self, group: GroupView) -> Tensor:
        return self.function(group)
