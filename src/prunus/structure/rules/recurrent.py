"""Recurrent layers: a hidden unit leaves with its rows in all gates, its column in the recurrent weight, and its output.

One call holds all layers and directions, and keeps them equally wide: which units leave is for each of them to say, how
many is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from prunus.structure.labels import along, compact, varying
from prunus.structure.rules.contraction import contract
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
ZEROS = ("aten::zeros", "aten::new_zeros")


@dataclass(frozen=True)
class Cell:
    """The parameters of one layer in one direction: weights for the input and for the state, then biases."""

    input_weight: Value
    state_weight: Value
    biases: tuple[Value, ...]

    @property
    def width(self) -> int:
        """Number of hidden units."""
        return self.state_weight.shape[1]

    @property
    def parameters(self) -> tuple[Value, ...]:
        return (self.input_weight, self.state_weight, *self.biases)


@rule("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def recurrent(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Input (steps, samples, features) or (samples, steps, features); states (layers * directions, samples, width)."""
    gates = GATES[_name(node)]
    states = list(a.hx) if isinstance(a.hx, (list, tuple)) else [a.hx]
    given: list[Any] = list(node.args[1]) if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    directions = 2 if a.bidirectional else 1
    cells = list(_cells(a, a.num_layers * directions))
    if not _is_plain(cells, gates):
        return _held(
            run, node, [a.input, *states, *a.params], "is part of a recurrent layer with projections"
        )
    steps = run.hold(node, a.input, {0, 1}, "is a step or a sample of a recurrent layer")
    x = Value(a.input.shape, tuple(steps))
    units: list[Tensor] = []
    for layer in range(a.num_layers):
        mine = cells[layer * directions : (layer + 1) * directions]
        found = [_hidden(run, node, x, cell, gates) for cell in mine]
        if any(labels is None for labels in found):
            reason = "is as wide as a layer of which nothing can be removed"
            return _held(run, node, [x, *states, *a.params], reason)
        units += found  # type: ignore[arg-type]
        wide = (*x.shape[:2], sum(len(labels) for labels in found))  # type: ignore[arg-type]
        x = Value(wide, (along(torch.cat(found), (2,), wide),))  # type: ignore[arg-type]
    shape = states[0].shape
    state = Value(shape, (_stacked(units, shape),))
    if len(units) > 1:
        run.labels.grid(state.tracks[0], node.name)
        for labels in units:  # a layer or direction never leaves as a whole
            run.labels.cut(labels.numpy(), node.name)
    for value, source in zip(states, given, strict=True):
        if not is_own_zeros(source, node):
            kept = run.hold(node, value, {0, 1}, "is a layer, a direction or a sample of a recurrent layer")
            run.meet(node, shape, state, Value(shape, tuple(kept)), ignore=frozenset({0, 1}))
    return (x, *(state for _ in states))


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def step(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """One step of one layer: input (samples, features), states (samples, width)."""
    gates = GATES[_name(node).removesuffix("_cell")]
    states = list(a.hx) if isinstance(a.hx, (list, tuple)) else [a.hx]
    cell = Cell(a.w_ih, a.w_hh, tuple(bias for bias in (a.b_ih, a.b_hh) if bias is not None))
    everything = [a.input, *states, *cell.parameters]
    if not _is_plain([cell], gates):
        return _held(
            run, node, everything, "is part of a recurrent layer with weights that are made otherwise"
        )
    tracks = run.hold(node, a.input, {0}, "is a sample of a recurrent layer")
    x = Value((1, *a.input.shape), tuple(track.unsqueeze(0) for track in tracks))
    labels = _hidden(run, node, x, cell, gates)
    if labels is None:
        return _held(run, node, everything, "is as wide as a layer of which nothing can be removed")
    shape = states[0].shape
    state = Value(shape, (along(labels, (1,), shape),))
    for value in states:
        run.meet(node, shape, state, value)
    return tuple(state for _ in states) if len(states) > 1 else state


def is_own_zeros(source: Any, node: fx.Node) -> bool:
    """Whether a state is made of zeros for this layer alone: surgery makes fewer."""
    schema = getattr(source.target, "_schema", None)
    return schema is not None and schema.name in ZEROS and set(source.users) == {node}


def _name(node: fx.Node) -> str:
    return node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]


def _cells(a: SimpleNamespace, count: int) -> Iterator[Cell]:
    each = len(a.params) // count
    for i in range(count):
        first, second, *biases = a.params[i * each : (i + 1) * each]
        yield Cell(first, second, tuple(biases))


def _is_plain(cells: list[Cell], gates: int) -> bool:
    """No projection of the state, and nothing that lies across rows and columns of a weight."""
    rows = gates * cells[0].width
    plain = all(p.shape[0] == rows for cell in cells for p in cell.parameters)
    return plain and all(len(varying(t)) < 2 for cell in cells for p in cell.parameters for t in p.tracks)


def _held(run: Any, node: fx.Node, values: list[Value], reason: str) -> Any:
    for value in values:
        for track in value.tracks:
            run.labels.hold(track, reason, node.name)
    return run.solid(node)


def _hidden(run: Any, node: fx.Node, x: Value, cell: Cell, gates: int) -> Tensor | None:
    """(width,) labels of the hidden units of one cell; None where they cannot leave."""
    if cell.width == 1:
        return None
    rows = [part for value in cell.parameters for part in _by_gate(value, gates)]
    columns = Value(
        (cell.width,), tuple(compact(t, (1,)) for t in cell.state_weight.tracks if 1 in varying(t))
    )
    tracks = run.meet(node, (cell.width,), *rows, columns)
    for value in (cell.input_weight, cell.state_weight):
        for track in value.tracks:
            if 0 in varying(track):
                run.labels.produce(track)
    if len(tracks) != 1:
        for track in tracks:
            run.labels.hold(track, "is a hidden unit that some parameter cannot lose", node.name)
        return None
    contract(run, node, x, "tbk", cell.input_weight, "nk", "tbn")
    wide = (*x.shape[:2], cell.width)
    contract(run, node, Value(wide, (along(tracks[0], (2,), wide),)), "tbk", cell.state_weight, "nk", "tbn")
    return tracks[0]


def _by_gate(value: Value, gates: int) -> list[Value]:
    """The rows of every gate."""
    width = value.shape[0] // gates
    lines = [compact(track, (0,)).reshape(gates, width) for track in value.tracks if 0 in varying(track)]
    return [Value((width,), tuple(line[gate] for line in lines)) for gate in range(gates)]


def _stacked(units: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    if len(units) == 1:
        return along(units[0], (2,), shape)
    return along(torch.stack(units), (0, 2), shape)
