"""The whole way from a network to its verified small one."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from prunus.api import analyze
from prunus.capture import Captured
from prunus.structure import Structure
from prunus.surgery.lift import lift
from prunus.surgery.replay import cut
from prunus.surgery.verify import Verification, compare
from tests.property.choices import Pick
from tests.property.networks import Network
from tests.property.plans import plan


@dataclass(frozen=True, eq=False)
class Pruned:
    captured: Captured
    structure: Structure
    kept: dict[str, np.ndarray]
    keep: np.ndarray
    module: nn.Module
    verification: Verification


def prune(network: Network, pick: Pick, structure: Structure | None = None) -> Pruned:
    """Capture, analyze, choose, slice, lift, verify (in float64, to 1e-9).

    Args:
        network: What to prune.
        pick: Chooses.
        structure: Of the network, if it is known; else sizes are as in the example.

    Raises:
        PrunusError: whatever the stages raise: for a network and a plan that are legal, every such error is a defect.
    """
    structure = structure or analyze(network.model, network.inputs, dynamic="none")
    captured = structure.captured
    kept = plan(pick, structure)
    keep = structure.keep_labels(kept)
    while structure.emptied(
        keep
    ):  # at least one must stay everywhere: groups keep all again, one after another
        name, _ = kept.popitem()
        kept = {each: units for each, units in kept.items() if each not in structure.group(name).tied}
        keep = structure.keep_labels(kept)
    small = cut(structure, keep)
    module = lift(small)
    mask = torch.from_numpy(keep)
    verification = compare(
        captured, structure.tracks, mask, module, small, dtype=torch.float64, tolerance=1e-9
    )
    return Pruned(captured, structure, kept, keep, module, verification)
