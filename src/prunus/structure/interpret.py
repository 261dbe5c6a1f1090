"""Run an exported graph on labels instead of numbers."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from prunus.capture import Captured, concrete, output_paths, size_of
from prunus.errors import StructureError
from prunus.structure.labels import Labels, along, varying
from prunus.structure.layout import moved
from prunus.structure.meet import meet
from prunus.structure.rules import rule_of
from prunus.structure.source import code_of, module_of
from prunus.structure.tables import TAKEN, WHOLE, is_table, table
from prunus.structure.value import Value

# labels are strided differently from the values: where a view of them does not exist, a copy will do
COPYING: dict[Any, Any] = {
    torch.ops.aten.view.default: torch.reshape,
    torch.ops.aten._unsafe_view.default: torch.reshape,
}
FOLD_LIMIT = 1 << 24  # elements; larger integer constants are not folded


class Run:
    """One run of a graph on labels. After `run()`, `values` maps every node to what it looked like."""

    def __init__(self, captured: Captured, labels: Labels | None = None) -> None:
        self.captured = captured
        self.labels = labels or Labels()
        self.values: dict[fx.Node, Any] = {}
        self._schemas: dict[Any, list[tuple[str, Any]]] = {}

    def run(self) -> Run:
        for node in self.captured.graph.nodes:
            try:
                self.values[node] = self._visit(node)
            except StructureError:
                raise
            except (
                RuntimeError,
                IndexError,
                TypeError,
                ValueError,
                KeyError,
                AttributeError,
                NotImplementedError,
            ) as e:
                raise StructureError(
                    f"cannot follow channels through {node.target} at node {node.name!r} ({where(node)}): {type(e).__name__}: {e}. "
                    "This is a defect of prunus; the node and its shapes in a report help to mend it."
                ) from e
        return self

    # ------------------------------------------------------------------ nodes
    def _visit(self, node: fx.Node) -> Any:
        self.labels.node = node.meta.get("origin", node.name)
        if node.op == "placeholder":
            return self.placeholder(node)
        if node.op == "output":
            self._hold_outputs(node)
            return None
        if node.op != "call_function":
            return self.unknown(node)
        if node.target is operator.getitem:
            source, index = self.resolve(node.args)
            return source[index] if isinstance(source, (tuple, list)) else self.unknown(node)
        if not isinstance(node.target, torch._ops.OpOverload):
            return self._scalar(node)
        rule = rule_of(node.target)
        a = self.bind(node)
        values = list(_values(vars(a).values()))
        folded = self._fold(node, a, values)
        if folded is not None:
            return folded
        if TAKEN in node.meta or (WHOLE not in node.meta and is_table(node, self.values.__getitem__)):
            return table(self.labels, node, self.shape(node))
        if rule is not None:
            return rule(self, node, a)
        if torch.Tag.pointwise in node.target.tags:
            return self.pointwise(node, values)
        if not any(v.tracks for v in values):
            return self.solid(node)
        return self.unknown(node)

    def placeholder(self, node: fx.Node) -> Any:
        name = node.name
        if name not in self.captured.tensors:
            return self.solid(node)
        tensor = self.captured.tensors[name]
        shape = tuple(tensor.shape)
        if not tensor.is_floating_point() and not tensor.is_complex():
            data = tensor if tensor.numel() <= FOLD_LIMIT and not tensor.is_meta else None
            return Value(shape, (), data)
        tracks = [
            along(self.labels.place(name, axis, size), (axis,), shape)
            for axis, size in enumerate(shape)
            if size > 1
        ]
        if self.captured.partial and self.captured.names[name] in self.captured.partial.used_outside:
            for track in tracks:
                self.labels.hold(track, "is used by code that could not be captured", name)
        return Value(shape, tuple(tracks))

    def _hold_outputs(self, node: fx.Node) -> None:
        used = node.args[0]
        names = [] if self.captured.partial else output_paths(self.captured.out_spec)
        for i, each in enumerate(used if isinstance(used, (tuple, list)) else [used]):
            if self.captured.output_state(i) == "free":
                continue
            reason = (
                "is part of the model's output" if names else "is handed to code that could not be captured"
            )
            if len(names) > 1:
                reason += f" {names[i]!r}"
            # of what is only passed on to other parts, code may still look at some of the sizes
            read = self.captured.partial.passed_on.get(i) if self.captured.partial else None
            for value in _values([self.resolve(each)]):
                for track in value.tracks:
                    if read is None or any(axis in read for axis in varying(track)):
                        self.labels.hold(track, reason, node.name)

    def _scalar(self, node: fx.Node) -> Any:
        args = self.resolve(node.args)
        kwargs = self.resolve(node.kwargs)
        if isinstance(node.target, torch._ops.HigherOrderOperator) or _values((args, kwargs)):
            return self.unknown(node)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _fold(self, node: fx.Node, a: SimpleNamespace, values: list[Value]) -> Any:
        """Compute integer and boolean constants for real: movement by index needs their content."""
        meta = node.meta.get("val")
        if not isinstance(meta, Tensor) or meta.dtype.is_floating_point or meta.dtype.is_complex:
            return None
        if meta.numel() > FOLD_LIMIT:
            return None
        if any(v.data is None for v in values) or (
            meta.dim() == 0 and not values and not isinstance(node.target, torch._ops.OpOverload)
        ):
            return None
        if not values and torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
            return None
        args = map_aggregate(self.resolve(node.args), lambda x: x.data if isinstance(x, Value) else x)
        kwargs = map_aggregate(self.resolve(node.kwargs), lambda x: x.data if isinstance(x, Value) else x)
        if node.target._schema.is_mutable:  # type: ignore[union-attr]
            args = map_aggregate(args, lambda x: x.clone() if isinstance(x, Tensor) else x)
        result = node.target(*args, **kwargs)  # type: ignore[operator, misc]
        return Value(tuple(result.shape), (), result) if isinstance(result, Tensor) else None

    # ------------------------------------------------------------------ used by rules
    def resolve(self, args: Any) -> Any:
        """Arguments with nodes replaced by what they looked like."""
        return map_arg(args, lambda n: self.values[n])

    def bind(self, node: fx.Node) -> SimpleNamespace:
        """The node's arguments by the names of the operator's schema, defaults filled in."""
        schema = self._schemas.get(node.target)
        if schema is None:
            arguments = node.target._schema.arguments  # type: ignore[union-attr]
            schema = [(x.name, x.default_value) for x in arguments]
            self._schemas[node.target] = schema
        a = SimpleNamespace(**dict(schema))
        for (name, _), value in zip(schema, self.resolve(node.args), strict=False):
            setattr(a, name, value)
        for name, value in self.resolve(node.kwargs).items():
            setattr(a, name, value)
        return a

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Concrete shape of a single-output node."""
        return size_of(node)

    def shapes(self, node: fx.Node) -> Any:
        """Concrete shapes of the node's outputs, in a tuple for several; None for what is no tensor."""
        meta = node.meta.get("val")
        if isinstance(meta, (tuple, list)):
            return tuple(tuple(concrete(list(m.shape))) if isinstance(m, Tensor) else None for m in meta)
        return self.shape(node) if isinstance(meta, Tensor) else None

    def solid(self, node: fx.Node) -> Any:
        """The node's outputs, without labels."""
        meta = node.meta.get("val")
        if isinstance(meta, (tuple, list)):
            return tuple(Value(s) if s is not None else None for s in self.shapes(node))
        if isinstance(meta, Tensor):
            return Value(self.shape(node))
        return concrete(meta) if isinstance(meta, (int, torch.SymInt)) else meta

    def unknown(self, node: fx.Node) -> Any:
        """An operator without a rule: hold what touches it, and remember it for the report."""
        touched = [t for v in _values(self.resolve((node.args, node.kwargs))) for t in v.tracks]
        if touched:
            self.labels.unknown[node.name] = str(node.target)
        for track in touched:
            self.labels.hold(
                track, f"meets the operator {node.target}, for which prunus has no rule", node.name
            )
        return self.solid(node)

    def hold(self, node: fx.Node, value: Value, axes: set[int], reason: str) -> list[Tensor]:
        """Tracks of `value` after nothing may be removed along `axes`: the others, or their slabs along other axes."""
        kept = []
        for track in value.tracks:
            mine = set(varying(track))
            if not mine & axes:
                kept.append(track)
            elif mine <= axes:
                self.labels.hold(track, reason, node.name)
            else:
                self.labels.hold(self.labels.project(track, tuple(mine & axes), node.name), reason, node.name)
                kept.append(self.labels.project(track, tuple(mine - axes), node.name, lock=True))
        return kept

    def meet(
        self, node: fx.Node, shape: tuple[int, ...], *values: Value, ignore: frozenset[int] = frozenset()
    ) -> list[Tensor]:
        """Relate values that are broadcast together to `shape`; returns the tracks of the result."""
        merged: list[Tensor] = []
        real = tuple(False for _ in shape)
        for value in values:
            tracks, mine = _broadcast(value, shape)
            mine = tuple(m and i not in ignore for i, m in enumerate(mine))
            if merged or any(real) or tracks:
                reason = "is combined with a value along an axis where nothing can be removed"
                merged = meet(self.labels, node.name, merged, tracks, real, mine, reason)
            real = tuple(r or m for r, m in zip(real, mine, strict=True))
        return merged

    def pointwise(self, node: fx.Node, values: list[Value]) -> Any:
        meta = node.meta["val"]
        shape = self.shape(node) if isinstance(meta, Tensor) else None
        if shape is None:
            return self.unknown(node)
        return Value(shape, tuple(self.meet(node, shape, *values)))

    def movement(self, node: fx.Node, value: Value) -> Any:
        """Run the node's own operator on the labels of `value`, its main operand."""
        source = node.args[0] if node.args else node.kwargs[next(iter(node.kwargs))]
        results = [self._move(node, source, track) for track in value.tracks]
        if not results:
            return self.solid(node)
        if isinstance(results[0], (tuple, list)):
            return tuple(self.moved(node, value, list(parts)) for parts in zip(*results, strict=True))
        return self.moved(node, value, results)

    def _move(self, node: fx.Node, source: Any, track: Tensor) -> Any:
        def argument(x: fx.Node) -> Any:
            if x is source:
                return track
            value = self.values[x]
            if not isinstance(value, Value):
                return value
            return value.data if value.data is not None else torch.zeros(()).expand(value.shape)

        target = COPYING.get(node.target, node.target)
        return target(*map_arg(node.args, argument), **map_arg(node.kwargs, argument))  # type: ignore[operator]

    def moved(self, node: fx.Node, source: Value, tracks: list[Tensor]) -> Value:
        """The result of a movement, with what it says about the labels noted."""
        if not tracks[0].numel():
            return Value(tuple(tracks[0].shape), ())  # nothing is left that could be labelled
        pairs = zip(source.tracks, tracks, strict=True)
        return Value(tuple(tracks[0].shape), tuple(moved(self.labels, *pair, node.name) for pair in pairs))


def _values(arguments: Any) -> list[Value]:
    found: list[Value] = []
    for x in arguments:
        if isinstance(x, Value):
            found.append(x)
        elif isinstance(x, (tuple, list)):
            found.extend(_values(x))
        elif isinstance(x, dict):
            found.extend(_values(x.values()))
    return found


def _broadcast(value: Value, shape: tuple[int, ...]) -> tuple[list[Tensor], tuple[bool, ...]]:
    extra = len(shape) - len(value.shape)
    real = tuple(False for _ in range(extra)) + tuple(size > 1 for size in value.shape)
    tracks = [track.expand(shape) if track.shape != shape else track for track in value.tracks]
    return tracks, real


def where(node: fx.Node) -> str:
    """The module path and source line of a node, for messages."""
    module, code = module_of(node) or "the model's own forward", code_of(node)
    return f"{module}, {code}" if code else module
