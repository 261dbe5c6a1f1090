"""What the JSON of a ``.pt2`` file may hold: every value of the type that torch expects, and nothing that torch would run.

The types are torch's own data classes. What is in them beyond numbers is where torch runs things: names become code,
expressions and targets are evaluated, specifications of pytrees import classes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Callable
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from prunus.capture.reading.expressions import SYMBOL, is_size_expression
from prunus.capture.reading.operators import operator_problem

__all__ = ["NotPlainError", "require_plain", "treespec_problem"]

_DEEPEST, _LARGEST = 200, 2**64
_FLOATS = ("Infinity", "-Infinity", "NaN")
_FACTORIES = ("list", "dict", "int", "float", "str", "set", "tuple", "bool")


class NotPlainError(ValueError):
    """What is not plain data, and where."""


def require_plain(kind: Any, value: Any, where: str, depth: int = 0) -> None:
    """Check a value out of JSON against a type of torch's schema.

    Args:
        kind: the type: a data class, a union, a list, a dictionary, a number or a text.
        value: as `json.loads` gives it.
        where: how messages call it.
        depth: how many values it is inside of.

    Raises:
        NotPlainError: it is of another type, or would make torch run something.
    """
    if depth > _DEEPEST:
        raise NotPlainError(f"{where} is nested too deeply")
    kind, optional = _resolved(kind)
    if value is None and optional:
        return
    if isinstance(kind, type) and issubclass(kind, _Union):
        _require_choice(kind, value, where, depth)
    elif dataclasses.is_dataclass(kind):
        _require_fields(kind, value, where, depth)
    elif typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        for item in _typed(list, value, where):
            require_plain(inner, item, where, depth + 1)
    elif typing.get_origin(kind) is dict:
        for key, item in _typed(dict, value, where).items():
            require_plain(typing.get_args(kind)[1], item, f"{where} {key!r}"[:200], depth + 1)
    else:
        _require_atom(kind, value, where)


def _resolved(kind: Any) -> tuple[Any, bool]:
    """A type without annotations, and whether there may be none."""
    if isinstance(kind, str | typing.ForwardRef):
        kind = getattr(schema, kind if isinstance(kind, str) else kind.__forward_arg__)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(each for each in typing.get_args(kind) if each is not type(None)), True
    return kind, False


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, globalns=dict(vars(schema)))


def _typed(kind: Any, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise NotPlainError(f"{where} is {type(value).__name__}, not {kind.__name__}")
    return value


def _require_choice(kind: Any, value: Any, where: str, depth: int) -> None:
    """One of several fields, such as ``{"as_int": 3}``."""
    if len(_typed(dict, value, where)) != 1:
        raise NotPlainError(f"{where} has {len(value)} values, not one")
    ((name, inner),) = value.items()
    if name not in _hints(kind):
        raise NotPlainError(f"{where} is {name!r}, which is none of its kinds")
    if name in _RUNS:
        raise NotPlainError(f"{where} is {_RUNS[name]}")
    require_plain(_hints(kind)[name], inner, where, depth + 1)
    _require_harmless(name, inner, where)


def _require_fields(kind: Any, value: Any, where: str, depth: int) -> None:
    _typed(dict, value, where)
    for field in dataclasses.fields(kind):
        if field.name in value:
            inside = f"{field.name} of {where}" if depth < 3 else where
            require_plain(_hints(kind)[field.name], value[field.name], inside, depth + 1)
            _require_harmless(field.name, value[field.name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise NotPlainError(f"{where} has no {field.name}")


def _require_atom(kind: Any, value: Any, where: str) -> None:
    if isinstance(kind, type) and issubclass(kind, enum.IntEnum):
        if value not in [each.value for each in kind] or isinstance(value, bool):
            raise NotPlainError(f"{where} is {value!r}, which is no {kind.__name__}")
    elif kind is float:
        if type(value) not in (int, float) and value not in _FLOATS:
            raise NotPlainError(f"{where} is {type(value).__name__}, not a number")
    elif kind is int:
        if not -_LARGEST < _typed(int, value, where) < _LARGEST:
            raise NotPlainError(f"{where} is a number of {value.bit_length()} bits")
    else:
        _typed(kind, value, where)


# --- what torch would run


def _require_harmless(field: str, value: Any, where: str) -> None:
    check = _CHECKS.get(field)
    problem = None if check is None or value is None else check(value)
    if problem:
        raise NotPlainError(f"{where} has {problem}")


def _name_problem(value: Any) -> str | None:
    """Names of values become names in Python code that torch writes and runs."""
    if not isinstance(value, str) or not value:
        return None  # torch makes up one
    good = value.isidentifier() and value.isascii() and len(value) <= 1000
    return None if good else f"the name {value[:80]!r}, which is no identifier"


def _names_problem(value: Any) -> str | None:
    return next(filter(None, map(_name_problem, value)), None)


def _path_problem(value: str) -> str | None:
    """Names of modules and tensors are shown to the user."""
    return (
        None
        if value.isprintable() and len(value) <= 1000
        else f"the name {value[:80]!r}, which cannot be printed"
    )


def _expression_problem(value: str) -> str | None:
    return None if is_size_expression(value) else f"the expression {value[:80]!r}"


def _target_problem(value: str) -> str | None:
    problem = operator_problem(value)
    return f"a call of {value[:200]}, {problem}" if problem else None


def _symbols_problem(value: dict[str, Any]) -> str | None:
    """Ranges of symbols: torch counts up to the number in a name."""
    bad = next((name for name in value if not SYMBOL.fullmatch(name)), None)
    return None if bad is None else f"a range of {bad[:80]!r}, which is no size"


def treespec_problem(text: str) -> str | None:
    """What in the specification of a pytree would import classes when torch reads it; None if nothing does."""
    try:
        left: list[Any] = [json.loads(text)]
        while left:
            item = left.pop()
            if isinstance(item, list):
                left += item
            elif isinstance(item, dict):
                if problem := _class_problem(item):
                    return problem
                left += map(_unpacked, item.values())
    except (ValueError, TypeError, RecursionError):
        return "a structure of values that is not JSON"
    return None


def _unpacked(value: Any) -> Any:
    """What a text holds if it is JSON, as contexts in a specification are."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _class_problem(item: dict[str, Any]) -> str | None:
    if "__enum__" in item:
        return "the name of a class to import"
    if "default_factory_module" in item or "default_factory_name" in item:
        known = item.get("default_factory_name") in _FACTORIES
        if item.get("default_factory_module") != "builtins" or not known:
            return "the name of a function to import"
    return None


_RUNS = {
    "as_operator": "a function by its name",
    "as_custom_obj": "a pickled object",
    "custom_obj": "a pickled object",
}
_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "name": _name_problem,
    "as_name": _name_problem,
    "forward_arg_names": _names_problem,
    "tensor_values": _names_problem,
    "sym_int_values": _names_problem,
    "sym_float_values": _names_problem,
    "sym_bool_values": _names_problem,
    "parameter_name": _path_problem,
    "buffer_name": _path_problem,
    "tensor_constant_name": _path_problem,
    "fqn": _path_problem,
    "user_input_name": _path_problem,
    "expr_str": _expression_problem,
    "target": _target_problem,
    "in_spec": treespec_problem,
    "out_spec": treespec_problem,
    "range_constraints": _symbols_problem,
    "use_pickle": lambda value: "a pickled tensor" if value else None,
}
