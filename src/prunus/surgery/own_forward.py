"""The user's own forward, run once on integers that remember which attribute they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.copying import copy_of
from prunus.inputs import Inputs
from prunus.surgery.attributes import trace_slots
from prunus.surgery.precision import exact_arithmetic
from prunus.surgery.record import Recording, record

__all__ = ["recorded_forward"]


def recorded_forward(model: nn.Module, captured: Captured) -> Recording:
    """One forward of a copy whose integers remember where they come from."""
    constants = (tensor for name, tensor in captured.tensors.items() if captured.kinds[name] == "constant")
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *constants)}
    copied = copy_of(model, shared)
    for module in copied.modules():
        module.training = False
    trace_slots(copied)
    inputs = captured.run_inputs
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), (inputs.args, inputs.kwargs))
    with exact_arithmetic(list({tensor.device for tensor in captured.tensors.values()}), 0):
        return record(copied, Inputs(args, kwargs))
