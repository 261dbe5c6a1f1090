"""What a criterion asks of calibration data: where to look, and which sums to take there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Where = Literal["made", "used", "read", "product"]


@dataclass(frozen=True)
class Need:
    """Sums over the calibration data, taken wherever the channels of a group lie.

    Attributes:
        key: names the sums in what is saved; equal keys are equal sums.
        where: at which values of the network:

            - `"made"`: what each layer that makes the channels puts out, before normalization and activation;
            - `"used"`: what the layers that read the channels see, after activation; before what only flattens or averages maps;
            - `"read"`: exactly what each layer that reads them sees;
            - `"product"`: both operands of a product of two activations in which the channels disappear (queries and keys).
        measure: for `"made"`, `"used"` and `"read"`: takes activations of shape (positions, samples, *map) and returns
            (positions, ...) sums over the samples. For `"product"`: takes the two operands as (samples, rows, n, columns) and
            (samples, rows, m, columns), and (rows, columns) numbers of units, -1 for none; returns (units, ...) sums, the
            units up to the greatest number.
        gradients: `measure` takes activations times the gradient of the loss instead, and returns (positions, samples) sums,
            which are added over all places of a group.
        probe: with `"read"`: `measure` takes, in place of the activations, the gradient of a random projection of the network's
            outputs through this reader alone. No labels are needed: the mean square of that gradient is how much noise in
            an activation changes the outputs (J. M. Hutchinson's estimator of the squared Jacobian). Taken on the first
            samples only.
        weighted: with `probe`: `measure` takes the activations and that gradient, in this order.
        with_rows: only for groups whose rows lose equally many, such as the channels of heads.
        by_position: with `"read"`: `measure` gets all positions that the reader tells apart, in the order of their units, and the
            sums of a unit are kept apart by position: (units, positions of each, ...). Where units have unlike numbers of
            positions, or there are thousands of these, they are summed by unit as without it, as where each has one.
        finish: with `gradients`: turns (units, samples) into (units, ...) sums over the samples.
    """

    key: str
    where: Where
    measure: Callable[..., Tensor]
    gradients: bool = False
    probe: bool = False
    weighted: bool = False
    with_rows: bool = False
    by_position: bool = False
    finish: Callable[[Tensor], Tensor] | None = None
