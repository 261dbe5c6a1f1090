"""What the inputs of a graph have to look like: which of their sizes are fixed, and what holds between the free ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree
from torch.utils._sympy.printers import PythonPrinter

from prunus.capture.conditions import Expression, holds, parsed, said, sizes_in
from prunus.capture.sizes import is_symbolic
from prunus.errors import InputError

__all__ = ["GUARDS", "Axis", "Shapes", "expect_shapes", "shapes_of"]

GUARDS = "guards_code"  # where a program from a file keeps its guards
Axis = tuple[int, int]
"""Number of a leaf of the inputs, and one of its axes."""


@dataclass(frozen=True)
class Shapes:
    """The inputs for which a graph holds.

    Attributes:
        names: What each leaf of the inputs is called.
        dtypes: Their types; None for what is no tensor.
        sizes: For each leaf, a number for each axis of fixed size and None for each free one.
        conditions: What must hold of the free sizes.
        reasons: Name of a fixed size, such as ``"x.2"`` -> why it is fixed, where that is known.
        asked: The axes that were to be free when the model was captured.
    """

    names: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype | None, ...] = ()
    sizes: tuple[tuple[int | None, ...], ...] = ()
    conditions: tuple[Expression, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    asked: frozenset[Axis] = frozenset()

    @property
    def free(self) -> frozenset[Axis]:
        """The axes whose size is not fixed."""
        return frozenset(
            (leaf, axis)
            for leaf, sizes in enumerate(self.sizes)
            for axis, size in enumerate(sizes)
            if size is None
        )

    def settled_batch(self, given: Sequence[tuple[int, ...]]) -> str | None:
        """Why the batch has no other size although it is free: a product of it has to be a certain number, say.

        Args:
            given: the sizes of the axes of each leaf, for which the graph holds.
        """
        batch = next((sizes[0] for sizes in given if sizes), 0)
        axes = {
            f"{name}.0"
            for name, mine, sizes in zip(self.names, self.sizes, given, strict=True)
            if mine and mine[0] is None and sizes[0] == batch
        }
        about = [condition for condition in self.conditions if sizes_in(condition) & axes]
        others = [batch + 1, 2 * batch, 3 * batch, batch - 1]
        rows = zip(self.names, given, strict=True)
        known = {f"{name}.{axis}": size for name, sizes in rows for axis, size in enumerate(sizes)}
        unmet = [
            next((c for c in about if not holds(c, {**known, **dict.fromkeys(axes, other)})), None)
            for other in others
            if other > 0
        ]
        if None in unmet or not unmet:
            return None
        return f"the model takes only inputs for which {said(unmet[0])}"  # type: ignore[arg-type]

    def problem(self, leaves: Sequence[Any]) -> str | None:
        """What is wrong with inputs; None if the graph holds for them."""
        return _problem(leaves, *self.as_arguments())

    def as_arguments(self) -> tuple[Any, ...]:
        """The arguments of `expect_shapes` after the first, out of plain tuples that the node of a graph can hold."""
        return self.names, self.dtypes, self.sizes, self.conditions, tuple(self.reasons.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report: sizes of each input (None where free), what must hold between them, why others are fixed."""
        tensors = zip(self.names, self.dtypes, self.sizes, strict=True)
        return {
            "sizes": {name: list(sizes) for name, dtype, sizes in tensors if dtype is not None},
            "where": [said(condition) for condition in self.conditions],
            "fixed": dict(self.reasons),
        }


def shapes_of(program: ExportedProgram, names: Sequence[str], reasons: Mapping[Axis, str]) -> Shapes:
    """What a program asks of its inputs.

    Args:
        program: With the guards that are to hold.
        names: What its inputs are called.
        reasons: Why axes that were to be free are fixed.
    """
    nodes = program.graph.find_nodes(op="placeholder")
    specs = zip(program.graph_signature.input_specs, nodes, strict=True)
    values = [node.meta.get("val") for spec, node in specs if spec.kind == InputKind.USER_INPUT]
    sizes, symbols, conditions = [], dict[str, str](), list[Expression]()
    for name, value in zip(names, values, strict=True):
        mine: list[int | None] = []
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            free = is_symbolic(size)
            mine.append(None if free else int(size))
            if free and size.node.expr.is_Symbol:  # type: ignore[union-attr]
                first = symbols.setdefault(str(size), f"{name}.{axis}")
                if first != f"{name}.{axis}":
                    conditions.append(("==", *sorted((f"{name}.{axis}", first))))
        sizes.append(tuple(mine))
    conditions += _derived(names, values, symbols) + _ranges(program, symbols)
    conditions += _guards(program, names)
    why = {f"{names[leaf]}.{axis}": reason for (leaf, axis), reason in reasons.items()}
    fixed = {
        f"{name}.{axis}"
        for name, mine in zip(names, sizes, strict=True)
        for axis, n in enumerate(mine)
        if n is not None
    }
    return Shapes(
        tuple(names),
        tuple(value.dtype if isinstance(value, Tensor) else None for value in values),
        tuple(sizes),
        tuple(dict.fromkeys(each for each in conditions if not sizes_in(each) <= fixed)),
        {name: reason for name, reason in why.items() if name in fixed},
    )


def _derived(names: Sequence[str], values: Sequence[Any], symbols: Mapping[str, str]) -> list[Expression]:
    """Sizes that are computed from others."""
    found: list[Expression] = []
    for name, value in zip(names, values, strict=True):
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if is_symbolic(size) and not size.node.expr.is_Symbol:  # type: ignore[union-attr]
                code = PythonPrinter().doprint(size.node.expr)  # type: ignore[union-attr]
                for expression in parsed(code, symbols) or ():
                    found.append(("==", f"{name}.{axis}", expression))
    return found


