"""Check that the cut network computes what the original does with everything else masked."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.errors import VerificationError
from prunus.inputs import Inputs
from prunus.surgery.case import Case, Float64Error, Subject
from prunus.surgery.masks import Masks
from prunus.surgery.memory import free_bytes
from prunus.surgery.other_sizes import other_sizes
from prunus.surgery.random_inputs import random_inputs, side_by_side

__all__ = ["Verification", "compare", "random_inputs"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_SEED = 0


@dataclass(frozen=True)
class Verification:
    """What was checked, and how well it agrees.

    Attributes:
        max_relative_error: Largest difference of any output, relative to that output's largest magnitude.
        tolerance: Largest such error that passes.
        dtype: Precision of the check, and why it is no better when it is not float64.
        inputs_checked: Number of inputs that were run.
        passed: Whether the error is within the tolerance.
        remarks: What else there is to know.
    """

    max_relative_error: float
    tolerance: float
    dtype: str
    inputs_checked: int
    passed: bool
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {**dataclasses.asdict(self), "remarks": list(self.remarks)}


def compare(
    captured: Captured,
    tracks: dict[str, Any],
    keep: Tensor,
    small_module: nn.Module,
    small_captured: Captured | None = None,
    *,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
) -> Verification:
    """Run the cut network and the masked original on the example and random inputs, and compare all outputs.

    Args:
        captured: The original network.
        tracks: Node name -> its label tensors, for inputs of the shapes of ``captured.run_inputs``.
        keep: One boolean for each label: does what carries it stay.
        small_module: The cut network; it is left as it is.
        small_captured: Its graph, nodes named as in the original, for saying where a mismatch begins.
        dtype: ``torch.float64`` or ``torch.float32``; without it float64, or float32 where memory is short or
            the cut network cannot run in float64.
        tolerance: Largest relative error that passes; without it 1e-9 in float64 and 1e-4 in float32.

    Raises:
        VerificationError: If an output differs, naming the first node that does; or if the original yields
            only NaN, so that nothing can be checked.
    """
    subject = Subject(captured, Masks(tracks, keep), small_module, small_captured)
    if dtype is None:
        reason = _why_not_float64(captured, small_module)
        if not reason:
            try:
                return _check(subject, torch.float64, "", tolerance)
            except Float64Error as error:
                reason = str(error)
        return _check(subject, torch.float32, reason, tolerance)
    try:
        return _check(subject, dtype, "", tolerance)
    except Float64Error as error:
        raise VerificationError(
            f"Cannot verify in float64, as was asked: {error}. Leave dtype out."
        ) from error


def _check(subject: Subject, dtype: torch.dtype, reason: str, tolerance: float | None) -> Verification:
    limit = TOLERANCE[dtype] if tolerance is None else tolerance
    name = str(dtype).removeprefix("torch.")
    errors, remarks = _errors(subject, dtype, limit)
    return Verification(
        max_relative_error=max([*errors, *_elsewhere(subject, dtype, limit)], default=0.0),
        tolerance=limit,
        dtype=f"{name} ({reason})" if reason else name,
        inputs_checked=len(errors),
        passed=True,
        remarks=tuple(remarks),
    )


def _errors(subject: Subject, dtype: torch.dtype, limit: float) -> tuple[list[float], list[str]]:
    """The error on each input, and what there is to remark.

    Both inputs go through the networks at once where the example is a batch of one, repeated; one by one where that leaves
    a question open.
    """
    example, noise = subject.captured.run_inputs, random_inputs(subject.captured, _SEED)
    both = side_by_side(subject.captured, noise)
    if both is not None:
        case = Case(subject, "example and random", both, dtype, limit, pair=True)
        error = case.error()
        if error is not None and not case.remarks and not case.rows_agree() and not subject.captured.others:
            return [error, error], []
    cases = [Case(subject, "example", example, dtype, limit)]
    if not _same(noise, example):  # they are where there is nothing but integers
        cases.append(Case(subject, "random", noise, dtype, limit))
    errors = [error for case in cases if (error := case.error()) is not None]
    if len(errors) == 2 and cases[0].agrees_with(cases[1]):
        cases[1].look_inside()
    further = [Case(subject, "another example", other, dtype, limit) for other in subject.captured.others]
    errors += [error for case in further if (error := case.error()) is not None]
    return errors, [remark for case in cases for remark in case.remarks]


# layers of torch refuse to normalize single values, the operators in them do not; with fewer channels to a group there may be one
_ONE_VALUE = "Expected more than 1 value per channel"


def _elsewhere(subject: Subject, dtype: torch.dtype, limit: float) -> list[float]:
    """The error on smaller inputs, where sizes are free and the original takes them."""
    small = subject.small_captured
    captured = subject.captured if small is None else subject.captured.with_(shapes=small.shapes)
    for inputs in other_sizes(captured, random_inputs(captured, _SEED + 1)):
        case = Case(subject, "differently sized", inputs, dtype, limit)
        if case.original_runs():
            try:
                error = case.error()
            except VerificationError as failed:
                if _ONE_VALUE in str(failed.__cause__):
                    continue
                raise
            return [] if error is None else [error]
    return []


def _same(one: Inputs, other: Inputs) -> bool:
    leaves = zip(
        pytree.tree_leaves((one.args, one.kwargs)),
        pytree.tree_leaves((other.args, other.kwargs)),
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in leaves if isinstance(a, Tensor))


def _why_not_float64(captured: Captured, small: nn.Module) -> str:
    tensors = [*captured.tensors.values(), *small.parameters(), *small.buffers()]
    for device in {tensor.device for tensor in tensors}:
        if device.type == "mps":
            return "mps has no float64"
        needed = 2 * sum(t.numel() * t.element_size() for t in tensors if t.device == device)
        free = free_bytes(device)
        if free is not None and needed > free / 4:
            free_gib = free / 2**30
            return (
                f"float64 would need more than a quarter of the {free_gib:.1f} GiB that are free on {device}"
            )
    return ""
