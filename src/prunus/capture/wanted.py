"""Which outputs of a model keep their shape, which may get narrower, and which are not wanted at all."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from prunus.capture.captured import Captured
from prunus.errors import ConfigError
from prunus.patterns import matches

__all__ = ["STATES", "checked_outputs", "output_paths", "with_outputs"]

STATES = ("keep", "free", "drop")


def output_paths(spec: pytree.TreeSpec) -> list[str]:
    """What each leaf of an output is called: keys, names of fields and indices, joined by dots; empty for a lone tensor."""
    leaves = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    try:
        paths = [path for path, _ in pytree.tree_flatten_with_path(leaves)[0]]
    except ValueError:  # of a class that was registered without names
        return [str(i) for i in range(spec.num_leaves)]
    return [".".join(_key(key) for key in path) for path in paths]


def _key(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def checked_outputs(outputs: Any) -> None:
    """Refuse a request that makes no sense, as far as can be told without the model.

    Raises:
        ConfigError: names all places and words that are none.
    """
    if outputs is None or isinstance(outputs, str):
        outputs = {"*": outputs or "keep"}
    if not isinstance(outputs, Mapping):
        raise ConfigError(
            f"outputs is a {type(outputs).__name__}: pass {{'1': 'free'}} or {{'aux': 'drop'}}, or one word for all outputs"
        )
    problems = [
        f"outputs[{key!r}] is {state!r}: say one of {', '.join(map(repr, STATES))}"
        for key, state in outputs.items()
        if not isinstance(state, str) or state not in STATES
    ] + [
        f"outputs has the key {key!r}: say where it is in what the model returns, such as '1' or 'aux.0'"
        for key in outputs
        if not isinstance(key, str | int) or isinstance(key, bool)
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def with_outputs(captured: Captured, outputs: Mapping[str, str] | str | None) -> Captured:
    """The capture with what the user says of its outputs; what only unwanted ones need is taken out of its graph.

    Args:
        captured: a fresh capture, whose graph is changed.
        outputs: path of an output, the beginning of one, or a glob -> `"keep"`, `"free"` or `"drop"`; later ones win. A single
            word goes for all outputs.

    Raises:
        ConfigError: no such output, no such word, nothing left to return, or a model that is captured in parts.
    """
    checked_outputs(outputs)
    if not outputs:
        return captured
    if captured.partial is not None:
        raise ConfigError(
            "outputs: this model can only be captured in parts, and its outputs are made by code between them: compress "
            "the submodule that makes what you want"
        )
    paths = output_paths(captured.out_spec)
    asked = {"*": outputs} if isinstance(outputs, str) else {str(k): v for k, v in outputs.items()}
    states = _states(paths, asked)
    if "keep" not in states and "free" not in states:
        raise ConfigError(
            f"outputs: all of {', '.join(paths) or 'them'} are dropped; at least one has to stay"
        )
    if "drop" in states:
        captured = _without(captured, [state == "drop" for state in states])
    return captured.with_(outputs=states)


def _states(paths: list[str], asked: Mapping[str, str]) -> tuple[str, ...]:
    states = ["keep"] * len(paths)
    missing = []
    for pattern, state in asked.items():
        hit = [i for i, path in enumerate(paths) if matches(pattern, path)]
        for i in hit:
            states[i] = state
        if not hit:
            near = difflib.get_close_matches(pattern, paths, 1)
            missing.append(f"{pattern!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if missing:
        known = ", ".join(map(repr, paths[:12])) if paths != [""] else "one tensor, which is called '*'"
        raise ConfigError(
            f"outputs: the model returns nothing called {', '.join(missing)}; it returns {known}"
        )
    return tuple(states)


def _without(captured: Captured, dropped: list[bool]) -> Captured:
    """The capture that returns None in place of some outputs, without what only these need."""
    graph = captured.graph
    output = graph.output_node()
    used = {node.name for node in graph.nodes if node.users}
    results: Any = output.args[0]
    output.args = (tuple(None if gone else x for x, gone in zip(results, dropped, strict=True)),)
    live = _live(graph)
    for node in reversed(list(graph.nodes)):
        if node.op != "placeholder" and node not in live:
            graph.erase_node(node)
    gone = {n.name for n in graph.nodes if n.name in captured.tensors and not n.users and n.name in used}
    for node in list(graph.nodes):
        if node.name in gone:
            graph.erase_node(node)

    def left(entries: dict[str, Any]) -> dict[str, Any]:
        return {name: entry for name, entry in entries.items() if name not in gone}

    names = left(captured.names)
    return captured.with_(tensors=left(captured.tensors), names=names, kinds=left(captured.kinds))


def _live(graph: fx.Graph) -> set[fx.Node]:
    """What the outputs need, and what writes into that."""
    live: set[fx.Node] = set()
    writes = [(node, _root(node)) for node in graph.nodes if _written(node) is not None]
    queue = [graph.output_node()]
    while queue:
        node = queue.pop()
        if node not in live:
            live.add(node)
            queue += node.all_input_nodes
        if not queue:
            roots = {_root(each) for each in live}
            queue = [node for node, root in writes if node not in live and root in roots]
    return live


def _root(node: fx.Node) -> fx.Node:
    """The value whose memory a node's value is, as far as operators say so."""
    while node.op == "call_function":
        source = _aliased(node)
        if source is None:
            break
        node = source
    return node


def _aliased(node: fx.Node) -> fx.Node | None:
    if not isinstance(node.target, torch._ops.OpOverload):
        first = node.args[0] if node.args else None  # an entry of a list, such as what a split returns
        return first if isinstance(first, fx.Node) else None
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and isinstance(value, fx.Node):
            return value
    return None


def _written(node: fx.Node) -> fx.Node | None:
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    return _aliased(node) or node
