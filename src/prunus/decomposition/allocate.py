"""Ranks for all layers under one target: least loss for the cost, as a knapsack over what each layer offers."""

from __future__ import annotations

import itertools

import numpy as np

from prunus.decomposition.choices import Choices
from prunus.errors import TargetError

__all__ = ["allocate_ranks", "damage"]

_SHOWN = 5


def damage(lost: np.ndarray) -> np.ndarray:
    """What a loss counts: small ones as they are, the loss of a whole layer without limit, as nothing after it can make up for it."""
    return -np.log1p(-np.minimum(lost, 1 - 1e-6))


def allocate_ranks(layers: list[Choices], unit: str, fixed: float, budget: float) -> dict[str, int]:
    """Choose one entry of each layer so that costs stay within a budget and the sum of the damages is small.

    The steps along each layer's convex hull are taken in the order of damage per cost, which is optimal up to the last step; then
    each layer in turn moves to the entry of least damage that what is left of the budget allows.

    Args:
        layers: what each offers.
        unit: of the budget.
        fixed: cost of everything else.
        budget: for all together.

    Returns:
        Path -> index of its entry.

    Raises:
        TargetError: even the cheapest entries together cost more.
    """
    costs = [each.cost(unit) for each in layers]
    damages = [damage(each.lost) for each in layers]
    spent = fixed + sum(float(cost[0]) for cost in costs)
    chosen = np.zeros(len(layers), int)
    steps = [
        (slope, layer, entry)
        for layer, (cost, bad) in enumerate(zip(costs, damages, strict=True))
        for slope, entry in _hull(cost, bad)
    ]
    steps.sort()
    for _, layer, entry in steps:
        if spent <= budget:
            break
        spent += float(costs[layer][entry] - costs[layer][chosen[layer]])
        chosen[layer] = entry
    if spent > budget:
        raise TargetError(_unreachable(layers, costs, unit, spent, budget))
    _repair(costs, damages, chosen, budget - spent)
    return {each.path: int(entry) for each, entry in zip(layers, chosen, strict=True)}


def _hull(cost: np.ndarray, bad: np.ndarray) -> list[tuple[float, int]]:
    """Entries on the lower convex hull from the first one down to the cheapest, each with its damage per cost saved."""
    order = np.lexsort((bad, cost))[::-1]  # expensive first
    hull: list[int] = [0]
    for entry in order:
        if cost[entry] >= cost[0]:
            continue
        while len(hull) > 1 and _slope(cost, bad, hull[-1], entry) <= _slope(cost, bad, hull[-2], hull[-1]):
            hull.pop()
        if cost[entry] < cost[hull[-1]]:
            hull.append(int(entry))
    return [(_slope(cost, bad, one, two), two) for one, two in itertools.pairwise(hull)]


def _slope(cost: np.ndarray, bad: np.ndarray, one: int, two: int) -> float:
    saved = float(cost[one] - cost[two])
    return float(bad[two] - bad[one]) / saved if saved > 0 else float("inf")


def _repair(costs: list[np.ndarray], damages: list[np.ndarray], chosen: np.ndarray, room: float) -> None:
    """Spend what is left of the budget where it helps most."""
    while True:
        best_gain, best = 1e-15, None
        for layer, (cost, bad) in enumerate(zip(costs, damages, strict=True)):
            extra = cost - cost[chosen[layer]]
            gain = np.where(extra <= room, bad[chosen[layer]] - bad, -np.inf)
            entry = int(gain.argmax())
            if gain[entry] > best_gain:
                best_gain, best = float(gain[entry]), (layer, entry, float(extra[entry]))
        if best is None:
            return
        layer, entry, extra_cost = best
        chosen[layer] = entry
        room -= extra_cost


def _unreachable(
    layers: list[Choices], costs: list[np.ndarray], unit: str, reached: float, budget: float
) -> str:
    stuck = [each.path for each, cost in zip(layers, costs, strict=True) if len(cost) == 1]
    said = f"no ranks reach {budget:,.0f} {unit}: with the least of every layer it is {reached:,.0f}"
    if stuck:
        more = f" and {len(stuck) - _SHOWN} more" if len(stuck) > _SHOWN else ""
        said += f"; nothing pays in {', '.join(stuck[:_SHOWN])}{more}"
    return said
