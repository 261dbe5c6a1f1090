"""Both networks on one input."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.errors import VerificationError
from prunus.inputs import Inputs
from prunus.surgery.difference import relative_error
from prunus.surgery.locate import first_difference
from prunus.surgery.masks import Masks, kept_values
from prunus.surgery.place import place_of
from prunus.surgery.precision import OnePrecision, at_precision, copy_at_precision, exact_arithmetic
from prunus.surgery.reference import Interpreter

__all__ = ["Case", "Float64Error", "Subject"]

_SEED = 0
_NO_NODE = (
    "No node of the cut graph that could be compared differs from the original, so look at how the module "
    "was built from the graph, and at nodes whose sizes say that they were rebuilt."
)


class Float64Error(Exception):
    """This network cannot be run, or only partly, in float64."""


@dataclass(frozen=True)
class Subject:
    """What is checked: the original, what is kept of it, and the cut network, with its graph if known."""

    captured: Captured
    masks: Masks
    small_module: nn.Module
    small_captured: Captured | None


@dataclass
class Case:
    """Both networks on one input.

    Attributes:
        subject: The networks.
        kind: What the inputs are: ``"example"``, ``"random"``, or both of them as one batch.
        inputs: The inputs.
        dtype: Precision of all computation.
        tolerance: Largest relative error that passes.
        pair: Whether the batch is two inputs, each of which is to be judged by its own magnitude.
        remarks: What was noticed on the way.
    """

    subject: Subject
    kind: str
    inputs: Inputs
    dtype: torch.dtype
    tolerance: float
    pair: bool = False
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stayed: str | None = None
        self._wanted: list[Tensor] = []
        self._reference: list[Any] | None = None

    def original_runs(self) -> bool:
        """Whether the masked original takes these inputs: labels along a free axis are those of the example's size."""
        try:
            self._reference = self._expected(self.subject.masks)
        except (Float64Error, VerificationError, RuntimeError, IndexError, ValueError):
            return False  # the last three come from operators: the original refuses such sizes as well
        return True

    def error(self) -> float | None:
        """The largest relative error; None when there is nothing to compare on this input.

        Raises:
            VerificationError: If it is beyond the tolerance, or the networks return different things.
            Float64Error: If one of them does not compute in float64.
        """
        expected = self._expected(self.subject.masks) if self._reference is None else self._reference
        actual = self._actual()
        if len(actual) != len(expected):
            raise self._mismatch(f"it returns {len(actual)} values instead of {len(expected)}")
        rows = zip(actual, self._output_nodes(), expected, strict=True)
        pairs = [
            self._pair(leaf, name, node, wanted, got) for leaf, ((name, got), node, wanted) in enumerate(rows)
        ]
        tensors = [pair for pair in pairs if pair is not None]
        self._wanted = [wanted for _, wanted, _ in tensors]
        if any(bool(wanted.isnan().any()) for wanted in self._wanted) and not self._nan_is_original():
            return None
        worst = 0.0
        for name, wanted, got in tensors:
            error = max(
                relative_error(*rows) for rows in zip(self._rows(wanted), self._rows(got), strict=True)
            )
            if error > self.tolerance:
                shape = tuple(wanted.shape)
                raise self._mismatch(
                    f"{name} {shape} has a relative error of {error:.3g} (tolerance {self.tolerance:g})"
                )
            worst = max(worst, error)
        return worst

    def agrees_with(self, other: "Case") -> bool:
        """Do both inputs lead to the same outputs?"""
        pairs = zip(self._wanted, other._wanted, strict=True)
        return all(relative_error(*pair) <= self.tolerance for pair in pairs)

    def rows_agree(self) -> bool:
        """Do both inputs of a pair lead to the same outputs, as far as can be seen?"""
        apart = [self._rows(wanted) for wanted in self._wanted]
        return all(relative_error(*rows) <= self.tolerance for rows in apart if len(rows) == 2)

    def _rows(self, value: Tensor) -> tuple[Tensor, ...]:
        return value.unbind() if self.pair and value.dim() and len(value) == 2 else (value,)

    def look_inside(self) -> None:
        """Compare the graphs node by node: the outputs do not depend on the inputs, so they prove nothing."""
        why = "The outputs do not depend on the inputs (a last layer that starts at zero does that)"
        if self.subject.small_captured is None:
            self.remarks.append(f"{why}, so their being equal says little.")
            return
        found = self._first_difference()
        if found:
            raise self._mismatch(f"values inside differ. {why}, so they were compared node by node", found)
        self.remarks.append(f"{why}; so the graphs were compared node by node.")

    def _first_difference(self) -> str | None:
        subject = self.subject
        if subject.small_captured is None:
            return None
        with exact_arithmetic(self._devices(), _SEED):
            return first_difference(
                subject.captured,
                subject.masks,
                subject.small_captured,
                self.inputs,
                self.dtype,
                self.tolerance,
            )

    def _pair(
        self, leaf: int, name: str, node: Any, expected: Any, actual: Any
    ) -> tuple[str, Tensor, Tensor] | None:
        if not isinstance(expected, Tensor):
            if isinstance(actual, Tensor) or actual != expected:
                raise self._mismatch(f"{name} is {actual!r:.80} instead of {expected!r:.80}")
            return None
        if not isinstance(actual, Tensor):
            raise self._mismatch(f"{name} is a {type(actual).__name__} instead of a tensor")
        captured, shape = self.subject.captured, tuple(actual.shape)
        kept = kept_values(expected, self.subject.masks.of(node.name), shape)
        whole = captured.partial is None and captured.output_state(leaf) == "keep"
        if kept is None or (whole and shape != tuple(expected.shape)):
            raise self._mismatch(
                f"{name} has shape {tuple(actual.shape)}; the original's is {tuple(expected.shape)}"
            )
        return name, kept, actual

    def _expected(self, masks: Masks | None) -> list[Any]:
        interpreter = Interpreter(self.subject.captured, self.inputs, self.dtype, masks)
        with exact_arithmetic(self._devices(), _SEED):
            try:
                for _ in interpreter.steps():
                    pass
            except (RuntimeError, TypeError, IndexError, ValueError) as error:
                if self.dtype == torch.float64:
                    raise Float64Error(f"the original does not run in float64: {_brief(error)}") from error
                raise VerificationError(f"The original does not run node by node: {_brief(error)}") from error
        return interpreter.outputs

    def _output_nodes(self) -> list[Any]:
        return list(self.subject.captured.graph.output_node().args[0])  # type: ignore[arg-type]

    def _actual(self) -> list[tuple[str, Any]]:
        # fresh copies of both: a forward may write to its inputs, and to what the module remembers
        small = copy_at_precision(self.subject.small_module, self.dtype)
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
                    raise Float64Error(f"the cut network does not run in float64: {_brief(error)}") from error
                raise self._mismatch(f"it fails with {type(error).__name__}: {error}") from error
        self._stayed = mode.stayed
        return _named_leaves(result)

    def _devices(self) -> list[torch.device]:
        leaves = pytree.tree_leaves((self.inputs.args, self.inputs.kwargs))
        tensors = [*self.subject.captured.tensors.values(), *(x for x in leaves if isinstance(x, Tensor))]
        return list({tensor.device for tensor in tensors})

    def _nan_is_original(self) -> bool:
        """Check that NaN is only where the unmasked original has it too. False: this input tells nothing."""
        pairs = zip(self._output_nodes(), self._expected(None), strict=True)
        whole = [(node, value) for node, value in pairs if isinstance(value, Tensor)]
        for (node, value), wanted in zip(whole, self._wanted, strict=True):
            original = kept_values(value, self.subject.masks.of(node.name), tuple(wanted.shape))
            if original is None or bool((wanted.isnan() & ~original.isnan()).any()):
                raise self._mismatch("what is left of the original yields NaN where the whole of it does not")
        floating = [wanted for wanted in self._wanted if wanted.is_floating_point() or wanted.is_complex()]
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

    def _mismatch(self, what: str, found: str | None = None) -> Exception:
        if self._stayed and self.dtype == torch.float64:
            return Float64Error(f"{self._stayed} computes at a lower precision inside the cut network")
        if found is None and self.subject.small_captured is not None:
            found = self._first_difference() or _NO_NODE
        where = f" {found}" if found else ""
        return VerificationError(
            f"The cut network does not compute what it should: on the {self.kind} inputs, in "
            f"{_name(self.dtype)}, {what}.{where}{_random_draws(self.subject.captured)} Nothing is handed "
            "back. This is a defect of prunus: please report it with the model. Until it is mended, leave "
            "the layer named here out of what is pruned."
        )


def _random_draws(captured: Captured) -> str:
    """A sentence on the first operator that draws random numbers, as dropout does in training only."""
    for node in captured.graph.nodes:
        tags = getattr(node.target, "tags", ())
        might = torch.Tag.nondeterministic_seeded in tags
        if might and not any(name in str(node.target) for name in ("dropout", "attention", "rrelu")):
            return f" The model draws random numbers at {place_of(node)}, which may explain it."
    return ""


def _named_leaves(result: Any) -> list[tuple[str, Any]]:
    """Leaves of what a model returns, each with where it is in it, such as ``output['logits']``."""
    try:
        leaves, _ = pytree.tree_flatten_with_path(result)
    except ValueError:  # a type that was registered without names
        return [(f"output {index}", leaf) for index, leaf in enumerate(pytree.tree_leaves(result))]
    return [(f"output{pytree.keystr(path)}", leaf) for path, leaf in leaves]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {text[0][:200]}{notes}"
