"""Leave a model and the process's random numbers as they were found."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["left_as_found"]


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode inside the block; afterwards undo whatever the block did to it.

    Restored, also when the block raises: the attributes of every submodule (mode, hooks, parameters, buffers,
    and plain lists, dictionaries and sets one level deep), ``requires_grad`` and ``grad`` of the parameters,
    values of buffers that were written to, and the state of the random generators of torch, NumPy and Python.

    The mode is set flag by flag and not with ``eval()``: some models override ``train()`` to merge weights.
    """
    modules = [(module, dict(module.__dict__), _containers(module)) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(b, b._version, b.detach().clone()) for b in model.buffers() if not b.is_inference()]
    with _random_state_kept():
        try:
            for module, _, _ in modules:
                module.training = False
            yield
        finally:
            for module, attributes, containers in modules:
                _restore_attributes(module, attributes, containers)
            for parameter, requires_grad, grad in parameters:
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
                if parameter.grad is not grad:
                    parameter.grad = grad
            with torch.no_grad():
                for buffer, version, value in buffers:
                    if buffer._version != version:
                        buffer.copy_(value)


def _containers(module: nn.Module) -> list[tuple[Any, Any]]:
    return [(value, value.copy()) for value in module.__dict__.values() if isinstance(value, dict | list | set)]


def _restore_attributes(module: nn.Module, attributes: dict[str, Any], containers: list[tuple[Any, Any]]) -> None:
    current = module.__dict__
    for name in [name for name in current if name not in attributes]:
        del current[name]
    current.update(attributes)
    for container, content in containers:
        if _identities(container) != _identities(content):
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


def _identities(container: Any) -> list[tuple[int, ...]]:
    if isinstance(container, dict):
        return [(id(key), id(value)) for key, value in container.items()]
    return [(id(value),) for value in container]


@contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
