"""TorchScript modules inside of a model."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import CaptureError

HALF = prunus.Target(channels=0.5)


class Gate(nn.Module):
    """Decides by attributes, sizes and flags, has submodules, and a parameter under two names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.times = 2
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.again = self.scale
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, factor: float = 0.5) -> Tensor:
        y = self.norm(self.conv(x))
        for _ in range(self.times):
            y = torch.relu(y * self.scale + self.again) * factor
        if self.training:
            y = y + 1
        return self.drop(y)


class Around(nn.Module):
    def __init__(self, gate: nn.Module, width: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList([gate])
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gates[0](x).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, make: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.embed = make(nn.Sequential(nn.Linear(4, 12), nn.Tanh()).eval())
        self.lstm, self.head = nn.LSTM(12, 10, batch_first=True), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0])


def scripted(module: nn.Module) -> nn.Module:
    return torch.jit.script(module)


def traced(module: Gate) -> nn.Module:
    module.again = nn.Parameter(torch.ones(8, 1, 1))  # tracing refuses shared parameters
    return torch.jit.trace(module, torch.rand(2, 3, 7, 7))  # type: ignore[return-value]


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "script": (lambda: Around(scripted(Gate(8).eval()), 8), torch.rand(2, 3, 7, 7)),
    "trace": (lambda: Around(traced(Gate(8).eval()), 8), torch.rand(2, 3, 7, 7)),
    "sequence": (lambda: Recurrent(scripted), torch.rand(2, 5, 4)),
}

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated


@pytest.mark.parametrize("name", MODELS)
def test_a_scripted_submodule_is_followed(name: str) -> None:
    torch.manual_seed(0)
    make, x = MODELS[name]
    model = make().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    identities = [id(parameter) for parameter in model.parameters()]
    result = prunus.compress(model, x, target=HALF)
    assert result.report.form == "graph" and "TorchScript" in result.report.form_reason
    assert result.report.after.params < 0.7 * result.report.before.params
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert result.model(torch.cat([x, x, x])).shape == model.eval()(torch.cat([x, x, x])).shape


def test_what_stays_computes_the_same() -> None:
    torch.manual_seed(0)
    model, x = Recurrent(scripted).eval(), torch.rand(2, 5, 4)
    weight: Tensor = model.lstm.weight_hh_l0  # type: ignore[assignment]
    with torch.no_grad():
        model.head.weight[:, 5:] = 0
        weight[:, 5:] = 0
    structure = prunus.analyze(model, x)
    (hidden,) = [group for group in structure.groups if group.size == 10 and not group.held]
    plan = prunus.plan(structure, method=prunus.ByIndex(remove={hidden.name: [5, 6, 7, 8, 9]}))
    small = prunus.apply(model, plan).model
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))


def test_inside_of_a_model_that_is_captured_in_parts() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.more = Around(scripted(Gate(8).eval()), 8), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return self.more(y) if float(y.mean()) > -100 else y

    torch.manual_seed(0)
    model, x = Decides().eval(), torch.rand(2, 3, 7, 7)
    result = prunus.compress(model, x, target=HALF)
    assert result.report.after.params < 0.7 * result.report.before.params
    assert result.model(x).shape == (2, 3)
    assert isinstance(model.inner.gates[0], torch.jit.ScriptModule)


def test_the_class_cannot_be_kept() -> None:
    model = Recurrent(scripted)
    untouched = copy.deepcopy(model.state_dict())
    with pytest.raises(CaptureError, match="embed is a TorchScript module"):
        prunus.compress(model, torch.rand(2, 5, 4), target=HALF, keep_class=True)
    assert all(torch.equal(value, untouched[key]) for key, value in model.state_dict().items())
