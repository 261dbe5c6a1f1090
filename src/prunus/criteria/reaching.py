"""The weights that reach an operator: parameters as they are, or what the graph makes of them (masks, norms, sums)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from prunus.evidence.facing import kind_of
from prunus.evidence.interpret import Pass, ancestors
from prunus.evidence.mixable import MOVES
from prunus.evidence.places import Places, Spot, joined
from prunus.structure import Structure
from prunus.structure.labels import compact, varying
from prunus.structure.value import Value

__all__ = ["Reaching"]

_SAME = MOVES | frozenset(
    "cat stack concat to _to_copy detach lift_fresh_copy expand expand_as permute t numpy_T".split()
)


class Reaching:
    """The values made of parameters alone that operators on activations read.

    Pure movement changes no number: behind it, the parameter itself is what reaches the operator, and nothing is computed.

    Attributes:
        direct: placeholders whose own numbers reach an operator.
        made: nodes whose values do, and which compute something, in the order of the graph.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        captured = structure.captured
        self._inputs = captured.input_dependent()
        self._known = dict(captured.tensors)
        ends = [n for n in captured.graph.nodes if n not in self._inputs and self._inputs & set(n.users)]
        found = {source for node in ends for source in self._sources(node)}
        self.direct = {node.name for node in found if node.op == "placeholder"}
        self.made = [
            n for n in captured.graph.nodes if n in found and n.op == "call_function" and self.named(n)
        ]

    def is_source(self, node: fx.Node) -> bool:
        """Whether a value is made of parameters, and read by one operator alone, just as it is."""
        return list(self._sources(node)) == [node] and len(node.users) == 1

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """Where the numbers of a value come from, through movement alone."""
        if node in self._inputs:
            return
        if _is_movement(node):
            for operand in node.all_input_nodes:
                yield from self._sources(operand)
        else:
            yield node

    def named(self, node: fx.Node) -> list[str]:
        """Names of the parameters that a value is made of, nearest first."""
        captured = self.structure.captured
        names, seen, queue = [], {node}, [node]
        while queue:
            here = queue.pop(0)
            if captured.kinds.get(here.name) == "parameter":
                names.append(captured.names[here.name])
            queue += [n for n in here.all_input_nodes if n not in seen]
            seen.update(here.all_input_nodes)
        return names

    # ------------------------------------------------------------------ numbers
    def tensor(self, node: fx.Node) -> Tensor | None:
        """The numbers of a value that does not depend on the inputs; None where it does, or is no tensor."""
        if node in self._inputs:
            return None
        if node.name not in self._known:
            self._compute({node, *self.made})
        value = self._known.get(node.name)
        return value.detach() if isinstance(value, Tensor) else None

    def _compute(self, wanted: set[fx.Node]) -> None:
        wanted = {node for node in wanted if node.name not in self._known}

        def look(node: fx.Node, value: Any) -> None:
            if node in wanted:
                self._known[node.name] = value

        with torch.no_grad():
            Pass(self.structure.captured, ancestors(wanted) - self._inputs).run({}, look)

    # ------------------------------------------------------------------ where groups lie
    @cached_property
    def _places(self) -> Places:
        return Places(self.structure, self.structure.prunable)

    @cached_property
    def _produced(self) -> np.ndarray:
        produced = np.zeros(self.structure.labels.count, bool)
        for made in self.structure.labels.produced:
            produced[made] = True
        return produced

    @cached_property
    def spots(self) -> dict[str, list[tuple[fx.Node, Spot, bool]]]:
        """Group -> where its units lie in the values of `made`, and whether these positions are made there."""
        found: dict[str, list[tuple[fx.Node, Spot, bool]]] = {}
        for node in self.made:
            for (name, _), (spots, produces) in self._of(node).items():
                found.setdefault(name, []).append((node, joined(spots), produces))
        return found

    def _of(self, node: fx.Node) -> dict[tuple[str, tuple[int, ...]], tuple[list[Spot], bool]]:
        """(group, axes) -> its units there; a factor and what it is multiplied with may both have labels."""
        value, found = self.structure.values.get(node.name), {}
        for track in value.tracks if isinstance(value, Value) and len(value.shape) > 1 else ():
            made = bool(self._produced[compact(track, varying(track)).numpy()].any())
            for number, spot in self._places.of_track(track).items():
                key = (self._places.groups[number].name, spot.axes)
                spots, before = found.get(key, ([], False))
                found[key] = ([*spots, spot], made or before)
        return found


def _is_movement(node: fx.Node) -> bool:
    if node.op != "call_function" or kind_of(node) not in _SAME:
        return False
    return kind_of(node) != "getitem" or _is_movement(node.all_input_nodes[0])
