"""Wide layers keep less: densities by the Erdős–Rényi rule for kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunus.allocation.budget import Budget, Choice, alive, widest
from prunus.allocation.families import Family
from prunus.allocation.target import Target
from prunus.structure import Structure


def erk(structure: Structure, families: list[Family], target: Target) -> Choice:
    r"""Keep of every group the width that gives its layers the densities of `erk_densities`.

    A layer of density $d$ whose inputs and outputs shrink alike keeps $\sqrt d$ of each; a group keeps the mean of
    the layers that make it. The overall density is the largest that meets the target.

    Raises:
        TargetError: the target is not reachable.

    References:
        Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity,
        arXiv:1707.04780; with kernels, Evci et al., Rigging the Lottery, ICML 2020, arXiv:1911.11134.
    """
    shapes = {
        structure.captured.names[p]: tuple(t.shape)
        for p, t in structure.captured.tensors.items()
        if structure.captured.kinds[p] == "parameter" and t.dim() > 1
    }
    made = [
        [m.parameter for g in f.groups for m in g.members if m.produces and m.parameter in shapes]
        for f in families
    ]
    names = sorted({name for makers in made for name in makers})

    def counts_at(fraction: float) -> list[int]:
        found = erk_densities([shapes[name] for name in names], fraction)
        width = dict(zip(names, np.sqrt(found), strict=True))
        counts = []
        for family, makers in zip(families, made, strict=True):
            share = float(np.mean([width[name] for name in makers])) if makers else float(np.sqrt(fraction))
            counts.append(family.rounded(max(round(share * family.size), 1), "round"))
        return alive(structure, families, counts)

    return widest(Budget(structure, families, target), counts_at)


def erk_densities(shapes: Sequence[tuple[int, ...]], density: float) -> np.ndarray:
    """Share of the weights that each layer keeps, when `density` of all weights stay.

    The weights that stay are proportional to the sum of the sizes of a layer's axes, $T + S + k_h + k_w$. Layers that would
    need more than they have stay dense, and the others are solved for again.

    Args:
        shapes: of the weights, such as (out, in, height, width).
        density: from 0 to 1.

    Returns:
        (layers,) float64 in [0, 1], with sum of densities times sizes equal to `density` of all.
    """
    sizes = np.array([np.prod(shape, dtype=np.int64) for shape in shapes], dtype=float)
    raw = np.array([sum(shape) for shape in shapes], dtype=float) / sizes
    dense = np.zeros(len(shapes), bool)
    while not dense.all():
        scale = (density * sizes.sum() - sizes[dense].sum()) / (raw * sizes)[~dense].sum()
        above = ~dense & (raw * scale > 1)
        if not above.any():
            return np.where(dense, 1.0, raw * scale)
        dense |= above
    return np.ones(len(shapes))
