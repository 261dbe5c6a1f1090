"""What torch.export found out about sizes: which it fixed and where, and which of its guards say something about the graph."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from prunus.capture.shapes import Axis
from prunus.capture.sizes import is_symbolic

__all__ = ["fixed_sizes", "keep_guards_of_code", "short_sizes"]

_LONGEST = 12  # operations in a size; a map that is halved five times has four
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
# where torch works out the shapes of an operator's results: the operator itself asks again when it runs
_OPERATORS = tuple(
    _TORCH + part
    for part in (
        "_prims_common",
        "_refs",
        "_prims",
        "_decomp",
        "_meta_registrations",
        "_subclasses",
        "_library",
    )
)
# where an operator that is written in C++ is called
_CALLS = (_TORCH + "_ops.py", _TORCH + os.path.join("_export", "non_strict_utils.py"))


@contextlib.contextmanager
def short_sizes() -> Iterator[None]:
    """Give an export up in which sizes become long expressions, as where each layer pads to whole windows: torch would need minutes.

    Raises:
        RuntimeError: From inside of the forward.
    """
    thread = threading.get_ident()

    def look(module: nn.Module, args: Any) -> None:
        if threading.get_ident() != thread:
            return
        for tensor in args:
            for size in tensor.shape if isinstance(tensor, Tensor) else ():
                if (
                    isinstance(size, torch.SymInt)
                    and is_symbolic(size)
                    and size.node.expr.count_ops() > _LONGEST
                ):
                    raise RuntimeError(
                        f"sizes become too long to follow in {type(module).__name__}: {str(size)[:80]}"
                    )

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def fixed_sizes(program: ExportedProgram, wanted: Iterable[Axis]) -> dict[Axis, str]:
    """The axes that were to be free and are not, each with the reason."""
    inputs = _inputs(program)
    return {
        (leaf, axis): _why(inputs[leaf], axis)
        for leaf, axis in sorted(wanted)
        if not is_symbolic(inputs[leaf].shape[axis])
    }


def keep_guards_of_code(program: ExportedProgram) -> None:
    """Leave out guards that only say how torch worked out the shape or the memory of an operator's result.

    An operator looks at its operands again when it runs, and complains of what it cannot do. What decided on the graph itself
    are equations, and what the forward asked for.
    """
    environment = next(filter(None, map(_environment, _inputs(program))), None)
    if environment is None:
        return
    environment.guards[:] = [guard for guard in environment.guards if _matters(guard)]
    program._guards_code = torch.export.exported_program._convert_guards_to_code(program.graph_module)
    for symbol in program.range_constraints:  # what narrowed them is a guard, if it matters
        program.range_constraints[symbol] = ValueRanges(0, int_oo)


def _matters(guard: Any) -> bool:
    if isinstance(guard.expr, sympy.Eq):
        return True
    filename = str(getattr(guard.sloc.framework_loc, "filename", ""))
    return not filename.startswith(_OPERATORS) and not (filename.startswith(_CALLS) and 1 in guard.expr.args)


def _inputs(program: ExportedProgram) -> list[Any]:
    """What the user's inputs look like, leaf by leaf."""
    nodes = program.graph.find_nodes(op="placeholder")
    specs = program.graph_signature.input_specs
    pairs = zip(specs, nodes, strict=True)
    return [node.meta.get("val") for spec, node in pairs if spec.kind == InputKind.USER_INPUT]


def _environment(value: Any) -> Any:
    return getattr(getattr(value, "fake_mode", None), "shape_env", None)


def _why(value: Any, axis: int) -> str:
    """Where the forward fixed a size, as far as torch knows."""
    size, environment = int(value.shape[axis]), _environment(value)
    if environment is None:
        return f"the model's forward needs {size} there"
    for guard in environment.guards:
        place = _place(guard.sloc)
        if place and isinstance(guard.expr, sympy.Eq) and size in guard.expr.args:
            sources = [
                s for symbol in guard.expr.free_symbols for s in environment.var_to_sources.get(symbol, ())
            ]
            if any(str(source.name).endswith(f".size()[{axis}]") for source in sources):
                return f"the model's forward needs {size} there, at {place}"
    return f"the model's forward needs {size} there"


def _place(location: Any) -> str | None:
    frame = location.framework_loc
    if location.maybe_user_loc:
        return str(location.maybe_user_loc)
    filename = getattr(frame, "filename", None)
    return f"{filename}:{frame.lineno}" if filename and not filename.startswith(_TORCH) else None
