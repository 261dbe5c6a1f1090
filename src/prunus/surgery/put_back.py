"""Put the parts of a model that was captured in parts back into a copy of the whole."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured, is_symbolic
from prunus.capture.copying import copy_of
from prunus.capture.diagnose import first_line, place_in_model
from prunus.capture.parts import Partial, Parts
from prunus.capture.preserve import buffers_kept, left_as_found
from prunus.capture.shapes import Shapes
from prunus.errors import SurgeryError
from prunus.inputs import Inputs
from prunus.surgery.lift import lift

__all__ = ["put_back"]


def put_back(captured: Captured, small: Captured, own: nn.Module | None, remark: str) -> nn.Module:
    """The user's whole model with small parts, or one that packs sequences, after a run of it on all example inputs.

    Args:
        captured: What was captured of the original, in parts or with sequences at full length.
        small: What the parts were cut to.
        own: The small `Parts` as modules of the user's own classes; without it the parts become graph modules.
        remark: Why it is missing.

    Raises:
        SurgeryError: If the whole does not run with the small parts, no class is left to pack, or a part that is called in
            several ways cannot be of its own class.
    """
    partial = captured.partial
    if partial is not None:
        whole = own.whole if isinstance(own, Parts) else _with_graphs(captured, small, partial)
    elif own is not None:
        whole = own
    else:
        raise SurgeryError(
            f"The model packs sequences, which no graph can hold, and its own class cannot take the smaller parameters: {remark}. "
            "Hold the layers there, or hand padded sequences to the recurrent layers."
        )
    try:
        with torch.no_grad(), left_as_found(whole), buffers_kept(whole):
            for example in partial.examples if partial else (captured.example,):
                args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (example.args, example.kwargs))
                whole(*args, **kwargs)
    except Exception as error:
        raise SurgeryError(
            f"The parts were cut and verified, but the model does not run with them: {first_line(error)} at "
            f"{place_in_model(error) or type(whole).__name__}. Code that was not captured depends on a size inside of "
            "a part: hold the layer that it looks at."
        ) from error
    return whole


def _with_graphs(captured: Captured, small: Captured, partial: Partial) -> nn.Module:
    parts = captured.model
    if not isinstance(parts, Parts):
        raise ValueError("the model was captured as a whole")
    several = sorted({path for path in parts.calls if parts.calls.count(path) > 1})
    if several:
        raise SurgeryError(
            f"{several[0]} is called with inputs of several forms, so no single graph stands for it, and its own class "
            "cannot take the smaller parameters. Hold its layers, or pass keep_class=True."
        )
    instead: dict[int, Any] = {}
    for index, path in enumerate(parts.calls):
        module = lift(_part(parts, captured, small, index))
        module.train(partial.whole.get_submodule(path).training)
        instead[id(partial.whole.get_submodule(path))] = module
    whole = copy_of(partial.whole, instead)
    _tie(whole, partial.whole, set(parts.calls))
    return whole


def _tie(whole: nn.Module, original: nn.Module, paths: set[str]) -> None:
    """Parameters that several modules share are made one again: each part was lifted alone."""
    first: dict[int, str] = {}
    names = set(dict(whole.named_parameters(remove_duplicate=False)))
    for name, parameter in original.named_parameters(remove_duplicate=False):
        if name not in names:
            continue
        earlier = first.setdefault(id(parameter), name)
        if earlier != name:
            holder, _, attribute = name.rpartition(".")
            setattr(whole.get_submodule(holder), attribute, whole.get_parameter(earlier))


def _part(parts: Parts, captured: Captured, small: Captured, index: int) -> Captured:
    """The graph of one call, with names as they are inside of the module that is called."""
    spec, links = small.in_spec.child(0), parts.links[index]
    outputs = small.out_spec.children()
    starts = list(itertools.accumulate((child.num_leaves for child in outputs), initial=0))
    given = list(itertools.accumulate((child.num_leaves for child in spec.children()), initial=0))
    inputs = list(small.inputs[given[index] : given[index + 1]])
    results = list(small.graph.output_node().args[0])  # type: ignore[arg-type]
    sources = {number: results[starts[call] + leaf] for number, (call, leaf) in links.items()}
    cut = _Cut(captured.graph, small.graph, results[starts[index] : starts[index + 1]])
    for number, source in sources.items():
        inputs[number] = cut.take(source, inputs[number])
    path = parts.calls[index]
    graph = cut.graph(inputs, f"{path}.")
    used = {node.name for node in graph.find_nodes(op="placeholder")}
    names = {p: name for p, names in _inside(small, path).items() if p in used for name in names[:1]}
    return small.with_(
        graph=graph,
        tensors={p: tensor for p, tensor in small.tensors.items() if p in names},
        names=names,
        kinds={p: kind for p, kind in small.kinds.items() if p in names},
        aliases={n[0]: n[1:] for p, n in _inside(small, path).items() if p in names and len(n) > 1},
        inputs=tuple(inputs),
        shapes=_shapes(captured, small, inputs, sources),
        in_spec=spec.child(index),
        out_spec=outputs[index],
        run_inputs=Inputs(*small.run_inputs.args[index]),
        model=parts.get_submodule(path),
        partial=None,
    )


def _shapes(captured: Captured, small: Captured, inputs: list[str], sources: dict[int, fx.Node]) -> Shapes:
    """What one call takes: sizes are symbolic in the original graph alone, and right in the small one."""
    before, after = (
        {node.name: node.meta.get("val") for node in each.graph.nodes} for each in (captured, small)
    )
    sizes, dtypes = [], []
    for number, name in enumerate(inputs):
        source = sources[number].name if number in sources else name
        old, new = before.get(source), after.get(source)
        known = isinstance(new, Tensor) and isinstance(old, Tensor) and old.dim() == new.dim()
        dtypes.append(new.dtype if known else None)  # type: ignore[union-attr]
        pairs = zip(old.shape, new.shape, strict=True) if known else ()  # type: ignore[union-attr]
        sizes.append(tuple(None if is_symbolic(was) else int(now) for was, now in pairs))
    return Shapes(tuple(inputs), tuple(dtypes), tuple(sizes))


def _inside(small: Captured, path: str) -> dict[str, tuple[str, ...]]:
    """Placeholder -> the names that its tensor has inside of a module."""
    found = {}
    for placeholder, name in small.names.items():
        every = (name, *small.aliases.get(name, ()))
        found[placeholder] = tuple(n.removeprefix(f"{path}.") for n in every if n.startswith(f"{path}."))
        if not found[placeholder] and small.kinds[placeholder] == "constant":
            found[placeholder] = (name.replace(".", "_"),)
    return {placeholder: names for placeholder, names in found.items() if names}


class _Cut:
    """A piece of a graph, from some values on."""

    def __init__(self, original: fx.Graph, graph: fx.Graph, results: list[Any]) -> None:
        # sizes are symbolic in the original graph alone
        self._original = {node.name: node.meta.get("val") for node in original.nodes}
        self._source = graph
        self._results = results
        self._values: dict[fx.Node, fx.Node] = {}
        self._graph = fx.Graph(owning_module=graph.owning_module)

    def take(self, value: fx.Node, name: str) -> str:
        """Let a value of the whole graph be an input of the piece; the name of its placeholder."""
        made = self._graph.placeholder(name)
        made.meta = {"val": value.meta.get("val")}
        self._values[value] = made
        return made.name

    def graph(self, inputs: list[str], prefix: str) -> fx.Graph:
        """The piece, with modules named from below the prefix on."""
        placeholders = {node.name: node for node in self._source.find_nodes(op="placeholder")}
        taken = {node.name for node in self._values.values()}
        for name in inputs:
            if name not in taken:
                self.take(placeholders[name], name)
        self._take_sizes()
        needed = self._needed()
        for node in self._source.nodes:
            if node in needed and node not in self._values:
                copied = self._graph.node_copy(node, self._values.__getitem__)
                copied.name = node.name
                copied.meta = {**node.meta, "nn_module_stack": _below(node, prefix)}
                self._values[node] = copied
        kept = [self._values[r] if isinstance(r, fx.Node) else r for r in self._results]
        self._graph.output(tuple(kept)).meta = dict(self._source.output_node().meta)
        return self._graph

    def _take_sizes(self) -> None:
        """Read dynamic sizes from the inputs of the piece: the whole graph may have them from another part's."""
        known: dict[str, tuple[fx.Node, int]] = {}
        for source, made in self._values.items():
            value = self._original.get(source.name)
            for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if isinstance(size, torch.SymInt):
                    known.setdefault(str(size), (made, axis))
        for node in self._source.nodes:
            value = self._original.get(node.name)
            if isinstance(value, torch.SymInt) and str(value) in known and node not in self._values:
                read = self._graph.call_function(torch.ops.aten.sym_size.int, known[str(value)])
                read.meta = dict(node.meta)
                self._values[node] = read

    def _needed(self) -> set[fx.Node]:
        """What the results depend on, with writes in place."""
        stack = [r for r in self._results if isinstance(r, fx.Node)]
        needed: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node in needed or node in self._values:
                continue
            needed.add(node)
            stack += node.all_input_nodes
            stack += [user for user in node.users if not user.users and user.op == "call_function"]
        return needed


def _below(node: fx.Node, prefix: str) -> dict[str, tuple[str, Any]]:
    stack = node.meta.get("nn_module_stack") or {}
    return {
        key: (path.removeprefix(prefix), kind)
        for key, (path, kind) in stack.items()
        if path.startswith(prefix)
    }
