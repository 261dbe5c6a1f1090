"""The fingerprint tells architectures apart, and nothing but architectures."""

import copy

import pytest
import torch
from torch import Tensor, nn

from prunus.capture import architecture_hash, capture
from tests.capture.running import ConvNet, TiedLanguageModel

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def fingerprint(model: nn.Module, example: object = X) -> str:
    return architecture_hash(capture(model, example))


def test_it_is_a_sha256_and_repeats() -> None:
    first = fingerprint(ConvNet())
    assert len(first) == 64 and int(first, 16) >= 0
    assert fingerprint(ConvNet()) == first


def test_values_of_weights_and_inputs_do_not_count() -> None:
    model = ConvNet()
    before = fingerprint(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert fingerprint(model, X + 1) == before


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_batch_size_does_not_count(size: int) -> None:
    assert fingerprint(ConvNet(), torch.randn(size, 3, 8, 8)) == fingerprint(ConvNet())


def test_mode_and_copies_do_not_count() -> None:
    model = ConvNet()
    assert fingerprint(model.eval()) == fingerprint(copy.deepcopy(model).train())


def changed(what: str) -> nn.Module:
    model = ConvNet()
    if what == "width":
        model.conv1, model.bn1 = nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9)
        model.conv2, model.fc = nn.Conv2d(9, 9, 3, padding=1), nn.Linear(9, 5)
    elif what == "constant":
        model.bn1.eps = 1e-3
    elif what == "dilation":
        model.conv2 = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
    elif what == "operator":
        model.relu = nn.GELU()  # type: ignore[assignment]
    elif what == "dtype":
        return model.double()
    return model


@pytest.mark.parametrize("what", ["width", "constant", "dilation", "operator", "dtype"])
def test_every_change_of_the_architecture_counts(what: str) -> None:
    example = X.double() if what == "dtype" else X
    assert fingerprint(changed(what), example) != fingerprint(ConvNet())


def test_names_of_parameters_count() -> None:
    class Scale(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            self.register_parameter(name, nn.Parameter(torch.ones(3)))

        def forward(self, x: Tensor) -> Tensor:
            return x * getattr(self, self.name)

    assert fingerprint(Scale("a"), torch.ones(2, 3)) != fingerprint(Scale("b"), torch.ones(2, 3))


def test_where_the_same_values_go_counts() -> None:
    class Minus(nn.Module):
        def __init__(self, swap: bool) -> None:
            super().__init__()
            self.swap = swap
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.b - self.a if self.swap else self.a - self.b)

    assert fingerprint(Minus(True), torch.ones(2, 3)) != fingerprint(Minus(False), torch.ones(2, 3))


def test_ties_count() -> None:
    tied, loose = TiedLanguageModel(), TiedLanguageModel()
    loose.head.weight = nn.Parameter(loose.embed.weight.detach().clone())
    example = {"ids": torch.zeros(2, 4, dtype=torch.long)}
    assert fingerprint(tied, example) != fingerprint(loose, example)
