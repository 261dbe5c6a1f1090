"""Weights that reach the graph as constants are the parameters on whose memory they are."""

import pytest
import torch
from torch import Tensor, nn

import prunus


class Variable:
    """A weight in an object of a library's own."""

    def __init__(self, value: nn.Parameter) -> None:
        self.value = value


class Variables(nn.Module):
    """Its forward knows variables; torch knows their values."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((8, 16), (16,), (16, 12), (12,), (12, 3))
        self.variables = [Variable(nn.Parameter(torch.randn(*shape) / 3)) for shape in shapes]
        self.values = nn.ParameterList([variable.value for variable in self.variables])

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = (variable.value for variable in self.variables)
        return torch.relu(torch.relu(x @ a + b) @ c + d) @ e


class Detached(nn.Module):
    """Computes with the data of its layer, held in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.held = [self.a.weight.data, self.a.bias.detach()]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(nn.functional.linear(x, *self.held)))


class Turned(nn.Module):
    """Holds the transposed weight of one layer, and a buffer's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("scale", torch.rand(16) + 0.5)
        self.held = {"weight": self.a.weight.data.t(), "scale": self.get_buffer("scale").detach()}

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(x @ self.held["weight"] + self.a.bias) * self.held["scale"])


@pytest.mark.parametrize("make", [Variables, Detached, Turned])
def test_constants_on_the_memory_of_parameters_are_these(make: type[nn.Module]):
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(4, 8)
    assert "constant" not in prunus.analyze(model, x).captured.kinds.values()
    result = prunus.compress(model, x, target=prunus.Target(channels=0.5))
    before, after = result.report.before, result.report.after
    assert after.params < 0.6 * before.params and type(result.model) is make
    assert sum(p.numel() for p in result.model.parameters()) == after.params


@pytest.mark.parametrize("make", [Variables, Detached, Turned])
def test_the_memory_is_shared_in_the_result_too(make: type[nn.Module]):
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(4, 8)
    small = prunus.compress(model, x, target=prunus.Target(channels=0.5)).model
    before = small(x)
    with torch.no_grad():
        next(small.parameters()).mul_(2)
    assert not torch.allclose(small(x), before)


def test_a_constant_of_its_own_stays_one():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.shift = nn.Linear(8, 16), nn.Linear(16, 3), (torch.randn(16),)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + self.shift[0])

    assert list(prunus.analyze(Shifted(), torch.randn(4, 8)).captured.kinds.values()).count("constant") == 1
