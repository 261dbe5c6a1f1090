"""Recurrent layers over tokens (N, T, C)."""

import torch
from torch import Tensor, nn

from tests.property.choices import Pick
from tests.property.form import Do, Form, Made

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


def layer(pick: Pick, form: Form) -> Made:
    """One call for all layers and directions; maybe with a learned state, maybe with the last state added."""
    kind = pick.one_of(("lstm", "gru", "rnn"))
    hidden, depth = pick.one_of((4, 6)), pick.one_of((1, 1, 2))
    both, first, bias = pick.one_of((False, True)), pick.one_of((True, False)), pick.one_of((True, False))
    options = {"nonlinearity": pick.one_of(("tanh", "relu"))} if kind == "rnn" else {}
    start, last = pick.one_of((False, False, True)), pick.one_of((False, True))
    directions = 2 if both else 1

    def run(self: Do, x: Tensor) -> Tensor:
        states = None
        if start:
            states = self.start.expand(-1, x.shape[0], -1).contiguous()
            states = (states, states * 0.5) if kind == "lstm" else states
        out, state = self.layer(x if first else x.transpose(0, 1), states)
        out = out if first else out.transpose(0, 1)
        state = state[0] if kind == "lstm" else state
        return out + state[-directions:].transpose(0, 1).flatten(1)[:, None] if last else out

    made = LAYERS[kind](
        form.channels, hidden, depth, bias=bias, batch_first=first, bidirectional=both, **options
    )
    parts = {"start": torch.zeros(depth * directions, 1, hidden)} if start else {}
    name = f"{kind}, start={start}, last={last}"
    return Do(name, run, layer=made, **parts), form.wide(directions * hidden)


def steps(pick: Pick, form: Form) -> Made:
    """A cell, token by token."""
    kind, hidden = pick.one_of(("lstm", "gru", "rnn")), pick.one_of((4, 6))

    def run(self: Do, x: Tensor) -> Tensor:
        state, out = None, []
        for token in x.unbind(1):
            state = self.cell(token, state)
            out.append(state[0] if kind == "lstm" else state)
        return torch.stack(out, 1)

    return Do(f"{kind} step by step", run, cell=CELLS[kind](form.channels, hidden)), form.wide(hidden)


MAKERS = (layer, layer, steps)