def _ranges(program: ExportedProgram, symbols: Mapping[str, str]) -> list[Expression]:
    """Bounds other than the 0 and 2 that torch starts from."""
    found: list[Expression] = []
    for symbol, bounds in program.range_constraints.items():
        name = symbols.get(str(symbol))
        if name is not None:
            if bounds.lower > 2:
                found.append((">=", name, int(bounds.lower)))
            if bounds.upper < 2**31:
                found.append(("<=", name, int(bounds.upper)))
    return found


def _guards(program: ExportedProgram, names: Sequence[str]) -> list[Expression]:
    sources = {
        f"{source}.size()[{axis}]": f"{name}.{axis}"
        for source, name in zip(_sources(program), names, strict=True)
        for axis in range(16)
    }
    guards = program.graph_module.meta.get(GUARDS, program._guards_code)
    return [_ordered(each) for code in guards for each in parsed(code, sources) or ()]


def _ordered(condition: Expression) -> Expression:
    """The same, where torch says twice that two sizes are equal."""
    match condition:
        case ("==", str() as one, str() as other):
            return ("==", *sorted((one, other)))
    return condition


def _sources(program: ExportedProgram) -> list[str]:
    """What torch calls each leaf of the inputs in the code of guards."""
    spec = program.call_spec.in_spec
    assert spec is not None
    signature = program.module_call_graph[0].signature
    given = list((signature.forward_arg_names if signature else None) or ())
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    found = []
    for path, _ in pytree.tree_flatten_with_path(tree)[0]:
        first = path[1]
        if isinstance(first, pytree.SequenceKey):
            name = given[first.idx] if first.idx < len(given) else f"args_{first.idx}"
        else:
            name = str(getattr(first, "key", first))
        found.append(f"L[{name!r}]{pytree.keystr(path[2:])}")
    return found


def expect_shapes(
    leaves: Sequence[Any],
    names: tuple[str, ...],
    dtypes: tuple[torch.dtype | None, ...],
    sizes: tuple[tuple[int | None, ...], ...],
    conditions: tuple[Expression, ...],
    reasons: tuple[tuple[str, str], ...],
) -> None:
    """Refuse inputs for which a graph does not hold. A node of graph modules; see `Shapes` for the arguments.

    Raises:
        InputError: If an input is no tensor, of another kind of numbers, or of a size that is fixed otherwise.
    """
    proxy = next((leaf for leaf in leaves if isinstance(leaf, torch.fx.Proxy)), None)
    if proxy is not None:  # fx traces the module: keep the check in the new graph
        arguments = (list(leaves), names, dtypes, sizes, conditions, reasons)
        proxy.tracer.create_proxy("call_function", expect_shapes, arguments, {})
        return
    if torch._C._get_tracing_state() is not None:
        return  # sizes are tensors there
    problem = _problem(leaves, names, dtypes, sizes, conditions, reasons)
    if problem:
        raise InputError(problem)


def _problem(
    leaves: Sequence[Any],
    names: tuple[str, ...],
    dtypes: tuple[torch.dtype | None, ...],
    sizes: tuple[tuple[int | None, ...], ...],
    conditions: tuple[Expression, ...],
    reasons: tuple[tuple[str, str], ...],
) -> str | None:
    given: dict[str, Any] = {}
    for leaf, name, dtype, wanted in zip(leaves, names, dtypes, sizes, strict=True):
        if dtype is None:
            continue
        if not isinstance(leaf, Tensor):
            return f"The input {name} is {type(leaf).__name__}; expected a tensor."
        if _kind(leaf.dtype) != _kind(dtype):
            return f"The input {name} holds {_kind(leaf.dtype)} ({leaf.dtype}); expected {_kind(dtype)} ({dtype})."
        if leaf.dim() != len(wanted):
            return f"The input {name} has {leaf.dim()} axes, {tuple(leaf.shape)}; expected {len(wanted)}."
        for axis, size in enumerate(wanted):
            given[f"{name}.{axis}"] = leaf.shape[axis]
            if size is not None and leaf.shape[axis] != size:
                return _fixed(name, axis, size, leaf.shape[axis], dict(reasons))
    for condition in conditions:
        if not holds(condition, given):
            return _unmet(condition, given)
    return None


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "true and false"
    return (
        "complex numbers"
        if dtype.is_complex
        else "floating point numbers"
        if dtype.is_floating_point
        else "integers"
    )


def _fixed(name: str, axis: int, size: int, given: Any, reasons: Mapping[str, str]) -> str:
    why = reasons.get(f"{name}.{axis}")
    return (
        f"Axis {axis} of the input {name} has size {given}, but this graph holds for size {size} only"
        + (f": {why}" if why else "")
        + ". Call it with that size, or compress the model with example inputs of the size that you need."
    )


def _unmet(condition: Expression, given: Mapping[str, Any]) -> str:
    used = sorted(sizes_in(condition))
    sizes = ", ".join(
        f"axis {name.rpartition('.')[2]} of the input {name.rpartition('.')[0]} is {given[name]}"
        for name in used
    )
    return (
        f"These sizes do not fit this graph: {sizes}, and it holds where {said(condition)}. Call it with sizes for which that is "
        "so, or compress the model with example inputs of the sizes that you need."
    )
