"""Capture leaves the model and the process as it found them, whatever happens in between."""

import contextlib
import logging
import random
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.capture import capture
from prunus.errors import CaptureError
from tests.capture.running import ConvNet, calls


class Busy(nn.Module):
    """Draws random numbers, stores what it sees, writes to buffers, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ConvNet()
        self.register_buffer("seen", torch.zeros(2))
        self.log: list[Any] = ["start"]
        self.store: dict[str, Any] = {"first": 1}
        self.names = {"a"}
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        np.random.rand()
        self.last = x * torch.rand(())
        self.log.append(x)
        self.store["second"] = x
        self.store["first"] = 2
        self.names.add("b")
        self.seen.add_(1)
        self.net.fc.requires_grad_(False)
        y = self.net(x)
        if self.fail and y.sum() > -1e9:
            raise RuntimeError("told to")
        return y


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that a user can see of a model, with identities in place of values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state: dict[str, Any] = {
        "tensors": {
            name: (
                id(t),
                t.requires_grad,
                id(t.grad) if t.grad is not None else None,
                t.detach().clone().tolist(),
            )
            for name, t in tensors.items()
        }
    }
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            if isinstance(value, dict):
                content: Any = [(k, id(v)) for k, v in value.items()]
            elif isinstance(value, list):
                content = [id(item) for item in value]
            else:
                content = sorted(value) if isinstance(value, set) else id(value)
            state[f"{name}.{key}"] = (id(value), content)
    return state


def random_state() -> tuple[Any, ...]:
    keys = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), keys[1].tolist(), keys[2:]  # type: ignore[union-attr]


def prepared(fail: bool) -> Busy:
    model = Busy()
    model.fail = fail
    model.train()
    model.net.bn1.eval()
    model.net.conv1.weight.requires_grad_(False)
    model.net.conv2.weight.grad = torch.ones_like(model.net.conv2.weight)
    model.net.conv2.register_forward_hook(lambda module, args, out: out.tanh())
    model.net.conv2.register_forward_pre_hook(lambda module, args: None)
    return model


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_found(fail: bool) -> None:
    model = prepared(fail)
    before, numbers = state_of(model), random_state()
    if fail:
        with pytest.raises(CaptureError):
            capture(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    else:
        captured = capture(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        assert "aten.tanh.default" in calls(captured), "the hook must take part"
    after = state_of(model)
    assert {key: (value, after.get(key)) for key, value in before.items() if after.get(key) != value} == {}
    assert set(after) == set(before)
    assert model.training and model.net.fc.training and not model.net.bn1.training
    assert random_state() == numbers


def test_inputs_that_do_not_fit_leave_no_trace_either() -> None:
    model = prepared(fail=False)
    before, numbers = state_of(model), random_state()
    x = torch.ones(2, 5, 8, 8)
    with pytest.raises(CaptureError):
        capture(model, x)
    assert state_of(model) == before
    assert random_state() == numbers
    assert torch.equal(x, torch.ones(2, 5, 8, 8))


def test_the_example_is_not_written_to() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            if x.sum() > 0:
                return x
            return x + 1

    x = torch.ones(2, 3)
    with pytest.raises(CaptureError):
        capture(InPlace(), x)
    assert torch.equal(x, torch.ones(2, 3))


def test_a_user_defined_train_is_not_called() -> None:
    class Merging(ConvNet):
        def train(self, mode: bool = True) -> "Merging":
            with torch.no_grad():
                self.fc.weight.mul_(2)
            return super().train(mode)  # type: ignore[return-value]

    model = Merging()
    before = model.fc.weight.detach().clone()
    capture(model, torch.randn(2, 3, 8, 8))
    assert torch.equal(model.fc.weight, before)


@pytest.mark.parametrize("fail", [False, True])
def test_settings_of_torch_are_put_back(fail: bool) -> None:
    logger = logging.getLogger("torch")
    before = (logger.level, sys.stderr, list(warnings.filters))
    with torch.no_grad():
        with contextlib.suppress(CaptureError):
            capture(ConvNet(), torch.randn(2, 5 if fail else 3, 8, 8))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert (logger.level, sys.stderr, list(warnings.filters)) == before


def test_the_model_still_trains_afterwards() -> None:
    model = ConvNet()
    capture(model, torch.randn(2, 3, 8, 8))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_forward_prints_is_passed_on_and_what_torch_prints_is_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Chatty(nn.Module):
        def __init__(self, fail: bool) -> None:
            super().__init__()
            self.fail = fail

        def forward(self, x: Tensor) -> Tensor:
            sys.stderr.write("hello\n")
            return x + 1 if self.fail and x.sum() > 0 else x * 2

    capture(Chatty(False), torch.ones(2, 3))
    assert capfd.readouterr().err == "hello\n"
    with pytest.raises(CaptureError):
        capture(Chatty(True), torch.ones(2, 3))
    assert set(capfd.readouterr().err.split()) <= {"hello"}, "torch prints the whole graph when it fails"
