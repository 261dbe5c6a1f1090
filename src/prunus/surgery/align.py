"""Which call of a recorded forward is which node of the captured graph, and what its numbers have become."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.capture import Captured, concrete
from prunus.surgery.provenance import Source, TracedInt
from prunus.surgery.recipe import bound_arguments
from prunus.surgery.record import Call, Recording

__all__ = ["Alignment", "Use", "align", "given_arguments", "is_split", "shapes_of", "uses"]

_SAME = {
    "view": "reshape",
    "unsafe_view": "reshape",
    "view_as": "reshape",
    "conv_transpose": "conv",
    "dropout": "dropout",
}
_INDEXING = {"slice", "select", "index", "unsqueeze", "alias", "narrow", "index_select"}
_SPLITS = {"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"}
_TO_THE_END = 2**62


@dataclass(frozen=True)
class Use:
    """One traced integer that reached a call, and the number that has to stand there now.

    Attributes:
        source: Where the integer came from; an ordinary int is written in the code.
        before: The number in the original forward.
        after: The number in the small graph; None where the small graph needs several numbers for the one.
        call: The call it reached.
        needed: What is needed instead of one number.
    """

    source: Source
    before: int
    after: int | None
    call: Call
    needed: str = "several numbers"


@dataclass
class Alignment:
    """Nodes of the original and of the small graph for the calls of a recording (None where there is no node)."""

    calls: list[Call]
    old: list[fx.Node | None]
    new: list[fx.Node | None]

    def size_after(self, made_by: int, output: int, axis: int) -> int | None:
        """A size of what a call made, in the small graph; None where it is not known."""
        node = self.new[made_by]
        shapes = shapes_of(node.meta.get("val")) if node is not None else ()
        return shapes[output][axis] if output < len(shapes) and axis < len(shapes[output]) else None


def align(recording: Recording, captured: Captured, small: Captured) -> Alignment:
    """Match calls with nodes: same module, same function, same shapes, in the same order."""
    calls = recording.calls
    result = Alignment(calls, [None] * len(calls), [None] * len(calls))
    canonical = _canonical_paths(captured.model)
    nodes: dict[str, list[fx.Node]] = defaultdict(list)
    for node in captured.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and shapes_of(node.meta.get("val")):
            nodes[canonical.get(_path(node), _path(node))].append(node)
    by_path: dict[str, list[int]] = defaultdict(list)
    for i, call in enumerate(calls):
        by_path[call.path].append(i)
    now = {node.name: node for node in small.graph.nodes}
    for path, indices in by_path.items():
        for i, node in _matches([(i, calls[i]) for i in indices], nodes.get(path, [])):
            result.old[i], result.new[i] = node, now.get(node.name)
    return result


def _canonical_paths(model: nn.Module | None) -> dict[str, str]:
    """Every path of a module -> the first of its paths."""
    if model is None:
        return {}
    first: dict[int, str] = {}
    return {
        path: first.setdefault(id(module), path)
        for path, module in model.named_modules(remove_duplicate=False)
    }


def _path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for key, (path, _) in stack.items() if not key.startswith("_empty")]
    return paths[-1].partition("@")[0] if paths else ""


def _matches(calls: list[tuple[int, Call]], nodes: list[fx.Node]) -> Iterator[tuple[int, fx.Node]]:
    called = [(_kind(call.name), call.shapes) for _, call in calls]
    made = [(_kind(_operator_name(node)), shapes_of(node.meta["val"])) for node in nodes]
    matcher = SequenceMatcher(None, called, made, autojunk=False)
    at_call = at_node = 0
    for block in matcher.get_matching_blocks():
        yield from _indexed(calls[at_call : block.a], nodes[at_node : block.b])
        for offset in range(block.size):
            yield calls[block.a + offset][0], nodes[block.b + offset]
        at_call, at_node = block.a + block.size, block.b + block.size


def _indexed(calls: list[tuple[int, Call]], nodes: list[fx.Node]) -> Iterator[tuple[int, fx.Node]]:
    """Indexing with brackets becomes one or more nodes, the last of which has the shape of the result."""
    at = 0
    for i, call in calls:
        if call.name != "getitem":
            continue
        for j in range(at, len(nodes)):
            if _operator_name(nodes[j]) in _INDEXING and shapes_of(nodes[j].meta["val"]) == call.shapes:
                yield i, nodes[j]
                at = j + 1
                break


def _kind(name: str) -> str:
    return _SAME.get(name, name)


def _operator_name(node: fx.Node) -> str:
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    return (packet.__name__ if packet is not None else getattr(target, "__name__", str(target))).strip("_")


def is_split(node: fx.Node) -> bool:
    """The node takes a value apart along an axis."""
    return _operator_name(node) in _SPLITS


def shapes_of(value: Any) -> tuple[tuple[int, ...], ...]:
    """Shapes of all tensors in a value of a graph, at the captured sizes."""
    if isinstance(value, Tensor):
        return (tuple(concrete(size) for size in value.shape),)
    if isinstance(value, (tuple, list)):
        return tuple(shape for item in value for shape in shapes_of(item))
    return ()


# ---------------------------------------------------------------------- numbers
def uses(alignment: Alignment) -> Iterator[Use]:
    """Every integer that reached a call, traced or not, where the small graph says what has to stand there."""
    for call, old, new in zip(alignment.calls, alignment.old, alignment.new, strict=True):
        if old is not None and new is not None:
            yield from _uses_of(call, old, new)


def _uses_of(call: Call, old: fx.Node, new: fx.Node) -> Iterator[Use]:
    if call.name == "getitem":
        yield from _indexing_uses(call, old, new)
        return
    before, after = _by_name(old), _by_name(new)
    given = given_arguments(call, old)
    for name, value in given.items():
        if name not in before:
            continue
        if is_split(old) and old.target is not new.target:
            yield from _split_uses(call, value, name, after)
        elif name in after:
            yield from _pairs(call, value, before[name], after[name])


def _by_name(node: fx.Node) -> dict[str, Any]:
    """Arguments by name, symbolic numbers at the captured sizes."""
    return {name: fx.map_arg(value, _number) for name, value in bound_arguments(node).items()}


def _number(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return concrete(value) if isinstance(value, (int, torch.SymInt)) else None


def given_arguments(call: Call, node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by the names of the operator's schema; sizes may come one by one."""
    arguments = [a.name for a in node.target._schema.arguments if not a.kwarg_only]  # type: ignore[union-attr]
    given, positional = dict(call.kwargs), list(call.args)
    for i, name in enumerate(arguments):
        if i >= len(positional):
            break
        rest = positional[i:]
        last = i == len(arguments) - 1
        given[name] = tuple(rest) if last and len(rest) > 1 else positional[i]
    return given


