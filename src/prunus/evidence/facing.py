"""Which axes of two activations face each other where they are multiplied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from prunus.capture import size_of

__all__ = ["Facing", "facing", "kind_of"]

_LEAD = "ABCDEFGHI"


@dataclass(frozen=True)
class Facing:
    """Two operands of a product, one letter for each axis.

    Attributes:
        left, right: letters of the axes; those of both operands face each other.
        summed: letters over which the product sums.
    """

    left: str
    right: str
    summed: str

    @property
    def batch(self) -> str:
        """Letters of axes that go through the product side by side: every position is a product of its own."""
        shared = [n for n in dict.fromkeys(self.left + self.right) if n in self.left and n in self.right]
        return "".join(n for n in shared if n not in self.summed)


def facing(reader: fx.Node, left: fx.Node, right: fx.Node) -> Facing | None:
    """How two operands face each other; None where the reader is no product of matrices, or has more operands."""
    kind, (m, n) = kind_of(reader), (len(size_of(left)), len(size_of(right)))
    if kind == "einsum":
        return _of_einsum(reader)
    if min(m, n) < 2:
        return None
    if kind == "scaled_dot_product_attention" and (left, right) == tuple(reader.args[:2]):
        return Facing(_lead(m) + "lk", _lead(n) + "sk", "k")
    if kind in ("matmul", "mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_"):
        return Facing(_lead(m) + "lk", _lead(n) + "ks", "k")
    if kind == "linear" and (left, right) == tuple(reader.args[:2]):
        return Facing(_lead(m) + "lk", "sk", "k")
    return None


def _lead(dims: int) -> str:
    """Letters of the axes in front of the last two; they face each other from the back."""
    return _LEAD[len(_LEAD) - (dims - 2) :]


def _of_einsum(reader: fx.Node) -> Facing | None:
    equation = str(reader.args[0]).replace(" ", "")
    inputs, arrow, out = equation.partition("->")
    terms = inputs.split(",")
    if not arrow or "." in equation or len(terms) != 2 or any(len(set(t)) != len(t) for t in terms):
        return None
    gone = "".join(n for n in dict.fromkeys(inputs) if n not in out and n != ",")
    in_both = all(n in terms[0] and n in terms[1] for n in gone)
    return Facing(terms[0], terms[1], gone) if gone and in_both else None


def kind_of(node: fx.Node) -> str:
    """Name of the operator, without its overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return getattr(node.target, "__name__", "")
