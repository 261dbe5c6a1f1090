"""Layers without a bias get one where that helps, and everything else knows of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import prunus
from tests.recovery.test_recover import error


class Gated(nn.Module):
    """Two gated blocks without any bias, as in current language models."""

    def __init__(self, width: int = 12, hidden: int = 24) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width, bias=False)
        self.gate = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in range(2))
        self.head = nn.Linear(width, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for gate, up, down in zip(self.gate, self.up, self.down, strict=True):
            x = x + down(functional.relu(gate(x)) * (1 + up(x)))
        return self.head(x)


class Asking(nn.Module):
    """Goes another way once a layer has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24, bias=False), nn.Linear(24, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(functional.relu(self.first(x)))
        return y if self.second.bias is None else y * 2


class Reading(Asking):
    """Uses the weight itself, so that a bias would never be added."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.relu(self.first(x)), self.second.weight)


def rows(batches: int = 4, count: int = 128) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(6, 6, generator=generator)
    return [torch.randn(count, 6, generator=generator) @ mixing + 1 for _ in range(batches)]


def compressed(model: nn.Module, allow_bias: bool = True, **more: Any) -> prunus.Result:
    data = rows()
    target = prunus.Target(macs=0.4)
    return prunus.compress(
        model, data[0][:2], target=target, data=data, method="l2", allow_bias=allow_bias, **more
    )


@pytest.fixture
def model() -> Gated:
    torch.manual_seed(0)
    return Gated().eval()


def test_an_offset_is_made_up_for(model: Gated) -> None:
    plain, given = compressed(model, allow_bias=False), compressed(model)
    biases = given.plan.biases
    assert biases and not plain.plan.biases
    assert isinstance(given.model, Gated) and isinstance(plain.model, Gated)
    assert {f"{path}.bias" for path in biases} == given.model.state_dict().keys() - model.state_dict().keys()
    assert plain.model.state_dict().keys() == model.state_dict().keys()
    assert error(model, given.model, rows()) < 0.9 * error(model, plain.model, rows())
    assert given.report.recovery and given.report.recovery["biases"] == biases
    assert given.report.after.params == sum(p.numel() for p in given.model.parameters())
    assert all(p.requires_grad for p in given.model.parameters())
    assert "given a bias" in str(given.report) and "given a bias" not in str(plain.report)


def test_nobody_gets_one_unasked(model: Gated) -> None:
    data = rows()
    result = prunus.compress(model, data[0][:2], target=prunus.Target(macs=0.4), data=data, method="l2")
    assert not result.plan.biases and result.model.state_dict().keys() == model.state_dict().keys()


def test_an_export_has_them(model: Gated, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = compressed(model)
    folder = result.save(tmp_path / "out", onnx=True)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    x = rows()[0]
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(got), result.model(x), atol=1e-4)


def test_the_plan_makes_the_same_architecture_again(model: Gated) -> None:
    result = compressed(model)
    plan = prunus.Plan.from_json(result.plan.to_json())
    assert plan == result.plan
    torch.manual_seed(5)
    fresh = prunus.apply(Gated().eval(), plan)
    assert fresh.plan == plan and isinstance(fresh.model, Gated)
    fresh.model.load_state_dict(result.model.state_dict())
    assert error(result.model, fresh.model, rows()) < 1e-12
    again = prunus.apply(model, plan, data=rows())
    assert error(result.model, again.model, rows()) < 1e-9
    graph = prunus.apply(torch.export.export(Gated().eval(), (rows()[0],)), plan, verify=False).model
    assert graph.state_dict().keys() == result.model.state_dict().keys()


def test_a_saved_model_has_them(model: Gated, tmp_path: Path) -> None:
    result = compressed(model)
    folder = result.save(tmp_path / "out")
    loaded = prunus.load(folder)
    assert loaded.state_dict().keys() == result.model.state_dict().keys()
    assert error(result.model, loaded, rows()) < 1e-12
    again = prunus.apply(Gated().eval(), prunus.Plan.load(folder / "plan.json")).model
    again.load_state_dict(prunus.load_weights(folder / "model.safetensors"))
    assert error(result.model, again, rows()) < 1e-12


def test_a_second_step_goes_on_from_there(model: Gated) -> None:
    first = compressed(model)
    both = prunus.decompose(first, method="svd", ranks={"embed": 3})
    replayed = prunus.apply(model, prunus.Plan.from_json(both.plan.to_json()))
    replayed.model.load_state_dict(both.model.state_dict())
    assert error(both.model, replayed.model, rows()) < 1e-12


@pytest.mark.parametrize("cls", [Asking, Reading])
def test_a_bias_never_costs_the_class(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = cls().eval()
    result = compressed(model)
    assert isinstance(result.model, cls) and not result.plan.biases
    assert result.report.recovery and result.report.recovery["repairs"]
    assert error(model, result.model, rows()) < 1


def test_convolutions_get_them_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 12, 3, bias=False), nn.ReLU(), nn.Conv1d(12, 4, 3, padding="same", bias=False)
    ).eval()
    data = [torch.randn(32, 2, 10) + 1 for _ in range(4)]
    result = prunus.compress(
        model, data[0][:2], target=prunus.Target(macs=0.5), data=data, method="l2", allow_bias=True
    )
    assert result.plan.biases == ("2",) and result.model[2].bias.shape == (4,)  # type: ignore[index, union-attr]


@pytest.mark.parametrize("biases", [("nowhere",), ("head.0",)])
def test_a_bias_that_cannot_be_given_is_named(model: Gated, biases: tuple[str, ...]) -> None:
    import dataclasses

    plan = dataclasses.replace(compressed(model, recover=False).plan, biases=biases)
    with pytest.raises(prunus.PlanError, match=f"gives {biases[0]} a bias"):
        prunus.apply(model, plan)


def test_a_list_of_something_else_is_a_damaged_plan(model: Gated) -> None:
    text = compressed(model).plan.to_json().replace('"biases": [', '"biases": [3,')
    with pytest.raises(prunus.PlanError, match="biases"):
        prunus.Plan.from_json(text)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_gets_one_too(groups: int) -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(12, 4, 2, stride=2, groups=groups, bias=False)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), up).eval()
    with torch.no_grad():
        model[0].bias += 1  # what is lost has a mean
    data = [torch.randn(16, 3, 6, 6) for _ in range(4)]
    result = prunus.compress(model, data[0], target=prunus.Target(macs=0.5), data=data, allow_bias=True)
    assert result.plan.biases == ("2",)
    assert result.model[2].bias.shape == (4,)
    plain = prunus.compress(model, data[0], target=prunus.Target(macs=0.5), data=data)
    assert error(model, result.model, data) < error(model, plain.model, data)
    again = prunus.apply(model, result.plan)
    again.model.load_state_dict(result.model.state_dict())
    assert torch.equal(again.model(data[0]), result.model(data[0]))
