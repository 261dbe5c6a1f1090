"""What can be asked of a recovery, and what it says it has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunus.errors import ConfigError

__all__ = ["STEPS", "Recovery", "Repair", "checked_steps"]

STEPS = ("compensate", "batch_norm")


@dataclass(frozen=True)
class Repair:
    """What was done to one layer.

    Attributes:
        layer: path of the layer.
        step: `"compensate"`, `"heads"` and `"logits"` (parts of it, for attention) or `"batch_norm"`.
        before, after: mean square by which its outputs differ from the original's on held-out inputs, divided by their variance;
            for `"logits"`, of the attention's logits; for `"heads"`, the share that is lost of what the network's outputs depend
            on, by the channels that were chosen and by mixtures of all.
        ridge: regularization that the held-out inputs asked for, relative to the mean square of an input; None where it
            has no meaning.
    """

    layer: str
    step: str
    before: float
    after: float
    ridge: float | None = None


@dataclass(frozen=True)
class Recovery:
    """What recovery has done.

    Attributes:
        steps: what was asked for.
        samples: how many were used.
        seconds: time spent.
        repairs: the layers that were changed, in the order of the network.
        left: layers that were looked at and left, as nothing helped on held-out inputs, or with the reason.
        biases: paths of layers that were given a bias, as they had none.
        disk_bytes: estimate of what was kept in files meanwhile, as it would not have fitted into memory.
    """

    steps: tuple[str, ...]
    samples: int
    seconds: float
    repairs: tuple[Repair, ...]
    left: tuple[str, ...]
    biases: tuple[str, ...] = ()
    disk_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


def checked_steps(recover: bool | str | Sequence[str]) -> tuple[str, ...]:
    """The steps that an argument `recover` means.

    Raises:
        ConfigError: one that there is not; lists those that there are.
    """
    if recover is True or recover is False:
        return STEPS if recover else ()
    if not isinstance(recover, str | list | tuple | set | frozenset):
        raise ConfigError(f"recover={recover!r}: say True, False, or steps out of {', '.join(STEPS)}")
    named = (recover,) if isinstance(recover, str) else tuple(recover)
    unknown = [step for step in named if step not in STEPS]
    if unknown:
        raise ConfigError(
            f"recover has no step {unknown[0]!r}; known: {', '.join(STEPS)}, or True for all, False for none"
        )
    return tuple(step for step in STEPS if step in named)
