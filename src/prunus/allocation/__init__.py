"""Allocation: how many units every group keeps, and which, under a target."""

from prunus.allocation.allocate import ALLOCATORS, allocate, allocator_of, require_reachable
from prunus.allocation.budget import Budget, Choice, choice_of
from prunus.allocation.by_index import choice_by_index
from prunus.allocation.costs import Cost, CostModel
from prunus.allocation.dead import choice_of_dead
from prunus.allocation.erk import erk, erk_densities
from prunus.allocation.families import (
    Family,
    checked_floors,
    checked_multiple,
    contained,
    find_families,
    held_by,
)
from prunus.allocation.global_rank import global_rank
from prunus.allocation.isomorphic import isomorphic
from prunus.allocation.manual import checked_ratio, counts_of_ratios, keep_counts
from prunus.allocation.slamp import layer_adaptive
from prunus.allocation.target import Target
from prunus.allocation.uniform import uniform

__all__ = [
    "ALLOCATORS",
    "Budget",
    "Choice",
    "Cost",
    "CostModel",
    "Family",
    "Target",
    "allocate",
    "allocator_of",
    "checked_floors",
    "checked_multiple",
    "checked_ratio",
    "choice_by_index",
    "choice_of_dead",
    "choice_of",
    "contained",
    "counts_of_ratios",
    "erk",
    "erk_densities",
    "find_families",
    "global_rank",
    "held_by",
    "isomorphic",
    "keep_counts",
    "layer_adaptive",
    "require_reachable",
    "uniform",
]
