"""A patch times the kernel is the layer's output, for every kind of layer."""

from __future__ import annotations

import torch
from torch import nn

from prunus.decomposition.geometry import geometry_of, kernel_of
from prunus.decomposition.moments import Sums
from prunus.decomposition.patches import patch_rows
from tests.decomposition.layers import grid, input_for, layer_of


def test_patches_times_kernel_are_the_output() -> None:
    torch.manual_seed(0)
    for case in grid():
        layer = layer_of({**case, "bias": False})
        geometry, x = geometry_of(layer), input_for(layer)
        with torch.no_grad():
            wanted = layer(x)
            rows = patch_rows(x, geometry)
            kernel = kernel_of(layer.weight, geometry).flatten(2)
            got = (rows @ kernel.mT).permute(0, 2, 1).reshape(geometry.outputs, len(x), -1).transpose(0, 1)
        torch.testing.assert_close(got, wanted.flatten(2), rtol=1e-10, atol=1e-10, msg=str(case))


def test_drawn_patches_are_some_of_all() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=2)
    geometry, x = geometry_of(layer), torch.randn(3, 4, 9, 9)
    every = {tuple(row.tolist()) for row in patch_rows(x, geometry)[1]}
    some = patch_rows(x, geometry, 20, torch.Generator().manual_seed(0))
    assert some.shape == (2, 20, 18)
    found = {tuple(row.tolist()) for row in some[1]}
    assert found <= every and len(found) == 20


def test_sums_are_second_moments() -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    geometry = geometry_of(layer)
    sums = Sums(geometry)
    batches = [torch.randn(3, 4, 8, 8) + 1 for _ in range(3)]
    for x in batches:
        sums.add(x, layer(x))
    rows = patch_rows(torch.cat(batches), geometry).double()
    metric = sums.metric(centered=False)
    torch.testing.assert_close(metric.second, rows.mT @ rows / rows.shape[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metric.mean, rows.mean(1), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        out = torch.cat([layer(x) for x in batches]) - layer.bias[:, None, None]
    energy = float(out.square().sum()) / (out.numel() / out.shape[1])
    assert abs(metric.energy(kernel_of(layer.weight, geometry)) / energy - 1) < 1e-4
