"""Prune a small network at random, verify it, and say what could be removed."""

from typing import Any

import torch
from torch import Tensor, nn

from prunus.api import analyze
from prunus.capture import capture
from prunus.structure import Structure, find_structure
from tests.property.chain import prune
from tests.property.choices import Seeded
from tests.property.form import Do, randomize
from tests.property.networks import Network

SEEDS = range(4)


def network(function: Any, *inputs: Tensor, **parts: Any) -> Network:
    """A function over layers, parameters and inputs, with numbers that hide nothing."""
    return Network(randomize(Do("net", function, **parts), 1).eval(), inputs)


def structure_of(made: Network) -> Structure:
    return find_structure(capture(made.model, made.inputs))


def pruned(made: Network, seeds: range = SEEDS) -> Structure:
    """What prunus says of the network, after random plans were carried out and verified in float64."""
    removed = False
    structure = analyze(made.model, made.inputs)
    before = sum(p.numel() for p in made.model.parameters())
    for seed in seeds:
        result = prune(made, Seeded(seed), structure)
        assert result.verification.max_relative_error <= 1e-9, f"seed {seed}"
        removed |= sum(p.numel() for p in result.module.parameters()) < before
    assert removed or not structure.prunable, "no plan removed anything"
    return structure


def free(structure: Structure) -> dict[str, int]:
    """Groups that can be pruned, and how many units they have."""
    return {group.name: group.size for group in structure.prunable}


def held(structure: Structure) -> dict[str, str]:
    """Groups that cannot, and why."""
    return {group.name: group.held for group in structure.groups if group.held is not None}


def conv(channels: int, out: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 1, **options)


def image(channels: int = 3, size: int = 4) -> Tensor:
    return torch.randn(2, channels, size, size)
