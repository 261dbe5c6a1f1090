"""The part of a report that is about layers which were replaced by chains of smaller ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus.report.data import Report

__all__ = ["REPLACED_HEAD", "ReplacedLayer", "joined", "replaced_cells", "replaced_line"]

REPLACED_HEAD = ("layer", "method", "ranks", "params kept", "MACs kept", "predicted", "measured", "note")


@dataclass(frozen=True)
class ReplacedLayer:
    """One layer that could have been replaced.

    Attributes:
        path: of the module.
        kind: of layer.
        shape: of its weight.
        method, ranks: how it was factored; empty if it was left alone.
        params_before, params_after: number of parameters.
        macs_before, macs_after: multiply-accumulates for one sample.
        predicted_error, measured_error: root of the mean squared error at the layer's output, relative to the output's spread about
            its mean: by the moments of the data (of the weight, without data), and as found on the data (on the example inputs).
        reason: why it was left alone, or None.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    method: str
    ranks: tuple[int, ...]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    predicted_error: float | None
    measured_error: float | None
    reason: str | None


def replaced_cells(layer: ReplacedLayer) -> tuple[str, ...]:
    """A layer as text."""
    if layer.reason is not None:
        return (layer.path, "", "", "", "", "", "", f"left alone: {layer.reason}")
    return (
        layer.path,
        layer.method,
        " ".join(map(str, layer.ranks)),
        f"{layer.params_after / layer.params_before:.1%}",
        f"{layer.macs_after / layer.macs_before:.1%}" if layer.macs_before else "",
        _error(layer.predicted_error),
        _error(layer.measured_error),
        "",
    )


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.2%}"


def replaced_line(layers: tuple[ReplacedLayer, ...]) -> str:
    """How many layers were replaced, and how many not as it would not have paid."""
    done = sum(layer.reason is None for layer in layers)
    refused = sum("pay" in (layer.reason or "") or "no faster" in (layer.reason or "") for layer in layers)
    return f"{done} of {len(layers)} layers replaced; {refused} refused because that would not have paid."


def joined(first: Report, second: Report) -> Report:
    """One report for two things that were done one after the other."""
    import dataclasses

    said = [f"{_did(first)}, then {_did(second)}"] if first.method or second.method else []
    changes: dict[str, Any] = {
        "before": first.before,
        "groups": first.groups or second.groups,
        "layers": first.layers or second.layers,
        "replaced": (*first.replaced, *second.replaced),
        "recovery": first.recovery or second.recovery,
        "notes": (*dict.fromkeys((*said, *first.notes, *second.notes)),),
        "unknown_operators": {**first.unknown_operators, **second.unknown_operators},
    }
    if second.form == "class":
        changes |= {"form": first.form, "form_reason": first.form_reason}
    if first.verification and second.verification:
        worse = max(first.verification, second.verification, key=_share)
        changes["verification"] = {**worse, "remarks": [*first.verification["remarks"], *second.verification["remarks"]]}  # fmt: skip
    return dataclasses.replace(second, **changes)


def _share(verification: dict[str, Any]) -> float:
    return verification["max_relative_error"] / verification["tolerance"]


def _did(report: Report) -> str:
    what = "decomposed" if report.replaced else "pruned"
    target = ", ".join(f"{unit}={fraction:g}" for unit, fraction in report.target.items())
    return f"{what} by {report.method or 'hand'}" + (f" to {target}" if target else "")
