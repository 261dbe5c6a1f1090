"""What is kept, as a fraction of the original, in the unit that the user means."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from prunus.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """How much is kept: exactly one fraction in (0, 1] of the original.

    Attributes:
        channels: of the channels of every group, the same fraction everywhere.
        params: of the model's parameters.
        macs: of its multiply-accumulates.
        size_bytes: of the bytes of parameters and buffers.

    Raises:
        ConfigError: none or several given, or not in (0, 1].
    """

    channels: float | None = None
    params: float | None = None
    macs: float | None = None
    size_bytes: float | None = None

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ConfigError(f"a target needs exactly one of channels, params, macs, size_bytes; got {said}")
        value = getattr(self, given[0])
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or not 0 < value <= 1
        ):
            raise ConfigError(
                f"Target({given[0]}={value!r}): say what is kept, a fraction above 0 and up to 1 (0.5 keeps half)"
            )

    @property
    def unit(self) -> str:
        """The one that is given."""
        return next(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def fraction(self) -> float:
        """Its value."""
        return float(getattr(self, self.unit))

    def to_dict(self) -> dict[str, float]:
        return {self.unit: self.fraction}

    def __str__(self) -> str:
        return f"{self.unit}={self.fraction:g}"
