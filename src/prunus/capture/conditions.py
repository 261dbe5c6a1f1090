"""Conditions on sizes as plain data: read from the code that torch writes for them, evaluated without running it."""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["Expression", "holds", "parsed", "said", "sizes_in"]

Expression = int | str | tuple[Any, ...]
"""A number, the name of a size such as ``"x.2"``, or an operation and its operands."""

_LONGEST = 10_000
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "/": operator.truediv,
    "%": operator.mod,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "max": torch.sym_max,
    "min": torch.sym_min,
}
_BINARY = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Div: "/",
    ast.Mod: "%",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_CALLS = {"torch.sym_max": "max", "torch.sym_min": "min", "max": "max", "min": "min"}


def parsed(code: str, names: Mapping[str, str]) -> tuple[Expression, ...] | None:
    """The conditions that a guard of torch states, all of which must hold; None for one that is no arithmetic on sizes.

    Args:
        code: Such as ``L['x'].size()[2] % 32 == 0``. It is read, never run.
        names: What the code calls a size, such as ``L['x'].size()[2]`` or ``s77``, and its name here.
    """
    if len(code) > _LONGEST:
        return None
    try:
        tree = ast.parse(code.strip(), mode="eval").body
        parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        return tuple(_read(part, names) for part in parts)
    except (SyntaxError, ValueError, KeyError, RecursionError, MemoryError):
        return None


def _read(node: ast.expr, names: Mapping[str, str]) -> Expression:
    name = names.get(ast.unparse(node)) if isinstance(node, ast.Subscript | ast.Name) else None
    if name is not None:
        return name
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp):
        return (_BINARY[type(node.op)], _read(node.left, names), _read(node.right, names))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return ("-", 0, _read(node.operand, names))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return (_BINARY[type(node.ops[0])], _read(node.left, names), _read(node.comparators[0], names))
    if isinstance(node, ast.BoolOp):
        kind = "and" if isinstance(node.op, ast.And) else "or"
        return (kind, *(_read(value, names) for value in node.values))
    if isinstance(node, ast.Call) and len(node.args) == 2 and not node.keywords:
        return (_CALLS[ast.unparse(node.func)], *(_read(argument, names) for argument in node.args))
    raise ValueError(ast.dump(node)[:80])


def holds(condition: Expression, sizes: Mapping[str, Any]) -> bool:
    """Whether a condition is met by sizes, which may be symbolic: then torch makes it a condition of the new graph."""
    try:
        return bool(_value(condition, sizes))
    except ZeroDivisionError:
        return False


def _value(expression: Expression, sizes: Mapping[str, Any]) -> Any:
    if isinstance(expression, str):
        return sizes[expression]
    if not isinstance(expression, tuple):
        return expression
    kind, *operands = expression
    if kind == "and":
        return all(holds(operand, sizes) for operand in operands)
    if kind == "or":
        return any(holds(operand, sizes) for operand in operands)
    return _OPERATIONS[kind](*(_value(operand, sizes) for operand in operands))


def sizes_in(expression: Expression) -> set[str]:
    """Names of the sizes that an expression is made of."""
    if isinstance(expression, str):
        return {expression}
    operands = expression[1:] if isinstance(expression, tuple) else ()
    return set().union(*map(sizes_in, operands))


def said(expression: Expression) -> str:
    """An expression as text: sizes as ``x.size(2)``."""
    if isinstance(expression, str):
        name, _, axis = expression.rpartition(".")
        return f"{name}.size({axis})"
    if not isinstance(expression, tuple):
        return str(expression)
    kind, *operands = expression
    parts = [
        f"({said(x)})" if isinstance(x, tuple) and x[0] not in ("max", "min") else said(x) for x in operands
    ]
    return f"{kind}({', '.join(parts)})" if kind in ("max", "min") else f" {kind} ".join(parts)