def _pairs(call: Call, value: Any, before: Any, after: Any) -> Iterator[Use]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int):
        if isinstance(before, (tuple, list)) and before and len(set(before)) == 1 and len(set(after)) == 1:
            before, after = before[0], after[0]  # one number for all axes
        if isinstance(before, int) and isinstance(after, int) and int(value) == before:
            yield Use(value.source if isinstance(value, TracedInt) else int(value), before, after, call)
    elif (
        isinstance(value, (tuple, list))
        and isinstance(before, (tuple, list))
        and isinstance(after, (tuple, list))
    ):
        if len(value) == len(before) == len(after):
            for one, old, new in zip(value, before, after, strict=True):
                yield from _pairs(call, one, old, new)


def _split_uses(call: Call, value: Any, name: str, after: dict[str, Any]) -> Iterator[Use]:
    """A split by one number, which the small graph makes by a list of sizes."""
    sizes = after.get("split_sizes")
    if not isinstance(value, int) or name == "dim" or not sizes:
        return
    source = value.source if isinstance(value, TracedInt) else int(value)
    if "split" in name:  # the size of each part
        wanted = int(sizes[0])
        fits = all(size == wanted for size in sizes[:-1]) and sizes[-1] <= wanted
    else:  # the number of parts
        each = -(-sum(sizes) // int(value))
        wanted, fits = int(value), sizes == (*[each] * (len(sizes) - 1), sum(sizes) - each * (len(sizes) - 1))
    yield Use(
        source, int(value), wanted if fits else None, call, f"parts of {', '.join(map(str, sizes))} channels"
    )


def _indexing_uses(call: Call, old: fx.Node, new: fx.Node) -> Iterator[Use]:
    """Bounds and positions in brackets, found again by value in the nodes that the brackets became."""
    index = call.args[1] if len(call.args) > 1 else ()
    numbers = _numbers(index if isinstance(index, tuple) else (index,))
    found: dict[int, set[int | None]] = defaultdict(set)
    for one, other in zip(_chain(old), _chain(new), strict=False):
        if _operator_name(one) not in ("slice", "select"):
            continue
        before, after = _by_name(one), _by_name(other)
        for name in ("start", "end", "index"):
            if isinstance(before.get(name), int):
                found[before[name]].add(_bound(name, other, after) if one.target is other.target else None)
    for value in numbers:
        after = found.get(int(value), set())
        if len(after) == 1:
            yield Use(
                value.source if isinstance(value, TracedInt) else int(value), int(value), after.pop(), call
            )


def _bound(name: str, node: fx.Node, arguments: dict[str, Any]) -> int | None:
    value = arguments.get(name)
    if name == "end" and isinstance(value, int) and value >= _TO_THE_END:
        shape = shapes_of(node.args[0].meta.get("val"))  # type: ignore[union-attr]
        return shape[0][arguments["dim"]] if shape else None
    return value if isinstance(value, int) else None


def _chain(node: fx.Node) -> Iterator[fx.Node]:
    """A node and the indexing nodes right before it, last first."""
    current: Any = node
    while isinstance(current, fx.Node) and _operator_name(current) in _INDEXING:
        yield current
        current = current.args[0]


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, slice):
        yield from _numbers((value.start, value.stop))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
