"""After a mismatch, and only then, for it is slow: find the first node of the cut graph that differs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from prunus.capture import Captured
from prunus.inputs import Inputs
from prunus.structure.gains import own_gains
from prunus.surgery.difference import largest, relative_error
from prunus.surgery.masks import Masks, kept_values
from prunus.surgery.place import place_of
from prunus.surgery.reference import Interpreter

__all__ = ["first_difference"]

ROUNDINGS = 64  # errors in the last digit of an operand that may add up in a result


def first_difference(
    captured: Captured, masks: Masks, small: Captured, inputs: Inputs, dtype: torch.dtype, tolerance: float
) -> str | None:
    """Say where the cut graph first departs from the masked original; None if it nowhere does.

    Nodes are compared by name, the original's value restricted to the kept positions. Where that leaves
    another number of elements than the cut graph has (a projection that was unpacked), a node tells nothing.
    The same elements in another order are mentioned, but are no difference: surgery may reorder channels.

    Args:
        captured: The original network.
        masks: What is kept of every node of it.
        small: The cut network.
        inputs: What both are run on.
        dtype: Precision of the run.
        tolerance: Largest relative error that is no difference.
    """
    search = _Search(captured, masks, small, inputs, dtype)
    gains = own_gains(captured.graph, captured.tensors)  # these change so that the weights do not
    for name in small.tensors:
        if name in captured.tensors and name not in gains:
            what = f"the {small.kinds.get(name, 'tensor')} {small.names.get(name, name)!r} (node {name!r})"
            found = search.compare(name, what, search.original.load(name), search.cut.load(name), tolerance)
            if found:
                return f"The first thing that differs is {what}: {found}."
    for node, expected in search.original.steps():
        if not isinstance(expected, Tensor) or not search.reach(node.name):
            if search.failure:
                break
            continue
        what = place_of(node)
        found = search.compare(node.name, what, expected, search.waiting.pop(node.name), tolerance)
        if found:
            return f"The first node that differs is {what}: {found}.{search.reordered}"
    return search.failure or None


@dataclass
class _Search:
    """Both graphs in step: the cut one is run as far as the node that the original has reached."""

    captured: Captured
    masks: Masks
    small: Captured
    inputs: Inputs
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.original = Interpreter(self.captured, self.inputs, self.dtype, self.masks)
        self.cut = Interpreter(self.small, self.inputs, self.dtype)
        self.waiting: dict[str, Tensor] = {}
        self.failure = ""
        self.reordered = ""
        self.magnitude: dict[str, float] = {}  # of what the original computes
        self.rounding: dict[str, float] = {}  # what that may be off by
        self._names = {node.name: node for node in self.small.graph.nodes if node.op == "call_function"}
        self._shared = {node.name for node in self.captured.graph.nodes} & self._names.keys()
        self._steps = self.cut.steps()
        self._done: set[str] = set()

    def reach(self, name: str) -> bool:
        """Run the cut graph until it has made the node; False if it has none or fails on the way."""
        if name not in self._shared:
            return False
        while name not in self._done and not self.failure:
            try:
                node, value = next(self._steps)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - whatever a broken graph raises is what was looked for
                self._fail(error)
                break
            self._done.add(node.name)
            if node.name in self._shared and isinstance(value, Tensor):
                # what waits may be written to before its turn comes
                self.waiting[node.name] = value if node.name == name else value.clone()
        return name in self.waiting

    def _note(self, name: str, expected: Tensor) -> None:
        """How far off a node may be where large operands cancel out, as the mean of a normalized map does."""
        node = self._names.get(name)
        operands = [n.name for n in node.all_input_nodes] if node is not None else []
        eps = torch.finfo(expected.dtype).eps
        magnitude = max((self.magnitude.get(n, 0.0) for n in operands), default=0.0)
        inherited = max((self.rounding.get(n, 0.0) for n in operands), default=0.0)
        self.magnitude[name] = largest(expected)
        self.rounding[name] = max(inherited, ROUNDINGS * eps * magnitude)

    def _fail(self, error: Exception) -> None:
        node = next(n for n in self._names.values() if n.name not in self._done)
        shapes = ", ".join(f"{n.name} {_shape(n)}" for n in node.all_input_nodes)
        place = f"{place_of(node)}, operands {shapes}"
        self.failure = f"The cut graph fails at {place}: {type(error).__name__}: {error}"

    def compare(self, name: str, what: str, expected: Tensor, actual: Tensor, tolerance: float) -> str:
        """What differs at a node, or nothing; `what` is the node in words."""
        if not expected.is_floating_point() and not expected.is_complex():
            return ""  # indices and sizes change with what is cut
        kept = kept_values(expected, self.masks.of(name), tuple(actual.shape))
        self._note(name, expected)
        if kept is None:
            return ""
        error = relative_error(kept, actual)
        if error <= tolerance or (math.isfinite(error) and largest(kept - actual) <= self.rounding[name]):
            return ""
        if _same_in_other_order(kept, actual, tolerance):
            self.reordered = self.reordered or f" Before it, the same numbers are in another order at {what}."
            return ""
        return f"relative error {error:.3g}; original {tuple(expected.shape)}, cut {tuple(actual.shape)}"


def _same_in_other_order(expected: Tensor, actual: Tensor, tolerance: float) -> bool:
    if expected.is_complex():
        return False
    return relative_error(expected.flatten().sort().values, actual.flatten().sort().values) <= tolerance


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    return str(tuple(value.shape)) if isinstance(value, Tensor) else "(no tensor)"
