"""Contractions: linear layers, matrix products, einsum, embeddings.

All are one statement over named axes: `contract` aligns both operands over the union of their names, lets the shared ones
meet, drops what is summed over, and starts the output with what is left.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, fx

from prunus.structure.labels import varying
from prunus.structure.meet import meet
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value

REASON = "is multiplied with a value along an axis where nothing can be removed"


def contract(run: Any, node: fx.Node, x: Value, xn: str, w: Value, wn: str, out: str, macs: int = 1) -> Value:
    """Sum of products over named axes, like einsum.

    Args:
        run: the run on labels.
        node: the node that contracts.
        x, w: the operands, one name per axis in `xn` and `wn`; a size of 1 against a larger one is broadcast.
        out: names of the result's axes.
        macs: how many multiply-accumulates each point of the joint index space stands for (0: count none).
    """
    names = xn + "".join(n for n in wn if n not in xn)
    sizes = {n: max(_size(x, xn, n), _size(w, wn, n)) for n in names}
    joint = tuple(sizes[n] for n in names)
    left = [_onto(t, xn, names, joint) for t in x.tracks]
    right = [_onto(t, wn, names, joint) for t in w.tracks]
    real_x, real_w = (tuple(_size(v, vn, n) > 1 for n in names) for v, vn in ((x, xn), (w, wn)))
    merged = meet(run.labels, node.name, left, right, real_x, real_w, REASON)
    if macs:
        run.labels.work(node.name, merged, joint, macs)
    rest = tuple(i for i, n in enumerate(names) if n in out)
    left, right = _summed(run, node, left, rest), _summed(run, node, right, rest)
    still_x, still_w = (tuple(r and i in rest for i, r in enumerate(real)) for real in (real_x, real_w))
    tracks = meet(run.labels, node.name, left, right, still_x, still_w, REASON)
    order = {names.index(n): out.index(n) for n in out if n in names}
    shape = tuple(sizes[n] for n in out)
    placed = []
    for track in tracks:
        axes = varying(track)
        target = tuple(order[axis] for axis in axes)
        ranked = sorted(range(len(axes)), key=lambda i: target[i])
        labels = track[tuple(slice(None) if i in axes else 0 for i in range(track.dim()))].permute(ranked)
        view = [1] * len(shape)
        for i in ranked:
            view[target[i]] = joint[axes[i]]
        placed.append(labels.reshape(view).expand(shape))
    return Value(shape, tuple(placed))


def _size(value: Value, names: str, name: str) -> int:
    return value.shape[names.index(name)] if name in names else 1


def _onto(track: Tensor, names: str, joint_names: str, joint: tuple[int, ...]) -> Tensor:
    order = sorted(range(len(names)), key=lambda i: joint_names.index(names[i]))
    view = [1] * len(joint)
    for i in order:
        view[joint_names.index(names[i])] = track.shape[i]
    moved = track.permute(order)
    for axis, name in enumerate(joint_names):
        if name not in names:
            moved = moved.unsqueeze(axis)
    return moved.expand(joint)


def _summed(run: Any, node: fx.Node, tracks: list[Tensor], rest: tuple[int, ...]) -> list[Tensor]:
    out = []
    for track in tracks:
        left = tuple(axis for axis in varying(track) if axis in rest)
        if left:
            out.append(run.labels.project(track, left, node.name))
    return out


def add_bias(run: Any, node: fx.Node, value: Value, bias: Value | None) -> Value:
    if bias is None or not (bias.tracks or value.tracks):
        return value
    return Value(value.shape, tuple(run.meet(node, value.shape, value, bias)))


def produce(run: Any, tracks: Any, axis: int | None = None) -> None:
    """These tracks, of those that vary along `axis`, are made by the operator at hand."""
    for track in tracks:
        if axis is None or axis in varying(track):
            run.labels.produce(track)


@rule("linear")
def linear(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    lead = "ABCDEFGHI"[: len(a.input.shape) - 1]
    vector = len(a.weight.shape) == 1
    produce(run, a.weight.tracks, None if vector else 0)
    for track in a.input.tracks:
        if len(lead) in varying(track):
            run.labels.feature(track)
    result = contract(
        run, node, a.input, lead + "k", a.weight, "k" if vector else "nk", lead + ("" if vector else "n")
    )
    return add_bias(run, node, result, a.bias)


@rule("matmul", "mm", "bmm", "dot", "vdot", "mv")
def matmul(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    return product(
        run,
        node,
        a.self,
        getattr(a, "mat2", None) or getattr(a, "other", None) or getattr(a, "vec", None) or a.tensor,
    )


def product(run: Any, node: fx.Node, x: Value, y: Value) -> Value:
    """Matrix product with broadcast leading axes, as `torch.matmul`."""
    lead = "ABCDEFGHI"[: max(len(x.shape), len(y.shape), 2) - 2]
    xn = "k" if len(x.shape) == 1 else lead[len(lead) - (len(x.shape) - 2) :] + "mk"
    yn = "k" if len(y.shape) == 1 else lead[len(lead) - (len(y.shape) - 2) :] + "kn"
    out = (
        "".join(n for n in lead if n in xn or n in yn)
        + ("m" if "m" in xn else "")
        + ("n" if "n" in yn else "")
    )
    # an operand that is a parameter makes new channels
    produce(run, x.tracks, len(x.shape) - 2 if len(x.shape) > 1 else None)
    produce(run, y.tracks, len(y.shape) - 1 if len(y.shape) > 1 else None)
    return contract(run, node, x, xn, y, yn, out)


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Sums over the features of two sets of points; points that are a parameter make new channels."""
    lead = "ABCDEFGHI"[: max(len(a.x1.shape), len(a.x2.shape)) - 2]
    first, second = (lead[len(lead) - len(v.shape) + 2 :] for v in (a.x1, a.x2))
    produce(run, a.x1.tracks, len(a.x1.shape) - 2)
    produce(run, a.x2.tracks, len(a.x2.shape) - 2)
    return contract(run, node, a.x1, first + "mk", a.x2, second + "nk", lead + "mn", macs=0)


