"""Allocation: how many units every group keeps, and which, under a target."""

from prunus.allocation.allocate import Choice, global_rank, uniform
from prunus.allocation.costs import Cost, CostModel
from prunus.allocation.families import Family, find_families, held_by
from prunus.allocation.target import Target

__all__ = [
    "Choice",
    "Cost",
    "CostModel",
    "Family",
    "Target",
    "find_families",
    "global_rank",
    "held_by",
    "uniform",
]
