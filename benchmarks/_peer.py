"""Torch-Pruning, for comparison: in a process of its own, with a limit on time and memory."""

from __future__ import annotations

import copy
import resource
import signal
import time
from typing import Any

import torch
from torch import nn

ROUNDS, MEMORY_BYTES, SECONDS = 3, 12 << 30, 60  # on some models it would take all the memory there is


def torch_pruning_s(
    net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kept: list[nn.Module]
) -> float | None:
    """CPU seconds to build its graph and remove half of the channels, the best of three, or None where the pruned model does not run.

    Run it last: the process's memory is limited from then on.
    """
    try:
        import torch_pruning
    except ImportError:
        return None
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    names = {name for name, module in net.named_modules() if any(module is k for k in kept)}
    times = []
    try:
        for _ in range(ROUNDS):  # the first pays for what is loaded once
            copied = copy.deepcopy(net)
            began = time.process_time()
            importance = torch_pruning.importance.MagnitudeImportance(p=2)
            pruner = torch_pruning.pruner.MagnitudePruner(
                copied,
                args if args else kwargs,
                importance,
                pruning_ratio=0.5,
                ignored_layers=[copied.get_submodule(name) for name in names],
            )
            pruner.step()
            times.append(time.process_time() - began)
        with torch.no_grad():
            copied.eval()(*args, **kwargs)
    except Exception:  # noqa: BLE001  (whatever goes wrong in the peer, it did not work)
        return None
    finally:
        signal.alarm(0)
    return min(times)


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")