@rule("addmm", "baddbmm", "addmm_", "baddbmm_", "addbmm")
def addmm(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    first = getattr(a, "mat1", None) or a.batch1
    return add_bias(run, node, product(run, node, first, getattr(a, "mat2", None) or a.batch2), a.self)


@rule("bilinear")
def bilinear(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    lead = "ABCDEFGHI"[: len(a.input1.shape) - 1]
    produce(run, a.weight.tracks, 0)
    half = contract(run, node, a.input1, lead + "j", a.weight, "njk", lead + "nk")
    return add_bias(
        run, node, contract(run, node, half, lead + "nk", a.input2, lead + "k", lead + "n"), a.bias
    )


def is_plain(equation: str) -> bool:
    """Whether no term of an equation takes a diagonal, by naming an axis twice."""
    terms = equation.replace(" ", "").replace(".", "").partition("->")[0].split(",")
    return all(len(set(term)) == len(term) for term in terms)


def spelled(equation: str, ranks: list[int]) -> str:
    """An equation with letters for the axes behind an ellipsis, and with the result's axes where it leaves them out."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms, extra = [], ""
    for term, rank in zip(left.split(","), ranks, strict=True):
        count = rank - len(term.replace("...", "")) if "..." in term else 0
        letters = "".join(chr(0x3B1 + i) for i in reversed(range(count)))
        terms.append(term.replace("...", letters))
        extra = max(extra, letters, key=len)
    if not arrow:
        once = {letter for letter in left if letter.isalpha() and left.count(letter) == 1}
        out = "..." + "".join(sorted(once))
    return ",".join(terms) + "->" + out.replace("...", extra)


@rule("einsum")
def einsum(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    operands = list(a.tensors)
    if not is_plain(a.equation):
        return run.unknown(node)
    inputs, out = spelled(a.equation, [len(value.shape) for value in operands]).split("->")
    terms = inputs.split(",")
    for value in operands:
        produce(run, value.tracks if len(terms) > 1 else ())
    value, names = operands[0], terms[0]
    if len(terms) == 1:
        one = Value((1,) * 0)
        return contract(run, node, value, names, one, "", out, macs=0)
    for i, (other, term) in enumerate(zip(operands[1:], terms[1:], strict=True), 1):
        later = set(out).union(*terms[i + 1 :])
        between = (
            out if i == len(terms) - 1 else "".join(n for n in dict.fromkeys(names + term) if n in later)
        )
        value, names = contract(run, node, value, names, other, term, between), between
    return value


@rule("embedding", "embedding_bag")
def embedding(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Rows are chosen by data and stay; columns are channels."""
    rows = run.hold(node, a.weight, {0}, "is a row of an embedding table, chosen by index")
    tracks = [t.select(0, 0) for t in rows]
    for track in tracks:
        run.labels.produce(track)
    shapes = run.shapes(node)
    if shapes and isinstance(shapes[0], tuple):
        first = Value(shapes[0], tuple(t.expand(shapes[0]) for t in tracks))
        return (first, *run.solid(node)[1:])
    return Value(shapes, tuple(t.expand(shapes) for t in tracks))
