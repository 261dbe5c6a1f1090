"""Give the user's own class back, with smaller parameters and the attributes that belong to them.

The forward of a copy is run once on integers that remember which attribute they are (`provenance`, `record`). Matched
with the graph (`align`), that says which attributes made which number of the graph; the small graph says what these
numbers are now, and so what the attributes have to become (`constraints`). What no forward reads is told from the
sizes that it states (`own_sizes`). The result is accepted only when it computes what the small graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.capture import Captured
from prunus.capture.copying import copy_of
from prunus.capture.diagnose import first_line
from prunus.structure import Structure
from prunus.surgery.agreement import Agreement
from prunus.surgery.align import align
from prunus.surgery.attributes import Slot, find_slots, set_slots
from prunus.surgery.constraints import solve_slots
from prunus.surgery.guesses import guesses
from prunus.surgery.obstacle import Obstacle, Obstacles
from prunus.surgery.own_forward import recorded_forward
from prunus.surgery.own_sizes import stated_sizes
from prunus.surgery.temperature import compensation
from prunus.surgery.training import training_failure

__all__ = ["Written", "write_back"]

_MOST_SAID = 8  # attributes in a note


@dataclass(frozen=True)
class Written:
    """What writing back came to.

    Attributes:
        module: of the user's class, in the mode (training or evaluation) of the user's model; None where the class cannot be had.
        remark: what else than parameters and attributes had to change; without a module the reason, with the source line.
        blamed: names of the original's nodes at which the class goes wrong.
    """

    module: nn.Module | None
    remark: str = ""
    blamed: tuple[str, ...] = ()


def write_back(structure: Structure, small: Captured, graph_module: nn.Module, keep: Any) -> Written:
    """Turn the small graph back into the user's class, if the class can express it.

    Args:
        structure: The structure of the original, whose model is copied and never touched.
        small: What the model was cut to.
        graph_module: The same as a module that runs, which the class has to agree with.
        keep: (labels,) bool: what stays.

    """
    if structure.captured.model is None:
        return Written(None, "the source was an exported program, which has no class")
    try:
        return _written_back(structure, structure.captured.model, small, graph_module, torch.as_tensor(keep))
    except Exception as failure:  # noqa: BLE001  the graph is right without it
        return Written(None, f"its class could not be given back: {first_line(failure)}")


def _written_back(
    structure: Structure, model: nn.Module, small: Captured, graph_module: nn.Module, keep: Tensor
) -> Written:
    captured = structure.captured
    slots = find_slots(model)
    try:
        candidate = _cut_copy(model, captured, small)
        recording = recorded_forward(model, captured)
    except Exception as failure:  # noqa: BLE001  whatever the user's classes raise
        return Written(None, f"the model cannot be copied and run: {first_line(failure)}")
    alignment = align(recording, captured, small)
    solution = solve_slots(slots, recording, alignment, captured, small)
    stated = stated_sizes(structure, small, slots, solution.values)
    trials = _Trials(
        structure, small, Agreement(captured, graph_module), keep, Obstacles(solution, alignment)
    )
    first: Obstacle | None = None
    for guess in guesses(model, slots, solution):
        # every slot is set, so that nothing of an earlier guess stays
        set_slots(candidate, {**slots, **stated, **guess, **solution.values})
        note, obstacle = trials.judge(candidate)
        if obstacle is None:
            values = {**stated, **guess, **solution.values}
            stale = stated_sizes(structure, small, slots, values, depths=(1, 2))
            return Written(candidate, "; ".join(filter(None, (note, _stale(slots, values, stale)))))
        first = first or obstacle
    return Written(None, first.said, first.nodes) if first else Written(None, "no attributes fit")


def _stale(slots: Mapping[Slot, int], values: Mapping[Slot, int], stale: Mapping[Slot, int]) -> str:
    """In words, which attributes may state an old size: no forward was seen to read them, so they were left alone."""
    said = [
        f"{slot}={slots[slot]}"
        for slot, value in stale.items()
        if slot not in values and slots[slot] != value
    ]
    more = f" and {len(said) - _MOST_SAID} more" if len(said) > _MOST_SAID else ""
    listed = f"{', '.join(said[:_MOST_SAID])}{more}"
    return f"left as they were, for no forward was seen to read them: {listed}" if said else ""


@dataclass(frozen=True)
class _Trials:
    """Runs candidates against the graph module."""

    structure: Structure
    small: Captured
    agreement: Agreement
    keep: Tensor
    obstacles: Obstacles

    def judge(self, candidate: nn.Module) -> tuple[str, Obstacle | None]:
        """Bring the temperature of its attentions in order, if need be.

        Returns:
            What else had to be done, which may be empty, and why the candidate is not accepted, if it is not.
        """
        try:
            trial = self.agreement.trial(candidate)
            note, scalings = compensation(self.structure, self.small, candidate, trial.recording, self.keep)
            if scalings:
                trial = self.agreement.trial(candidate, scalings)
        except Exception as failure:  # noqa: BLE001  whatever the user's forward raises
            return "", self.obstacles.failing(failure, self.agreement.last)
        if trial.error:
            return "", self.obstacles.differing(trial.error, trial.recording)
        with torch.no_grad():
            for name, scaling in scalings.items():
                parameter = candidate.get_parameter(name)
                parameter.mul_(scaling.to(parameter))
        reason = training_failure(self.structure.captured, candidate)
        return note, Obstacle(reason) if reason else None


def _cut_copy(model: nn.Module, captured: Captured, small: Captured) -> nn.Module:
    """A deep copy that holds the small tensors instead of the original ones."""
    memo: dict[int, Any] = {}
    for placeholder, tensor in captured.tensors.items():
        if placeholder in small.tensors:
            memo[id(tensor)] = _owned(tensor, small.tensors[placeholder])
            for twin in captured.twins.get(placeholder, ()):
                memo[id(twin.tensor)] = memo[id(tensor)].detach().permute(twin.axes)
    copied = copy_of(model, memo)
    for placeholder in small.tensors.keys() - captured.tensors.keys():
        if small.kinds[placeholder] == "parameter":  # a bias that a layer did not have
            path, _, attribute = small.names[placeholder].rpartition(".")
            added = small.tensors[placeholder]
            copied.get_submodule(path).register_parameter(
                attribute, nn.Parameter(added.detach().clone(), added.requires_grad)
            )
    return copied


def _owned(original: Tensor, cut: Tensor) -> Tensor:
    data = cut.detach().clone()
    if isinstance(original, nn.Parameter):
        return nn.Parameter(data, requires_grad=original.requires_grad)
    return data
