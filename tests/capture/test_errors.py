"""Every way in which capture can fail says what happened, where, and what to do."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.capture import capture
from prunus.errors import CaptureError, ConfigError, PrunusError, SourceError
from tests.capture.running import ConvNet


def failure(error: type[PrunusError], source: Any, example: Any = None) -> str:
    with pytest.raises(error) as caught:
        capture(source, example)
    return str(caught.value)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        if y.sum() > 0:  # the line that the error has to name
            return y
        return y * 2


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def test_a_forward_that_cannot_be_exported_is_named_by_its_line() -> None:
    text = failure(CaptureError, nn.Sequential(nn.Identity(), Branching()), torch.randn(2, 4))
    assert "The model runs" in text
    assert f"{__file__}:{line_of('the line that the error has to name')} in forward: if y.sum() > 0:" in text
    assert "torch.where" in text and "submodule" in text
    assert len(text) < 1500


def test_inputs_that_do_not_fit_are_told_apart() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = ConvNet()

        def forward(self, image: Tensor) -> Tensor:
            return self.net(image)  # where the inputs break

    text = failure(CaptureError, Outer(), {"image": torch.randn(2, 4, 8, 8)})
    assert "do not fit" in text and "The model runs" not in text
    assert "image: (2, 4, 8, 8) float32 on cpu; parameters on cpu" in text
    assert "running.py" in text, "the innermost line of the model, not of torch"
    assert "expected input" in text


def test_a_missing_argument_does_not_fit() -> None:
    text = failure(CaptureError, nn.Bilinear(3, 3, 3), torch.randn(2, 3))
    assert "do not fit" in text and "input2" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value: float) -> None:
    model = ConvNet()
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = value
        model.fc.bias[1] = value
    text = failure(CaptureError, model, torch.randn(2, 3, 8, 8))
    assert "conv2.weight" in text and "fc.bias" in text and "conv1.weight" not in text


def test_buffers_may_hold_infinities_but_no_nan() -> None:
    class Masked(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, value]))

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.mask).softmax(-1)

    assert capture(Masked(float("-inf")), torch.randn(2, 2)).batch == 2
    assert "mask" in failure(CaptureError, Masked(float("nan")), torch.randn(2, 2))


def test_weights_that_are_never_used_may_be_anything() -> None:
    model = ConvNet()
    model.rest = nn.Parameter(torch.full((3,), float("nan")))
    assert capture(model, torch.randn(2, 3, 8, 8)).batch == 2


def test_a_lazy_module_has_to_run_first() -> None:
    text = failure(CaptureError, nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4))
    assert "0.weight" in text and "Run model(...) once" in text


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_module_is_refused() -> None:
    scripted = torch.jit.trace(nn.Linear(4, 4), torch.randn(2, 4))
    assert "state_dict" in failure(SourceError, scripted, torch.randn(2, 4))


def test_an_output_class_that_torch_does_not_know() -> None:
    @dataclasses.dataclass
    class Result:
        logits: Tensor

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Result:
            return Result(x * 2)

    text = failure(CaptureError, Model(), torch.randn(2, 4))
    assert "register_dataclass" in text and "Result" in text


def test_an_output_object_that_torch_does_not_know() -> None:
    class Result:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Model(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Result]:
            return {"result": Result(x * 2)}

    text = failure(CaptureError, Model(), torch.randn(2, 4))
    assert "register_pytree_node" in text and "Result" in text
    assert isinstance(Model()(torch.ones(1))["result"], Result)


def test_an_input_object_that_torch_does_not_know() -> None:
    class Request:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    class Model(nn.Module):
        def forward(self, request: Request) -> Tensor:
            return request.x * 2

    text = failure(CaptureError, Model(), (Request(torch.randn(2, 4)),))
    assert "register" in text and "Request" in text


def test_a_size_that_depends_on_the_data() -> None:
    class Select(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten().nonzero() * 2

    text = failure(CaptureError, Select(), torch.randn(2, 4))
    assert "nonzero" in text and "depends on the data" in text


@pytest.mark.parametrize("source", [torch.relu, 3, None, {"state": torch.ones(2)}])
def test_what_is_no_model(source: Any) -> None:
    text = failure(SourceError, source, torch.randn(2, 4))
    assert type(source).__name__ in text and "torch.nn.Module" in text


def test_example_inputs_are_needed() -> None:
    assert "example_inputs" in failure(ConfigError, ConvNet())


def test_example_inputs_of_a_strange_type() -> None:
    assert "ndarray" in failure(ConfigError, ConvNet(), torch.randn(2, 3, 8, 8).numpy())
