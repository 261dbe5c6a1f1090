"""Densities: what the definition says, layers that stay dense, and the widths that follow."""

import math

import numpy as np
import pytest
import torch

import prunus
from prunus.allocation import erk_densities
from tests.allocation.nets import layers

SHAPES = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 1, 1), (200, 64), (10, 200)]


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_the_definition(density: float) -> None:
    found = erk_densities(SHAPES, density)
    sizes = [math.prod(shape) for shape in SHAPES]
    assert sum(d * n for d, n in zip(found, sizes, strict=True)) == pytest.approx(density * sum(sizes))
    scales = [d * n / sum(shape) for d, n, shape in zip(found, sizes, SHAPES, strict=True) if d < 1]
    assert scales == pytest.approx([scales[0]] * len(scales)), (
        "what stays is proportional to the sum of the axes"
    )
    # a layer stays dense only if its share would need more weights than it has
    assert all(sum(s) * scales[0] >= n for s, n, d in zip(SHAPES, sizes, found, strict=True) if d == 1)
    assert (found > 0).all() and (found <= 1).all()


def test_by_hand() -> None:
    # 1000 weights and 20 + 50 = 70; 400 and 40: 55 % of 1400 is 770, in shares of 70 to 40
    assert erk_densities([(20, 50), (20, 20)], 0.55).tolist() == pytest.approx(
        [770 * 70 / 110 / 1000, 770 * 40 / 110 / 400]
    )
    # the second would need 1260 * 40 / 110 = 458 of 400: dense, and 860 remain for the first
    assert erk_densities([(20, 50), (20, 20)], 0.9).tolist() == pytest.approx([0.86, 1])


def test_the_ends() -> None:
    assert erk_densities(SHAPES, 0).tolist() == [0] * 5
    assert erk_densities(SHAPES, 1).tolist() == pytest.approx([1] * 5)
    assert erk_densities([], 0.5).tolist() == []


def test_widths_are_roots_of_densities() -> None:
    structure = prunus.analyze(layers(500, 400, 800, 600, 5).eval(), torch.randn(2, 500))
    made = prunus.plan(structure, target=prunus.Target(params=0.3), allocation="erk")
    kept = np.array([len(made.keep[name]) for name in ("0", "2", "4")])
    shapes = [(400, 500), (800, 400), (600, 800)]
    densities = (kept / [400, 800, 600]) ** 2
    relative = densities / [sum(s) / math.prod(s) for s in shapes]
    assert relative.tolist() == pytest.approx([relative[0]] * 3, rel=0.02)
    assert len(set(kept / [400, 800, 600])) == 3
