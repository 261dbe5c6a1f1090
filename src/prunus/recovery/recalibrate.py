"""Batch normalizations with the statistics of what they see now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.alone import alone
from prunus.capture.copying import copy_of
from prunus.errors import ConfigError
from prunus.evidence.forms import batches_of
from prunus.inputs import Inputs

__all__ = ["recalibrate"]


@alone
def recalibrate(model: nn.Module, data: Iterable[Any]) -> nn.Module:
    """Estimate the running statistics of all batch normalizations anew, from one pass without gradients.

    Each layer normalizes by the statistics of the batch during the pass. Afterwards its running mean is the mean over all
    values that it has seen, and its running variance their unbiased variance about that: batches of different sizes count by
    their size. Weights do not change.

    Args:
        model: any module; it is left as it is.
        data: batches: a tensor, a tuple of positional arguments, a dictionary of keywords, or `prunus.Inputs`; in any of the
            forms that `prunus.plan` lists. As many samples as possible: with fewer than a few hundred the estimates are worse
            than what they replace.

    Returns:
        A copy, in the mode of the model. A model without batch normalization comes back as it is.

    Raises:
        ConfigError: no model, no batches, or a layer has seen a single value for each channel.

    References:
        Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, ECCV 2020, arXiv:2007.02491.

    Example:
        >>> import torch, prunus
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
        >>> again = prunus.recalibrate(net, [torch.randn(64, 3, 8, 8)])
        >>> again.training, bool((again[1].running_var != net[1].running_var).all())
        (False, True)
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: pass a torch.nn.Module, not a {type(model).__name__}")
    if data is None:
        raise ConfigError("data is missing: pass batches of what the model takes")
    batches = batches_of(data)
    copied = copy_of(model)
    layers = {
        name: module
        for name, module in copied.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not layers:
        return copied
    modes = {module: module.training for module in copied.modules()}
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in layers}
    handles = [module.register_forward_pre_hook(_counter(sums[name])) for name, module in layers.items()]
    kept = {name: (module.momentum, module.num_batches_tracked) for name, module in layers.items()}
    count = 0
    try:
        copied.eval()
        for module in layers.values():
            module.train()
            module.momentum = 0.0  # the pass itself writes nothing
        with torch.no_grad():
            for batch in batches:
                _call(copied, batch)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
        for name, module in layers.items():
            module.momentum, module.num_batches_tracked = kept[name]
        for module, training in modes.items():
            module.training = training
    if not count:
        raise ConfigError("data is empty: pass batches of what the model takes")
    for name, module in layers.items():
        _settle(name, module, *sums[name])
    return copied


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Inputs):
        model(*batch.args, **batch.kwargs)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


def _counter(sums: list[Any]) -> Any:
    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].transpose(0, 1).flatten(1).double()
        sums[0] += x.shape[1]
        sums[1] = sums[1] + x.sum(1)
        sums[2] = sums[2] + x.square().sum(1)

    return count


def _settle(name: str, module: _BatchNorm, count: int, total: Tensor, squares: Tensor) -> None:
    if not count:
        return  # never called
    if count < 2:
        raise ConfigError(
            f"{name} has seen a single value for each channel, which has no variance: pass more data"
        )
    assert module.running_mean is not None and module.running_var is not None
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0) * (count / (count - 1))
    with torch.no_grad():
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)
