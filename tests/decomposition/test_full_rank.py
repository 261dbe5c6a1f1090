"""At full rank the chain is the layer, for every kind of layer; and at any rank it is what its factors multiply out to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.decomposition import CP, SVD, Method, SpatialSVD, Tucker
from prunus.decomposition.geometry import dense_weight, geometry_of, kernel_of
from prunus.decomposition.metric import Metric
from prunus.decomposition.steps import build, product
from tests.decomposition.layers import grid, input_for, layer_of

METHODS = [SVD(), SVD("pointwise"), Tucker(), CP(), CP(separable=True), SpatialSVD()]
CASES = grid()


def chain(layer: nn.Module, method: Method, ranks: tuple[int, ...], metric: Metric | None = None):
    geometry = geometry_of(layer)
    kernel = kernel_of(layer.weight, geometry)
    steps = method.steps(kernel, geometry, ranks, metric or Metric())
    return build(steps, layer.bias, dtype=torch.float64), product(steps, geometry), geometry


def moments(layer: nn.Module) -> Metric:
    geometry = geometry_of(layer)
    size = geometry.group_inputs
    rows = torch.randn(geometry.groups, 50, size, dtype=torch.float64) @ torch.randn(size, size).double()
    return Metric(rows.mT @ rows / 50, rows.mean(1))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_full_rank_is_the_layer(method: Method) -> None:
    torch.manual_seed(0)
    checked = 0
    for number, case in enumerate(CASES):
        layer = layer_of(case)
        geometry = geometry_of(layer)
        if method.refusal(geometry):
            continue
        x = input_for(layer)
        with torch.no_grad():
            wanted = layer(x)
            metric = moments(layer) if number % 2 else Metric()
            made, _, _ = chain(layer, method, method.full(geometry), metric)
            got = made(x)
        assert got.shape == wanted.shape, case
        error = float((got - wanted).abs().max() / wanted.abs().max())
        assert error < 1e-5, (case, error)
        checked += 1
    assert checked > 40


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_chain_is_the_layer_of_its_product(method: Method) -> None:
    torch.manual_seed(1)
    for case in CASES:
        layer = layer_of(case)
        geometry = geometry_of(layer)
        if method.refusal(geometry):
            continue
        ranks = tuple(min(max(1, full // 2), 4) for full in method.full(geometry))
        made, kernel, _ = chain(layer, method, ranks)
        x = input_for(layer)
        with torch.no_grad():
            got = made(x)
            layer.weight.copy_(dense_weight(kernel, geometry))
            wanted = layer(x)
        error = float((got - wanted).abs().max() / wanted.abs().max())
        assert error < 1e-10, (case, error)


def test_linear_layers() -> None:
    torch.manual_seed(2)
    for inputs, outputs in ((5, 9), (9, 5), (7, 7)):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        x = input_for(layer)
        made, _, _geometry = chain(layer, SVD(), SVD().full(geometry_of(layer)))
        torch.testing.assert_close(made(x), layer(x), rtol=1e-10, atol=1e-10)
        assert [type(part) for part in made] == [nn.Linear, nn.Linear]
        assert made[0].bias is None and made[1].bias is not None
