"""What every step hands back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from prunus.artefact import save
from prunus.capture import Captured
from prunus.plan import Plan
from prunus.report import Report
from prunus.report.joined import joined
from prunus.structure import Structure

__all__ = ["Result", "after"]


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed model and how it came about.

    Attributes:
        model: an ordinary module, ready to run, train and export.
        plan: what was kept; `prunus.apply(fresh_model, plan)` does the same again.
        report: every layer and group before and after, totals, verification. Printing it gives a table.
        captured: the small model's graph.
        structure: the original's structure; None where it was not needed, as in a decomposition.
    """

    model: nn.Module
    plan: Plan
    report: Report
    captured: Captured = field(repr=False)
    structure: Structure | None = field(repr=False)

    def save(self, directory: str | Path, *, overwrite: bool = False, onnx: bool = False) -> Path:
        """Write plan.json, model.safetensors, model.pt2, report.json (and model.onnx): all of it or nothing.

        Raises:
            ArtefactError: the folder exists and `overwrite` is not set, or it cannot be written.
        """
        return save(self, directory, overwrite=overwrite, onnx=onnx)


def after(first: Result, second: Result) -> Result:
    """Two results, one made from the other's model, as one."""
    plan = first.plan.followed_by(second.plan)
    return dataclasses.replace(
        second, plan=plan, report=joined(first.report, second.report), structure=first.structure
    )
