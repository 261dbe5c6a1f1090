"""Modules that are not yet, or not any more, networks of ordinary weights: each is refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from prunus.errors import CaptureError, SourceError
from prunus.inputs import Inputs

__all__ = ["on_the_device_of", "require_ordinary", "require_values"]

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_PACKED = ("bitsandbytes.", "torchao.")
_PREPARED = ("FakeQuantize", "Observer")


def require_ordinary(model: nn.Module) -> None:
    """Refuse what has no weights that could be cut.

    Raises:
        CaptureError: weights without a shape.
        SourceError: a model that is prepared for quantization, quantized, or sharded; names the first such module.
    """
    for path, module in model.named_modules():
        for is_kind, said in _KINDS:
            if is_kind(module):
                where = repr(path) if path else "The model"
                raise SourceError(f"{where} is a {type(module).__name__}: {said}")
    for name, tensor in _tensors(model):
        if is_lazy(tensor):
            raise CaptureError(
                f"{name} has no shape yet, because its module is lazy. Run model(...) once on real inputs "
                "first."
            )
        if tensor.is_quantized or type(tensor).__module__.startswith(_PACKED):
            raise SourceError(f"{name} is a quantized tensor ({type(tensor).__name__}): {_FLOAT_FIRST}")
        if type(tensor).__name__ == "DTensor":
            raise SourceError(f"{name} is a DTensor: {_WHOLE_FIRST}")


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _is_prepared(module: nn.Module) -> bool:
    if isinstance(module, torch.ao.quantization.FakeQuantizeBase | torch.ao.quantization.ObserverBase):
        return True
    own = not type(module).__module__.startswith("torch.nn.")
    return own and type(module).__name__.endswith(_PREPARED) and not list(module.parameters())


def _is_quantized(module: nn.Module) -> bool:
    place = type(module).__module__
    return place.startswith(_QUANTIZED) or (place.startswith(_PACKED) and bool(list(module.parameters())))


def _is_sharded(module: nn.Module) -> bool:
    return type(module).__name__ in ("FullyShardedDataParallel", "DeepSpeedEngine")


_FLOAT_FIRST = (
    "its weights are packed whole numbers, from which no channel can be cut. Prune the model before it is quantized, and "
    "quantize what comes back."
)
_WHOLE_FIRST = (
    "each process holds a part of the weights only. Gather them into a plain module (the full state_dict, loaded into "
    "the model's own class), and pass that."
)
_KINDS: tuple[tuple[Callable[[nn.Module], bool], str], ...] = (
    (
        _is_prepared,
        "the model is prepared for quantization, and what observes or rounds its weights holds every channel. Prune the "
        "model before that, and prepare what comes back; or take the trained weights over into the model's own class.",
    ),
    (_is_quantized, _FLOAT_FIRST),
    (_is_sharded, _WHOLE_FIRST),
)


def require_values(tensors: dict[str, Tensor], names: dict[str, str]) -> None:
    """Refuse weights on the meta device, where something is to be computed from them.

    Raises:
        SourceError: names the first of them.
    """
    empty = [names[placeholder] for placeholder, tensor in tensors.items() if tensor.is_meta]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise SourceError(
            f"{empty[0]}{more} on the meta device: they have shapes, and no values to choose by or to cut. prunus.analyze "
            "works on such a model; to compress it, build it on a real device and load its weights."
        )


def on_the_device_of(model: nn.Module, example: Inputs) -> Inputs:
    """The inputs on the meta device, if that is where the model is.

    Raises:
        SourceError: a part of the model only is there.
    """
    empty = {name: tensor.is_meta for name, tensor in _tensors(model)}
    if not any(empty.values()):
        return example
    if not all(empty.values()):
        require_values(dict(_tensors(model)), {name: name for name in empty})

    def moved(leaf: Any) -> Any:
        return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

    args, kwargs = pytree.tree_map(moved, (example.args, example.kwargs))
    return Inputs(args, kwargs)
