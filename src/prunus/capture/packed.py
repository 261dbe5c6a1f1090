"""Packed sequences, captured as though all sequences were as long as the longest.

Packing leaves out the steps behind the end of each sequence, so sizes depend on the lengths, which no export follows. Which channels
belong together does not depend on them: packed data is (steps, channels). So structure and surgery are found with every step kept, and
the result, which is the user's own class, packs as the original does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.capture.flow import run_once
from prunus.inputs import Inputs

__all__ = ["FullLengths", "packs"]

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


class FullLengths(TorchFunctionMode):
    """While active, packing keeps every step of every sequence. Exact where all lengths are the longest.

    Attributes:
        packed: Whether anything was packed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.packed = False
        self._sizes: dict[int, tuple[Tensor, Any, Any]] = {}  # batch_sizes -> itself, steps, sequences

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "_pack_padded_sequence":
            return self._pack(*args, **(kwargs or {}))
        known = [self._sizes[id(arg)] for arg in args[:2] if id(arg) in self._sizes]
        if known:
            _, steps, sequences = known[0]
            if name == "_pad_packed_sequence":
                return _pad(steps, sequences, args[0], *args[2:])
            if name in _RECURRENT:
                data, _, hx, *settings = args
                out, *states = func(data.unflatten(0, (steps, sequences)), hx, *settings, False)
                return out.flatten(0, 1), *states
            if name == "__getitem__" and args[1] == 0:
                return sequences
        return func(*args, **(kwargs or {}))

    def _pack(self, padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        self.packed = True
        first = padded.transpose(0, 1) if batch_first else padded
        steps, sequences = first.shape[:2]
        batch_sizes = torch.full((steps,), sequences, dtype=torch.int64, device="cpu")
        self._sizes[id(batch_sizes)] = batch_sizes, steps, sequences
        return first.flatten(0, 1), batch_sizes


def _pad(
    steps: Any, sequences: Any, data: Tensor, batch_first: bool, value: float, total: int
) -> tuple[Tensor, Tensor]:
    padded = data.unflatten(0, (steps, sequences))
    if total > steps:
        padded = nn.functional.pad(padded, [0, 0] * (padded.dim() - 1) + [0, total - steps], value=value)
    lengths = torch.full((sequences,), steps, dtype=torch.int64, device="cpu")
    return padded.transpose(0, 1) if batch_first else padded, lengths


def packs(model: nn.Module, example: Inputs) -> bool:
    """Whether a real forward packs sequences, and also runs with all of them at full length."""
    mode = FullLengths()
    try:
        run_once(model, example, mode)
    except Exception:  # noqa: BLE001  the model's forward may raise anything
        return False
    return mode.packed
