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
from prunus.surgery.difference import relative_error
from prunus.surgery.locate import first_difference, place_of
from prunus.surgery.masks import Masks, kept_values
from prunus.surgery.memory import free_bytes
from prunus.surgery.precision import OnePrecision, at_precision, copy_at_precision, exact_arithmetic
from prunus.surgery.random_inputs import random_inputs
from prunus.surgery.reference import Interpreter

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
    check = _Check(captured, Masks(tracks, keep), small_module, small_captured, tolerance)
    if dtype is not None:
        return check.run(dtype, "")
    reason = _why_not_float64(captured, small_module)
    if not reason:
        try:
            return check.run(torch.float64, "")
        except _Float64Error as error:
            reason = str(error)
    return check.run(torch.float32, reason)


class _Float64Error(Exception):
    """This network cannot be run, or only partly, in float64."""


@dataclass
class _Check:
    captured: Captured
    masks: Masks
    small_module: nn.Module
    small_captured: Captured | None
    tolerance: float | None

    def run(self, dtype: torch.dtype, reason: str) -> Verification:
        tolerance = TOLERANCE[dtype] if self.tolerance is None else self.tolerance
        worst, checked, remarks = 0.0, 0, []
        for kind, inputs in (
            ("example", self.captured.run_inputs),
            ("random", random_inputs(self.captured, _SEED)),
        ):
            case = _Case(self, kind, inputs, dtype, tolerance)
            error = case.error()
            remarks.extend(case.remarks)
            if error is not None:
                worst, checked = max(worst, error), checked + 1
        name = _name(dtype)
        return Verification(
            max_relative_error=worst,
            tolerance=tolerance,
            dtype=f"{name} ({reason})" if reason else name,
            inputs_checked=checked,
            passed=True,
            remarks=tuple(remarks),
        )


