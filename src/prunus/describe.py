"""Example inputs as plain JSON, and back: a plan carries what is needed to capture a fresh model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunus.capture import Captured, Dynamic, output_paths
from prunus.capture.reading.plain import treespec_problem
from prunus.errors import PlanError
from prunus.inputs import Inputs

MAX_VALUES = 1 << 16
MAX_ELEMENTS = 1 << 28


def describe(captured: Captured) -> dict[str, Any]:
    """Shapes and dtypes of the example inputs; the values of integer and boolean tensors, which must be valid to run; and the axes
    that were to be free when the model was captured.
    """
    leaves, spec = pytree.tree_flatten((captured.example.args, captured.example.kwargs))
    free = sorted(list(axis) for axis in captured.shapes.asked)
    return {"structure": pytree.treespec_dumps(spec), "leaves": [_leaf(x) for x in leaves], "free": free}


def outputs_of(captured: Captured) -> dict[str, str]:
    """Which outputs may get narrower or are dropped, each by its path, as the capture was told."""
    if not captured.outputs:
        return {}
    states = zip(output_paths(captured.out_spec), captured.outputs, strict=True)
    return {path or "*": state for path, state in states if state != "keep"}


def asked(described: dict[str, Any]) -> Dynamic:
    """The axes that were to be free when the plan was made; all that can be where it does not say.

    Raises:
        PlanError: the description is damaged.
    """
    free = described.get("free", "auto")
    if free == "auto":
        return "auto"
    pairs = free if isinstance(free, list) else [free]
    if any(not isinstance(pair, list) or [type(number) for number in pair] != [int, int] for pair in pairs):
        raise PlanError(
            "the plan does not say which axes of the inputs are free, as pairs of an input and an axis"
        )
    return frozenset((leaf, axis) for leaf, axis in pairs)


def _leaf(x: Any) -> dict[str, Any]:
    if isinstance(x, Tensor):
        entry: dict[str, Any] = {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
        if not x.is_floating_point() and not x.is_complex() and x.numel() <= MAX_VALUES and not x.is_meta:
            entry["values"] = x.cpu().reshape(-1).tolist()
        return entry
    if x is None or isinstance(x, (bool, int, float, str)):
        return {"value": x}
    return {"unknown": type(x).__name__}


def rebuild(described: dict[str, Any]) -> Inputs:
    """Inputs of the described shapes; floats are drawn at random.

    Raises:
        PlanError: the description is missing or damaged, or cannot be rebuilt from JSON.
    """
    try:
        leaves = [_tensor(entry) for entry in described["leaves"]]
        if problem := treespec_problem(described["structure"]):
            raise ValueError(problem)
        args, kwargs = pytree.tree_unflatten(leaves, pytree.treespec_loads(described["structure"]))
        return Inputs(tuple(args), dict(kwargs))
    except PlanError:
        raise
    except Exception as error:
        raise PlanError(
            f"the plan does not say how to call the model ({type(error).__name__}: {error}): pass example_inputs"
        ) from error


def _tensor(entry: dict[str, Any]) -> Any:
    if "value" in entry:
        return entry["value"]
    if "unknown" in entry:
        raise PlanError(f"the plan cannot describe an input of type {entry['unknown']}: pass example_inputs")
    dtype = getattr(torch, entry["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{entry['dtype']} is no dtype")
    shape = [int(s) for s in entry["shape"]]
    count = 1
    for size in shape:
        count *= size
    if any(s < 0 for s in shape) or count > MAX_ELEMENTS:
        raise ValueError(f"an input of shape {shape}")
    if "values" in entry:
        return torch.tensor(entry["values"], dtype=dtype).reshape(shape)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)
    return torch.zeros(shape, dtype=dtype)
