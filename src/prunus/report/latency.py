"""How long a forward pass takes, measured so that ratios mean something on a noisy machine."""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunus.alone import alone
from prunus.errors import ConfigError
from prunus.inputs import Inputs, as_inputs

__all__ = ["measure_latency_ms", "measure_many"]

_WARM_RUNS = 3


def measure_latency_ms(module: nn.Module, inputs: Any, repeats: int = 20, threads: int = 1) -> float:
    """Median time of a forward pass in evaluation mode, without gradients.

    Args:
        module: Left as found.
        inputs: Anything that `as_inputs` takes; on the module's device.
        repeats: Timed runs, after a few that warm up.
        threads: Number of CPU threads during the measurement; afterwards as before.

    Returns:
        Milliseconds.

    Raises:
        ConfigError: If ``repeats`` or ``threads`` is less than 1.
    """
    return measure_many({"module": module}, inputs, repeats, threads)["module"]


@alone
def measure_many(
    modules: Mapping[str, nn.Module], inputs: Any, repeats: int = 20, threads: int = 1
) -> dict[str, float]:
    """Median times of several modules on the same inputs.

    The modules take turns, a run each, and the order turns round every time. So whatever else slows the
    machine down falls on all of them, and their ratio means something even where the times themselves do not.

    Args:
        modules: Name -> module; left as found.
        inputs: Anything that `as_inputs` takes; on the modules' device.
        repeats: Timed runs of each module, after a few that warm up.
        threads: Number of CPU threads during the measurement; afterwards as before.

    Returns:
        Name -> milliseconds.

    Raises:
        ConfigError: If ``repeats`` or ``threads`` is less than 1.
    """
    if repeats < 1 or threads < 1:
        raise ConfigError(f"repeats={repeats} and threads={threads}: both have to be at least 1.")
    call = as_inputs(inputs)
    names = list(modules)
    times_ms: dict[str, list[float]] = {name: [] for name in names}
    with _threads(threads), _evaluation(modules), torch.no_grad():
        for turn in range(-_WARM_RUNS, repeats):
            for name in names[::-1] if turn % 2 else names:
                elapsed_ms = _timed_ms(modules[name], call)
                if turn >= 0:
                    times_ms[name].append(elapsed_ms)
    return {name: statistics.median(times) for name, times in times_ms.items()}


def _timed_ms(module: nn.Module, call: Inputs) -> float:
    start = time.perf_counter()
    result = module(*call.args, **call.kwargs)
    _wait(result)
    return (time.perf_counter() - start) * 1e3


def _wait(result: Any) -> None:
    """Wait for the device: a call returns before its kernels are done."""
    for tensor in pytree.tree_leaves(result):
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
            torch.accelerator.synchronize(tensor.device)
            return


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _evaluation(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Evaluation mode flag by flag: some modules merge weights in ``eval()``."""
    flags = [(inner, inner.training) for module in modules.values() for inner in module.modules()]
    for inner, _ in flags:
        inner.training = False
    try:
        yield
    finally:
        for inner, training in flags:
            inner.training = training
