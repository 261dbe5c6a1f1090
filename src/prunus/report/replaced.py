"""The part of a report that is about layers which were replaced by chains of smaller ones."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REPLACED_HEAD", "ReplacedLayer", "replaced_cells", "replaced_line"]

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
        refused: it was left alone because that would not have paid.
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
    refused: bool = False


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
    refused = sum(layer.refused for layer in layers)
    return f"{done} of {len(layers)} layers replaced; {refused} refused because that would not have paid."
