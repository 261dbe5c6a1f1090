"""Count parameters, multiplications and bytes from the thing itself, not from what a plan predicts."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.capture import Captured, size_of
from prunus.errors import SurgeryError
from prunus.surgery.recipe import bound_arguments

__all__ = ["count_macs", "count_params", "count_size_bytes", "macs_of"]

aten = torch.ops.aten

Counter = Callable[[fx.Node, dict[str, Any]], int]

_COUNTERS: dict[torch._ops.OpOverload | str, Counter] = {}  # by operator, or name where it is not of torch


def count_params(module: nn.Module) -> int:
    """Number of elements of all parameters, each tensor once however many names it has."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_size_bytes(module: nn.Module) -> int:
    """Bytes of what a checkpoint holds: parameters and persistent buffers, each tensor once."""
    tensors = {
        id(tensor): tensor
        for tensor in module.state_dict(keep_vars=True).values()
        if isinstance(tensor, Tensor)
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def count_macs(captured: Captured) -> int:
    """Multiply-accumulate operations of one forward pass.

    Counted are contractions: convolutions, linear layers, matrix products, attention (scores and weighted
    sum, causal masks not deducted), recurrent layers. A look-up in an embedding, an elementwise product and a
    norm count nothing.

    Returns:
        Operations for one sample when the batch is dynamic, else for the captured batch. What does not depend
        on the inputs (a small network that computes position biases, say) runs once per pass and counts in
        full.

    Raises:
        SurgeryError: If an operator that contracts has operands of unknown sizes.
    """
    on_input = captured.input_dependent()
    per_batch = shared = 0
    for node in captured.graph.nodes:
        macs = macs_of(node)
        if node in on_input:
            per_batch += macs
        else:
            shared += macs
    return round(per_batch / (captured.batch or 1)) + shared


def macs_of(node: fx.Node) -> int:
    """Multiply-accumulate operations of one call, at the sizes of the capture; 0 for what contracts nothing.

    Raises:
        SurgeryError: If the call contracts, but the size of an operand is not known.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return 0
    counter = _COUNTERS.get(node.target) or _COUNTERS.get(schema.name)  # type: ignore[arg-type]
    if counter is None:
        return 0
    try:
        return counter(node, bound_arguments(node))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise SurgeryError(
            f"Cannot count the operations of {node.name} ({node.target}): {error}. Its operands are "
            f"{[str(operand) for operand in node.all_input_nodes]}; each needs a tensor in meta['val']."
        ) from error


def _counts(*operators: torch._ops.OpOverload | str) -> Callable[[Counter], Counter]:
    def register(counter: Counter) -> Counter:
        _COUNTERS.update(dict.fromkeys(operators, counter))
        return counter

    return register


def _outputs(node: fx.Node) -> int:
    return math.prod(size_of(node))


@_counts(
    *(
        getattr(getattr(aten, f"conv{n}d"), overload)
        for n in (1, 2, 3)
        for overload in ("default", "padding")
    ),
)
def _convolution(node: fx.Node, a: dict[str, Any]) -> int:
    return _outputs(node) * math.prod(size_of(a["weight"])[1:])


@_counts("torchvision::deform_conv2d")
def _deformed(node: fx.Node, a: dict[str, Any]) -> int:
    return _convolution(node, a)


@_counts(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def _transposed(node: fx.Node, a: dict[str, Any]) -> int:
    # every input element is multiplied by one kernel for each output channel of its group
    return math.prod(size_of(a["input"])) * math.prod(size_of(a["weight"])[1:])


@_counts(aten.convolution.default)
def _either_convolution(node: fx.Node, a: dict[str, Any]) -> int:
    return _transposed(node, a) if a["transposed"] else _convolution(node, a)


@_counts(aten.linear.default)
def _linear(node: fx.Node, a: dict[str, Any]) -> int:
    return _outputs(node) * size_of(a["weight"])[-1]


@_counts(
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.mv.default,
    aten.dot.default,
    aten.vdot.default,
)
def _product(node: fx.Node, a: dict[str, Any]) -> int:
    return _outputs(node) * size_of(next(iter(a.values())))[-1]


@_counts("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def _grouped_product(node: fx.Node, a: dict[str, Any]) -> int:
    left, right = (size_of(operand) for operand in list(a.values())[:2])
    # where offsets cut an axis, every position along it meets one matrix of the stack
    stacked = left[0] if len(left) == len(right) == 3 else 1
    return stacked * left[-2] * left[-1] * right[-1]


@_counts(aten.addmm.default, aten.addmv.default, aten.baddbmm.default, aten.addbmm.default)
def _added_product(node: fx.Node, a: dict[str, Any]) -> int:
    left = size_of(a.get("mat1") or a.get("batch1") or a["mat"])
    summed = left[0] if node.target is aten.addbmm.default else 1  # addbmm adds the products of the batch up
    return _outputs(node) * left[-1] * summed


@_counts(aten.bilinear.default)
def _bilinear(node: fx.Node, a: dict[str, Any]) -> int:
    _, first, second = size_of(a["weight"])
    return _outputs(node) * (first * second + second)


@_counts(aten.scaled_dot_product_attention.default)
def _attention(node: fx.Node, a: dict[str, Any]) -> int:
    # (..., heads, queries, width): grouped heads of the keys and values serve several heads of the queries
    *_, width = size_of(a["query"])
    keys = size_of(a["key"])[-2]
    *outer, value_width = size_of(node)
    return math.prod(outer) * keys * (width + value_width)


@_counts(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
def _recurrent(node: fx.Node, a: dict[str, Any]) -> int:
    steps_and_batch = math.prod(size_of(a["input"])[:2])
    return steps_and_batch * sum(math.prod(size) for size in map(size_of, a["params"]) if len(size) == 2)


@_counts(
    aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default
)
def _recurrent_step(node: fx.Node, a: dict[str, Any]) -> int:
    return size_of(a["input"])[0] * (math.prod(size_of(a["w_ih"])) + math.prod(size_of(a["w_hh"])))


@_counts(aten.einsum.default)
def _einsum(node: fx.Node, a: dict[str, Any]) -> int:
    terms, result, sizes = _einsum_terms(a["equation"], [size_of(operand) for operand in a["tensors"]])
    macs = 0
    for left, right, kept in _pairs(terms, result, a["path"]):
        if (left & right) - kept:  # without a sum it is an elementwise product
            # what only one side has and nobody needs is summed up beforehand
            macs += math.prod(sizes[letter] for letter in (left & right) | (left | right) & kept)
    return macs


def _einsum_terms(
    equation: str, shapes: list[tuple[int, ...]]
) -> tuple[list[set[str]], set[str], dict[str, int]]:
    """Letters of each operand and of the result, and their sizes; an ellipsis becomes letters of its own."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms, sizes = [], {}
    extra = ""
    for term, shape in zip(left.split(","), shapes, strict=True):
        count = len(shape) - len(term.replace("...", ""))
        batch = "".join(chr(0x3B1 + i) for i in reversed(range(count)))
        extra = max(extra, batch, key=len)
        letters = term.replace("...", batch)
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
        terms.append(set(letters))
    if arrow:
        return terms, set(right.replace("...", extra)), sizes
    once = {letter for letter in left if letter.isalpha() and left.count(letter) == 1}
    return terms, once | set(extra), sizes


def _pairs(
    terms: list[set[str]], result: set[str], path: Iterable[int] | None
) -> Iterator[tuple[set[str], set[str], set[str]]]:
    """Contractions in the order in which they are made: as given, or from left to right."""
    rest = list(terms)
    steps = iter(path) if path else itertools.repeat(None)
    while len(rest) > 1:
        first, second = next(steps), next(steps)
        i, j = sorted((first or 0, second if second is not None else 1))
        right, left = rest.pop(j), rest.pop(i)
        kept = (left | right) & result.union(*rest)
        yield left, right, kept
        # torch puts the result of a given step last, and goes on with it first when there is no path
        rest.insert(len(rest) if path else 0, kept)
