"""Recurrent layers: the zeros that they start from are as many as the hidden units that stay."""

from __future__ import annotations

import torch
from torch import fx

from prunus.structure.rules.recurrent import is_own_zeros
from prunus.surgery.rewrite import Rewriting, argument, rewrites, set_argument


@rewrites("lstm", "gru", "rnn_tanh", "rnn_relu")
def _states(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    states = argument(node, "hx")
    width = run.kept(argument(node, "params")[1]).shape[1]
    for state in states if isinstance(states, (list, tuple)) else [states]:
        if not is_own_zeros(state, node):
            continue
        made = run.new[state]
        set_argument(made, "size", [*argument(made, "size")[:-1], width])
        old = made.meta["val"]
        made.meta["val"] = torch.empty((*old.shape[:-1], width), dtype=old.dtype, device="meta")
