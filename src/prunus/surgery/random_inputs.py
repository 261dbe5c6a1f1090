"""Random inputs of the form of the example."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.inputs import Inputs

__all__ = ["random_inputs", "side_by_side"]


def random_inputs(captured: Captured, seed: int) -> Inputs:
    """Inputs like ``captured.run_inputs``, with random numbers.

    Floating point tensors become normally distributed at the example's scale (its root mean square; 1 if that
    is zero). Integers and booleans keep the example's values, which are valid indices and masks, and so do
    floating point tensors of zeros and ones, which are masks too.
    """
    generator = torch.Generator().manual_seed(seed)

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        wide = value.detach().abs().to(torch.float64)
        if (
            value.is_floating_point()
            and len(wide.unique()) == 2
            and bool(((value == 0) | (value == 1)).all())
        ):
            return value
        scale = float(wide[wide.isfinite()].square().mean().sqrt()) if wide.isfinite().any() else 1.0
        kind = torch.complex128 if value.is_complex() else torch.float64
        noise = torch.randn(value.shape, generator=generator, dtype=kind)
        return (noise * (scale or 1.0)).to(device=value.device, dtype=value.dtype)

    args, kwargs = pytree.tree_map(leaf, (captured.run_inputs.args, captured.run_inputs.kwargs))
    return Inputs(args, kwargs)


def side_by_side(captured: Captured, noise: Inputs) -> Inputs | None:
    """The example and random inputs as one batch, where the captured batch is the example twice; else None.

    Args:
        captured: The network.
        noise: Random inputs of the form of ``captured.run_inputs``.
    """
    if captured.partial:
        return None  # the example is that of the whole, whose inputs are others
    mixed, told_apart = [], False
    leaves = (pytree.tree_leaves((x.args, x.kwargs)) for x in (captured.example, captured.run_inputs, noise))
    for given, run, other in zip(*leaves, strict=True):
        if not isinstance(run, Tensor) or torch.equal(run, other):
            mixed.append(run)
        elif len(run) == 2 and len(given) == 1:
            mixed.append(torch.cat((run[:1], other[1:])))
            told_apart = True
        else:
            return None
    spec = pytree.tree_structure((captured.run_inputs.args, captured.run_inputs.kwargs))
    return Inputs(*pytree.tree_unflatten(mixed, spec)) if told_apart else None
