"""The user's own choice of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prunus.criteria.base import register
from prunus.errors import ConfigError


@register("index")
@dataclass(frozen=True)
class ByIndex:
    """Keep, or remove, exactly the indices listed per layer or group. No target is needed.

    Attributes:
        keep: layer path or group name -> indices to keep.
        remove: layer path or group name -> indices to remove. A name is in one of the two, not in both.

    A layer's indices count its output channels; a group's indices count its units. A name that is both means the group: its
    units may stand for several channels each (`print(structure)` shows how many there are). What is coupled with a listed
    layer follows it; everything else is left as it is.

    Example:
        >>> from prunus import ByIndex
        >>> ByIndex(remove={"layer1.0.conv1": [0, 3]}).remove
        {'layer1.0.conv1': [0, 3]}
    """

    keep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    remove: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = set(self.keep) & set(self.remove)
        if both:
            raise ConfigError(f"{', '.join(sorted(both))}: give indices to keep or to remove, not both")
        if not self.keep and not self.remove:
            raise ConfigError("ByIndex needs indices: ByIndex(remove={'layer1.0.conv1': [0, 3]})")
