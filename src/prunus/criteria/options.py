"""What happens to scores on their way to a choice, and to the numbers that are chosen."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from prunus.criteria.normalize import NORMALIZERS
from prunus.errors import ConfigError

POLICIES = ("backward", "average", "sum")
GROUP_POLICIES = ("none", "average", "sum", "count")
STEP_OPS = ("round", "round_up", "round_down", "none")
CHANNEL_AXES = (0, 1, -1, -2)


@dataclass(frozen=True)
class Options:
    r"""How scores are normalized and combined, and how numbers of channels are rounded. The defaults suit most networks.

    They act in this order: every layer is scored; its scores are normalized (`layer_norm`); those of coupled layers are
    combined (`policy`); those of rows, such as heads or convolution groups, are combined (`group_policy`); the allocation
    decides how many channels stay; and these numbers are rounded (`step_size`, `step_op`).

    Attributes:
        layer_norm: how the scores $m$ of one layer are made comparable with those of others: `"mean"`
            $m / \mathrm{mean}\lvert m \rvert$, `"standard_score"` $(m - \mathrm{mean}\, m) / \mathrm{std}\, m$, `"tss_norm"`
            $m / \sum m$, `"linear_scaling"` $(m - \min m)/(\max m - \min m)$, `"softmax_norm"` $e^m / \sum e^m$, or `"none"`.
        policy: how layers that make the same channels count: `"backward"` scores what they add up to, the group as a whole,
            once; `"average"` and `"sum"` score each of them alone, and combine the normalized scores.
        group_policy: in groups whose rows must lose equally many: `"none"` lets each row lose its own indices; `"average"`
            and `"sum"` combine the scores of an index over the rows, so that the same indices leave every row; `"count"` lets
            each row choose alone under the ranking of the whole model, and takes from all the least number so chosen.
        step_size: the number of channels that stay is a multiple of this (or all stay). As `multiple_of`; give one of them.
        step_op: `"round"` to the nearest multiple, `"round_up"`, `"round_down"`, or `"none"` to leave `step_size` out. None:
            to the nearest where every group keeps the same share, up where a ranking decides. A target is met in any case.
        reverse: remove what scores highest. For comparison only.
        reshape_channel_axis: where a reshape splits channels into rows and columns, as into heads and their channels, which of
            the two becomes fewer: -1 or 1 the channels of every head, -2 or 0 the heads.

    Raises:
        ConfigError: an unknown value; all problems at once.

    Example:
        >>> from prunus import Options
        >>> Options(layer_norm="tss_norm", policy="average").step_size
        1
    """

    layer_norm: str = "mean"
    policy: str = "backward"
    group_policy: str = "none"
    step_size: int = 1
    step_op: str | None = None
    reverse: bool = False
    reshape_channel_axis: int = -1

    def __post_init__(self) -> None:
        known = {
            "layer_norm": tuple(NORMALIZERS),
            "policy": POLICIES,
            "group_policy": GROUP_POLICIES,
            "step_op": (*STEP_OPS, None),
            "reverse": (False, True),
            "reshape_channel_axis": CHANNEL_AXES,
        }
        problems = [
            f"{name}={getattr(self, name)!r} is none of {', '.join(map(str, values))}"
            for name, values in known.items()
            if type(getattr(self, name)) not in map(type, values) or getattr(self, name) not in values
        ]
        step = self.step_size
        if not isinstance(step, int) or isinstance(step, bool) or step < 1:
            problems.append(f"step_size must be a whole number of at least 1, got {step!r}")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def step(self) -> int:
        """The multiple that counts: `step_size`, or 1 where nothing is rounded."""
        return 1 if self.step_op == "none" else self.step_size

    @property
    def whole_rows(self) -> bool:
        """Whether whole rows (heads) leave instead of channels of every row."""
        return self.reshape_channel_axis in (0, -2)

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
