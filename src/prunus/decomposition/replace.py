"""Put chains of layers in the place of layers, in a copy of the model, and check that they are what was computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.copying import copy_of
from prunus.capture.outputs import only_plain_outputs
from prunus.capture.preserve import buffers_kept, left_as_found, seed_generators
from prunus.decomposition.base import Method
from prunus.decomposition.metric import Metric
from prunus.decomposition.sites import Site
from prunus.decomposition.steps import Step, build, product
from prunus.errors import VerificationError
from prunus.surgery.difference import relative_error
from prunus.surgery.precision import exact_arithmetic

__all__ = ["Replacement", "copy_with", "factored", "require_equal", "same_as_hooked"]

_EXACT = 1e-9


@dataclass(frozen=True, eq=False)
class Replacement:
    """What stands in for one layer.

    Attributes:
        chain: the layers.
        method, ranks: how it was made.
        predicted: root of the mean squared error at the layer's output, relative to the output's spread about its mean, by the
            moments; of the weight, without data.
        error: largest difference of the chain, in float64, from the layer whose weight is the product of its factors.
    """

    chain: nn.Sequential
    method: Method
    ranks: tuple[int, ...]
    predicted: float
    error: float


def factored(
    site: Site, kernel: Tensor, method: Method, ranks: tuple[int, ...], metric: Metric, with_bias: bool
) -> Replacement:
    """The chain for a layer at given ranks.

    Args:
        site: the layer.
        kernel: its kernel, (groups, outputs, inputs, taps) float64.
        method, ranks: how it is factored.
        metric: how errors count.
        with_bias: the chain has a bias even where the layer has none.

    Raises:
        VerificationError: the chain does not compute what the product of its factors says; a defect of prunus.
    """
    steps = method.steps(kernel, site.geometry, ranks, metric)
    made = product(steps, site.geometry)
    was, now = metric.bias_shift(kernel), metric.bias_shift(made)
    layer = site.layer
    bias = None if layer.bias is None else layer.bias.detach().double().cpu()
    if was is not None and now is not None:
        bias = was - now + (0.0 if bias is None else bias)
    if bias is None and with_bias:
        bias = torch.zeros(site.geometry.outputs, dtype=torch.float64)
    error = require_equal(site, steps, made, bias)
    difference = made.sub_(kernel)  # in place: large layers come in copies of hundreds of megabytes
    flags = {
        "requires_grad": layer.weight.requires_grad,
        "bias_grad": (layer.weight if layer.bias is None else layer.bias).requires_grad,
    }
    chain = build(steps, bias, dtype=layer.weight.dtype, device=layer.weight.device, **flags)
    chain.train(layer.training)
    return Replacement(chain, method, ranks, metric.relative(difference, kernel), error)


def require_equal(site: Site, steps: list[Step], made: Tensor, bias: Tensor | None) -> float:
    """Run the chain next to the layer with the multiplied factors as its weight, on noise, in float64.

    Returns:
        The largest difference, relative to the outputs' scale.

    Raises:
        VerificationError: it is more than rounding.
    """
    g = site.geometry
    size = [d * (k - 1) + 3 for d, k in zip(g.dilation, g.kernel, strict=True)]
    if not isinstance(g.padding, str):  # padding by reflection needs as much to reflect
        size = [max(n, p + 2) for n, p in zip(size, g.padding, strict=True)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, g.inputs, *size, dtype=torch.float64, generator=generator)
    chain = build(steps, bias, dtype=torch.float64)
    whole = build([Step(g, made)], bias, dtype=torch.float64)
    with exact_arithmetic([torch.device("cpu")], 0):
        error = relative_error(whole(x), chain(x))
    if not error <= _EXACT:
        raise VerificationError(
            f"{site.path}: the layers that replace it differ by {error:.1e} of its scale from the product of their factors "
            f"(allowed {_EXACT:.0e}). This is a defect of prunus; nothing was changed."
        )
    return error


def copy_with(model: nn.Module, chains: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the model in which the named layers are replaced; their weights are not copied first."""
    memo: dict[int, Any] = {id(model.get_submodule(path)): chain for path, chain in chains.items()}
    copied = copy_of(model, memo)
    for path, chain in chains.items():
        if path:
            copied.set_submodule(path, chain)
    return copied if "" not in chains else chains[""]


def same_as_hooked(captured: Captured, model: nn.Module, chains: Mapping[str, nn.Module]) -> float:
    """Largest relative difference of outputs between the new model and the original whose layers' results are overridden.

    Raises:
        VerificationError: the new model fails, or computes something else.
    """
    original = captured.model
    assert original is not None
    wanted = _outputs(captured, original, chains)
    try:
        got = _outputs(captured, model, {})
    except Exception as error:
        raise VerificationError(
            f"the model with replaced layers fails: {type(error).__name__}: {error}. Leave the layer in question alone with hold."
        ) from error
    if len(wanted) != len(got):
        raise VerificationError("the model with replaced layers returns another number of values")
    pairs = [(a, b) for a, b in zip(wanted, got, strict=True) if isinstance(a, Tensor)]
    return max((relative_error(a, b) for a, b in pairs), default=0.0)


def _outputs(captured: Captured, model: nn.Module, chains: Mapping[str, nn.Module]) -> list[Any]:
    inputs = captured.run_inputs
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (inputs.args, inputs.kwargs))
    with left_as_found(model), buffers_kept(model), torch.no_grad(), only_plain_outputs(model):
        for path, chain in chains.items():
            model.get_submodule(path).register_forward_hook(_result_of(chain), with_kwargs=True)
        seed_generators(0)
        return [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if leaf is not None]


def _result_of(chain: nn.Module) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        return chain(args[0] if args else kwargs["input"])

    return hook