class _Case:
    """Both networks on one input."""

    def __init__(
        self, check: _Check, kind: str, inputs: Inputs, dtype: torch.dtype, tolerance: float
    ) -> None:
        self.check, self.kind, self.inputs = check, kind, inputs
        self.dtype, self.tolerance = dtype, tolerance
        self.remarks: list[str] = []
        self.stayed: str | None = None

    def error(self) -> float | None:
        """The largest relative error; None when there is nothing to compare on this input."""
        expected = self._expected(self.check.masks)
        actual = self._actual()
        if len(actual) != len(expected):
            raise self._mismatch(f"it returns {len(actual)} values instead of {len(expected)}")
        nodes = list(self.check.captured.graph.output_node().args[0])  # type: ignore[arg-type]
        rows = zip(actual, nodes, expected, strict=True)
        pairs = [self._pair(name, node, wanted, got) for (name, got), node, wanted in rows]
        tensors = [pair for pair in pairs if pair is not None]
        if any(bool(wanted.isnan().any()) for _, wanted, _ in tensors) and not self._nan_is_original(tensors):
            return None
        worst = 0.0
        for name, wanted, got in tensors:
            error = relative_error(wanted, got)
            if error > self.tolerance:
                shape = tuple(wanted.shape)
                raise self._mismatch(
                    f"{name} {shape} has a relative error of {error:.3g} (tolerance {self.tolerance:g})"
                )
            worst = max(worst, error)
        return worst

    def _pair(self, name: str, node: Any, expected: Any, actual: Any) -> tuple[str, Tensor, Tensor] | None:
        if not isinstance(expected, Tensor):
            if isinstance(actual, Tensor) or actual != expected:
                raise self._mismatch(f"{name} is {actual!r:.80} instead of {expected!r:.80}")
            return None
        if not isinstance(actual, Tensor):
            raise self._mismatch(f"{name} is a {type(actual).__name__} instead of a tensor")
        mask = self.check.masks.of(node.name)
        kept = kept_values(expected, mask, tuple(actual.shape))
        if kept is None:
            raise self._mismatch(
                f"{name} has shape {tuple(actual.shape)}; the original's is {tuple(expected.shape)}"
            )
        return name, kept, actual

    def _expected(self, masks: Masks | None) -> list[Any]:
        interpreter = Interpreter(self.check.captured, self.inputs, self.dtype, masks)
        with exact_arithmetic(self._devices(), _SEED):
            try:
                for _ in interpreter.steps():
                    pass
            except (RuntimeError, TypeError) as error:
                if self.dtype == torch.float64:
                    raise _Float64Error(f"the original does not run in float64: {_brief(error)}") from error
                raise
        return interpreter.outputs

    def _actual(self) -> list[tuple[str, Any]]:
        # fresh copies of both: a forward may write to its inputs, and to what the module remembers
        small = copy_at_precision(self.check.small_module, self.dtype)
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda x: at_precision(x, self.dtype).clone(), (self.inputs.args, self.inputs.kwargs)
        )
        mode = OnePrecision(self.dtype)
        with exact_arithmetic(self._devices(), _SEED):
            try:
                with mode:
                    result = small(*args, **kwargs)
            except Exception as error:
                if self.dtype == torch.float64:
                    raise _Float64Error(
                        f"the cut network does not run in float64: {_brief(error)}"
                    ) from error
                raise self._mismatch(f"it fails with {type(error).__name__}: {error}") from error
        self.stayed = mode.stayed
        return _named_leaves(result)

    def _devices(self) -> list[torch.device]:
        leaves = pytree.tree_leaves((self.inputs.args, self.inputs.kwargs))
        tensors = [*self.check.captured.tensors.values(), *(x for x in leaves if isinstance(x, Tensor))]
        return list({tensor.device for tensor in tensors})

    def _nan_is_original(self, tensors: list[tuple[str, Tensor, Tensor]]) -> bool:
        """Is NaN where the original, unmasked, yields NaN too? False: this input can tell nothing."""
        original = [x for x in self._expected(None) if isinstance(x, Tensor)]
        if not any(bool(x.isnan().any()) for x in original):
            raise self._mismatch(
                "the original yields no NaN, but what is left of it does once the rest is masked"
            )
        floating = [wanted for _, wanted, _ in tensors if wanted.is_floating_point() or wanted.is_complex()]
        if all(bool(wanted.isnan().all()) for wanted in floating):
            text = f"The original model itself yields only NaN on the {self.kind} inputs"
            if self.kind == "example":
                raise VerificationError(
                    f"{text}, so it cannot be checked that the cut network computes the same. Look for "
                    "broken weights or inputs out of range, and pass example inputs that give numbers."
                )
            self.remarks.append(f"{text}: these were not compared.")
            return False
        self.remarks.append(f"The original model itself yields NaN in places on the {self.kind} inputs.")
        return True

    def _mismatch(self, what: str) -> Exception:
        if self.stayed and self.dtype == torch.float64:
            return _Float64Error(f"{self.stayed} computes at a lower precision inside the cut network")
        check = self.check
        where = ""
        if check.small_captured is not None:
            with exact_arithmetic(self._devices(), _SEED):
                where = " " + first_difference(
                    check.captured, check.masks, check.small_captured, self.inputs, self.dtype, self.tolerance
                )
        where += _random_draws(check.captured)
        return VerificationError(
            f"The cut network does not compute what it should: on the {self.kind} inputs, in "
            f"{_name(self.dtype)}, {what}.{where} Nothing is handed back. This is a defect of prunus: please "
            "report it with the model. Until it is mended, leave the layer named here out of what is pruned."
        )


def _random_draws(captured: Captured) -> str:
    for node in captured.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and "dropout" not in str(node.target):
            return f" The model draws random numbers at {place_of(node)}, which may explain it."
    return ""


def _named_leaves(result: Any) -> list[tuple[str, Any]]:
    """Leaves of what a model returns, each with where it is in it, such as ``output['logits']``."""
    try:
        leaves, _ = pytree.tree_flatten_with_path(result)
    except ValueError:  # a type that was registered without names
        return [(f"output {index}", leaf) for index, leaf in enumerate(pytree.tree_leaves(result))]
    return [(f"output{pytree.keystr(path)}", leaf) for path, leaf in leaves]


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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:200]}"
