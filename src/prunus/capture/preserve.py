"""Leave a model and the process's random numbers as they were found."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["buffers_kept", "forget_caches", "left_as_found", "random_state_kept", "seed_generators"]


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode inside the block; afterwards undo whatever the block did to it.

    Restored, also when the block raises: the attributes of every submodule (mode, hooks, parameters, buffers,
    and plain lists, dictionaries and sets one level deep), ``requires_grad`` and ``grad`` of the parameters,
    and the state of the random generators of torch, NumPy and Python.

    The mode is set flag by flag and not with ``eval()``: some models override ``train()`` to merge weights.
    """
    modules = [(module, dict(module.__dict__), _containers(module)) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with random_state_kept():
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


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a real forward inside the block writes to buffers; copies them all, so for rare use."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                if not buffer.is_meta and not torch.equal(buffer, value):
                    buffer.copy_(value)


def forget_caches(model: nn.Module, constants: Iterable[Any]) -> bool:
    """Take out of the model's dictionaries the tensors that were captured as constants.

    Some models keep what they compute from their parameters (a table of position biases for each device) in a
    dictionary and fill it when it is empty. Captured full, the parameters would have no part in the graph.

    Returns:
        Whether there were any.
    """
    captured = {id(constant) for constant in constants}
    found = False
    for module in model.modules():
        for name, value in module.__dict__.items():
            if isinstance(value, dict) and name not in ("_parameters", "_buffers"):
                for key in [key for key, item in value.items() if id(item) in captured]:
                    del value[key]
                    found = True
    return found


def _containers(module: nn.Module) -> list[tuple[Any, Any]]:
    return [
        (value, value.copy()) for value in module.__dict__.values() if isinstance(value, dict | list | set)
    ]


def _restore_attributes(
    module: nn.Module, attributes: dict[str, Any], containers: list[tuple[Any, Any]]
) -> None:
    current = module.__dict__
    for name in [name for name in current if name not in attributes]:
        del current[name]
    current.update(attributes)
    for container, content in containers:
        if _identities(container) != _identities(content):
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)


def _identities(container: Any) -> list[tuple[int, ...]]:
    if isinstance(container, dict):
        return [(id(key), id(value)) for key, value in container.items()]
    return [(id(value),) for value in container]


def seed_generators(seed: int) -> None:
    """Seed the generators that are in use.

    `torch.manual_seed` would also note the seed for every kind of device that may come into use one day, once for each call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Undo what the block draws at random, also where it raises."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
