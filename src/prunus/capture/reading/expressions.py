"""Sizes as expressions in a file: torch lets sympy evaluate them as Python, so only small arithmetic passes."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from math import prod
from typing import NamedTuple

__all__ = ["SYMBOL", "is_size_expression"]

SYMBOL = re.compile(r"[A-Za-z_]{1,32}\d{0,6}")
_LONGEST, _DEEPEST, _MOST_NODES = 20_000, 60, 2_000
_BITS, _TERMS, _POWER = 4096, 512, 8
_SUMS = frozenset(["Add"])
_POWERS = frozenset("Pow PowByNatural FloatPow".split())
_SHIFTS = frozenset("LShift RShift".split())
_OTHER = frozenset(
    "Integer Float Rational Mod PythonMod FloorDiv CeilDiv CleanDiv IntTrueDiv FloatTrueDiv ModularIndexing Where "
    "Max Min Abs Eq Ne Equality Unequality Lt Le Gt Ge StrictLessThan StrictGreaterThan LessThan GreaterThan And Or Not "
    "Piecewise ExprCondPair Tuple floor ceiling sqrt CeilToInt FloorToInt TruncToInt TruncToFloat RoundToInt "
    "RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator".split()
)
_NAMES = frozenset(["true", "false", "oo", "int_oo"])
_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.UAdd, ast.USub, ast.Not, ast.And, ast.Or,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip


class _RefusedError(Exception):
    """No small arithmetic on sizes."""


class _Cost(NamedTuple):
    """How large what an expression amounts to can get.

    Attributes:
        bits: of a number in it.
        terms: of the sum that it is when multiplied out, as simplifying does.
    """

    bits: int
    terms: int


@lru_cache(maxsize=4096)
def is_size_expression(text: str) -> bool:
    """Whether a text is arithmetic on sizes that cannot take long, nor make large numbers.

    Powers have small constant exponents, and the numbers and the sums that multiplying out gives are bounded.
    """
    if len(text) > _LONGEST:
        return False
    try:
        _cost(ast.parse(text, mode="eval").body, _DEEPEST, [_MOST_NODES])
    except (_RefusedError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _cost(node: ast.expr, depth: int, left: list[int]) -> _Cost:
    left[0] -= 1
    if depth == 0 or left[0] < 0:
        raise _RefusedError
    if isinstance(node, ast.Constant):
        return _number(node.value)
    if isinstance(node, ast.Name):
        return _symbol(node.id)
    if isinstance(node, ast.Call):
        return _call(node, depth - 1, left)
    return _bounded(_operation(node, depth - 1, left))


def _operation(node: ast.expr, depth: int, left: list[int]) -> _Cost:
    """What Python's own operators amount to."""
    match node:
        case ast.BinOp(left=a, op=op, right=b):
            kinds, operands = [op], [a, b]
        case ast.UnaryOp(op=op, operand=a):
            kinds, operands = [op], [a]
        case ast.BoolOp(op=op, values=operands):
            kinds = [op]
        case ast.Compare(left=a, ops=kinds, comparators=rest):
            operands = [a, *rest]
        case ast.Tuple(elts=operands):
            kinds = []
        case _:
            raise _RefusedError
    if not all(isinstance(kind, _OPERATORS) for kind in kinds):
        raise _RefusedError
    costs = [_cost(operand, depth, left) for operand in operands]
    if kinds and isinstance(kinds[0], ast.Pow):
        return _power(costs[0], operands[1])
    if kinds and isinstance(kinds[0], ast.Mult | ast.Div):
        return _product(costs)
    return _sum(costs)


def _call(node: ast.Call, depth: int, left: list[int]) -> _Cost:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name == "Symbol":
        return _new_symbol(node)
    if name == "Float":
        return _float(node)
    if node.keywords or name not in _SUMS | _POWERS | _SHIFTS | _OTHER | {"Mul"}:
        raise _RefusedError
    costs = [_cost(argument, depth, left) for argument in node.args]
    if name in _POWERS | _SHIFTS:
        if len(costs) != 2:
            raise _RefusedError
        return _bounded(_power(costs[0], node.args[1], shift=name in _SHIFTS))
    if name == "Mul":
        return _bounded(_product(costs))
    return _bounded(_sum(costs) if name in _SUMS else _Cost(sum(each.bits for each in costs), 1))


def _new_symbol(node: ast.Call) -> _Cost:
    """``Symbol('s0', integer=True)``: a name, and assumptions that are true or false."""
    plain = all(
        isinstance(word.value, ast.Constant) and type(word.value.value) is bool for word in node.keywords
    )
    match node.args:
        case [ast.Constant(value=str(name))] if plain and all(word.arg for word in node.keywords):
            return _symbol(name)
    raise _RefusedError


def _symbol(name: str) -> _Cost:
    if name not in _NAMES and (not SYMBOL.fullmatch(name) or not name[-1].isdigit()):
        raise _RefusedError
    return _Cost(64, 1)


def _number(value: object) -> _Cost:
    if type(value) is int and value.bit_length() <= 64:
        return _Cost(max(value.bit_length(), 1), 1)
    if type(value) in (float, bool):
        return _Cost(64, 1)
    raise _RefusedError


def _float(node: ast.Call) -> _Cost:
    """``Float('0.5', precision=53)``, as sympy prints numbers."""
    match node:
        case ast.Call(
            args=[ast.Constant(value=number)], keywords=[] | [ast.keyword("precision", ast.Constant(53))]
        ):
            if re.fullmatch(r"[-+]?[.\d]{1,400}(e[-+]?\d{1,4})?", str(number)):
                return _Cost(64, 1)
    raise _RefusedError


def _power(base: _Cost, exponent: ast.expr, *, shift: bool = False) -> _Cost:
    number = _constant(exponent)
    if number is None or abs(number) > (63 if shift else _POWER):
        raise _RefusedError
    if shift:
        return _Cost(base.bits + abs(number), 1)
    times = max(abs(number), 1)
    return _bounded(_Cost(base.bits * times, base.terms**times))


def _constant(node: ast.expr) -> int | None:
    """The whole number that an expression is, or the one below for fractions such as ``Rational(1, 2)``."""
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            number = _constant(inner)
            return None if number is None else -number
        case ast.Call(func=ast.Name(id="Integer"), args=[inner]):
            return _constant(inner)
        case ast.Call(func=ast.Name(id="Rational"), args=[inner, _]):
            return _constant(inner)
    return None


def _product(costs: list[_Cost]) -> _Cost:
    return _bounded(_Cost(sum(each.bits for each in costs), prod(each.terms for each in costs)))


def _sum(costs: list[_Cost]) -> _Cost:
    return _Cost(
        max((each.bits for each in costs), default=1) + len(costs), sum(each.terms for each in costs)
    )


def _bounded(cost: _Cost) -> _Cost:
    if cost.bits > _BITS or cost.terms > _TERMS:
        raise _RefusedError
    return cost
