"""One need at one place, and what removing units would change in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunus.evidence.arrange import Arrangement, Blocks
from prunus.evidence.needs import Need
from prunus.evidence.places import Place
from prunus.evidence.products import Operands

__all__ = ["Effects", "Job", "by_unit"]


@dataclass(frozen=True, eq=False)
class Job:
    """One need at one place."""

    need: Need
    place: Place
    arranged: Arrangement | Operands | Blocks


def by_unit(found: Tensor, units: Tensor, size: int) -> Tensor:
    """(positions, ...) added up by unit: (size, ...)."""
    found = found.double()
    return found.new_zeros(size, *found.shape[1:]).index_add_(0, units.to(found.device), found)


class Effects:
    """What removing units would change in the loss, to first order, read after read."""

    def __init__(
        self, jobs: dict[tuple[fx.Node, fx.Node], list[Job]], sizes: dict[str, int], samples: int
    ) -> None:
        self._jobs, self._sizes, self._samples = jobs, sizes, samples
        self._found: dict[tuple[str, str], list[Tensor]] = {}

    def replace(self, reader: fx.Node, operand: fx.Node, value: Any) -> Any:
        """The same value, whose gradient is that through this reader alone."""
        jobs = self._jobs.get((reader, operand))
        if jobs is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        alias = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        given = value.detach()

        def hook(gradient: Tensor) -> None:
            with torch.no_grad():
                for job in jobs:
                    assert isinstance(job.arranged, Arrangement)
                    found = job.need.measure(job.arranged(given * gradient * self._samples))
                    size = self._sizes[job.place.group]
                    found_by_unit = by_unit(found, job.arranged.units, size)
                    self._found.setdefault((job.need.key, job.place.group), []).append(
                        self._of_samples(found_by_unit)
                    )

        alias.register_hook(hook)
        return alias

    def _of_samples(self, found: Tensor) -> Tensor:
        """(units, samples), where samples were laid out as several each, such as windows."""
        if found.shape[1] != self._samples and found.shape[1] % self._samples == 0:
            return found.reshape(len(found), self._samples, -1).sum(2)
        return found

    def totals(self) -> dict[tuple[str, str], Tensor]:
        """(key, group) -> (units, samples); one column where not all of its reads know samples."""
        totals = {}
        for place, parts in self._found.items():
            if any(part.shape[1] != parts[0].shape[1] for part in parts):
                parts = [part.sum(1, keepdim=True) for part in parts]
            totals[place] = torch.stack(parts).sum(0)
        return totals
