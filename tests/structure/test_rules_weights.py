"""Weights that the forward makes: a gain times a direction, divided by a spectral norm, standardized."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import prunus
from tests.property.chain import prune
from tests.property.choices import Seeded
from tests.property.form import Do
from tests.structure.families import conv, free, held, image, network, pruned


def in_line(self: Do, x: Tensor) -> Tensor:
    return self.last(self.second(self.first(x).relu()).relu())


def convs(wrap: Any, **options: Any) -> dict[str, nn.Module]:
    return {
        "first": wrap(nn.Conv2d(3, 8, 3), **options),
        "second": wrap(nn.Conv2d(8, 6, 2), **options),
        "last": wrap(conv(6, 2), **options),
    }


def linears(wrap: Any, **options: Any) -> dict[str, nn.Module]:
    sizes = {"first": (3, 8), "second": (8, 6), "last": (6, 2)}
    return {name: wrap(nn.Linear(*size), **options) for name, size in sizes.items()}


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("layers", [convs, linears])
def test_weight_norm(layers: Any, dim: int | None) -> None:
    """Both axes are free whatever the norm runs over: the gain makes up for it."""
    x = image() if layers is convs else torch.randn(2, 3)
    structure = pruned(network(in_line, x, **layers(parametrizations.weight_norm, dim=dim)))
    assert list(free(structure).values()) == [8, 6]


def test_weights_that_stay_keep_their_values() -> None:
    made = network(in_line, image(), **convs(parametrizations.weight_norm))
    result = prune(made, Seeded(1))
    inputs, rows = (torch.from_numpy(kept) for kept in result.kept.values())
    assert len(inputs) < 8
    g, v = (
        result.module.get_parameter(f"second.parametrizations.weight.original{i}").detach() for i in range(2)
    )
    expected = made.model.get_submodule("second").weight.detach()[rows][:, inputs]  # type: ignore[index]
    torch.testing.assert_close(torch._weight_norm(v, g, 0).to(expected.dtype), expected)


def test_weight_norm_in_the_class_of_the_model() -> None:
    model = nn.Sequential(*linears(parametrizations.weight_norm).values())
    result = prunus.compress(model, torch.randn(2, 3), target=prunus.Target(channels=0.5))
    assert result.report.form == "class"
    assert result.model[1].weight.shape == (3, 4)  # type: ignore[index]


def test_a_gain_that_has_other_uses() -> None:
    """It cannot make up for inputs that leave without changing what else it does."""

    def forward(self: Do, x: Tensor) -> Tensor:
        weight = torch._weight_norm(self.v, self.g, 0)
        return self.last(F.linear(self.first(x).relu(), weight) + self.g.flatten())

    structure = pruned(
        network(
            forward,
            torch.randn(2, 3),
            first=nn.Linear(3, 8),
            v=torch.randn(6, 8),
            g=torch.rand(6, 1),
            last=nn.Linear(6, 2),
        )
    )
    assert free(structure) == {"v": 6}
    assert "gain has other uses" in held(structure)["first"]


def test_the_norm_next_to_the_weight() -> None:
    """The inner form of the operator returns both; who uses the norm needs all of the inputs."""

    def forward(self: Do, x: Tensor) -> Tensor:
        weight, norm = torch.ops.aten._weight_norm_interface(self.v, self.g, 0)
        x = F.linear(self.first(x).relu(), weight)
        return self.last(x + norm.flatten() if self.uses else x)

    for uses in (False, True):
        parts = {
            "first": nn.Linear(3, 8),
            "v": torch.randn(6, 8),
            "g": torch.rand(6, 1),
            "last": nn.Linear(6, 2),
        }
        structure = pruned(network(forward, torch.randn(2, 3), **parts, uses=uses))
        assert sorted(free(structure).values()) == ([6] if uses else [6, 8])


@pytest.mark.parametrize("layers", [convs, linears])
def test_spectral_norm(layers: Any) -> None:
    x = image() if layers is convs else torch.randn(2, 3)
    structure = pruned(network(in_line, x, **layers(parametrizations.spectral_norm)))
    assert list(free(structure).values()) == [8, 6]


class Standardized(nn.Conv2d):
    """The weights of every output have mean 0 and variance 1, taken in one of two ways."""

    def __init__(self, channels: int, out: int, kernel: int, fused: bool) -> None:
        super().__init__(channels, out, kernel)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
            weight = weight.reshape_as(self.weight)
        else:
            variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
            weight = (self.weight - mean) / (variance + 1e-5).sqrt()
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize("fused", [True, False])
def test_standardized_weights(fused: bool) -> None:
    parts = {
        "first": Standardized(3, 8, 3, fused),
        "second": Standardized(8, 6, 2, fused),
        "last": conv(6, 2),
    }
    structure = pruned(network(in_line, image(), **parts))
    assert free(structure) == {"first": 8, "second": 6}
