"""One table from operators to rules.

A rule is `rule(run, node, a) -> Value | tuple | number`, where `a` holds the operator's arguments by the names of its
schema, tensors as `Value`s. A family of operators is one file of this package; adding an operator is one line in it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

Rule = Callable[[Any, torch.fx.Node, SimpleNamespace], Any]

RULES: dict[Any, Rule] = {}  # by operator, or by the name of one that is not of torch: "library::name"


def rule(*names: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a rule for all overloads of the named operators of torch, or for one, written `name.overload`.

    Operators of other libraries, or of your own, are named as they were defined, `library::name`; they need not be known yet.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            for op in [name] if "::" in name else overloads(name):
                if op in RULES:
                    raise RuntimeError(f"two rules for {op}")
                RULES[op] = function if not options else _with_options(function, options)
        return function

    return register


def rule_of(target: Any) -> Rule | None:
    """The rule for an operator, if there is one."""
    found = RULES.get(target)
    return found or RULES.get(target._schema.name)


def _with_options(function: Callable[..., Any], options: dict[str, Any]) -> Rule:
    def bound(run: Any, node: torch.fx.Node, a: SimpleNamespace) -> Any:
        return function(run, node, a, **options)

    return bound


def overloads(name: str) -> list[Any]:
    """Overloads of an aten operator; none if this torch does not have it."""
    namespace = torch.ops.aten
    base, _, overload = name.partition(".")
    if not hasattr(namespace, base):
        return []
    packet = getattr(namespace, base)
    wanted = [overload] if overload else packet.overloads()
    return [
        getattr(packet, o)
        for o in wanted
        if o in packet.overloads() and o != "out" and not o.endswith("_out")
    ]
