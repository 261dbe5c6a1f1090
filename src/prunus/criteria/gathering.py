"""Get the evidence that a criterion needs, or say what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prunus.capture import architecture_hash
from prunus.errors import ConfigError
from prunus.evidence import Evidence, Need, Progress, collect, wanted
from prunus.structure import Group, Structure

__all__ = ["gather", "needs_of", "require_data"]


def needs_of(criterion: Any) -> tuple[Need, ...]:
    """What a criterion asks of calibration data; nothing for most.

    Raises:
        ConfigError: `needs` is no tuple of `Need`.
    """
    needs = getattr(criterion, "needs", ())
    if not isinstance(needs, tuple | list) or not all(isinstance(need, Need) for need in needs):
        raise ConfigError(
            f"{type(criterion).__name__}.needs must be a tuple of prunus.evidence.Need, got {needs!r}"
        )
    return tuple(needs)


def gather(
    structure: Structure,
    criterion: Any,
    groups: Sequence[Group],
    data: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Evidence | None, set[str]]:
    """Evidence for these groups, and the names of those whose units disappear in a product, if the criterion asks for these.

    Data that the criterion does not need is left alone.

    Raises:
        ConfigError: data or a loss is missing, or does not fit.
    """
    needs = needs_of(criterion)
    sums = require_data(structure, criterion, groups, data)
    products = {need.key for need in needs if need.where == "product"}
    multiplied = {group for key, group in sums if key in products}
    if not sums or isinstance(data, Evidence):
        return data if sums else None, multiplied
    return collect(structure, needs, data, groups=groups, loss=loss, progress=progress), multiplied


def require_data(
    structure: Structure, criterion: Any, groups: Sequence[Group], data: Any
) -> set[tuple[str, str]]:
    """(key, group) of all sums that a criterion asks for these groups; there are data where there are any.

    Raises:
        ConfigError: data is missing, or evidence that does not fit.
    """
    needs = needs_of(criterion)
    sums = wanted(structure, needs, groups)
    if not sums:
        return sums
    name = getattr(criterion, "name", type(criterion).__name__)
    if data is None:
        count = len({group for _, group in sums})
        labels = " that carry labels, or loss= as well" if any(need.gradients for need in needs) else ""
        raise ConfigError(
            f"{name} needs data to score {count} of {len(groups)} groups: pass data=, an iterable of batches like the example "
            f"inputs{labels}; or use a method that looks at weights alone, such as 'l2'"
        )
    if not isinstance(data, Evidence):
        return sums
    if data.architecture != architecture_hash(structure.captured):
        raise ConfigError("this evidence was collected on another architecture: collect it again")
    missing = sorted({key for key, group in sums if not data.has(key, group)})
    if missing:
        raise ConfigError(
            f"this evidence lacks what {name} needs ({', '.join(missing)}): collect it with needs={name}.needs for all groups"
        )
    return sums
