"""Give the user's own class back, with smaller parameters and the attributes that belong to them.

The forward of a copy is run once on integers that remember which attribute they are (`provenance`, `record`). Matched
with the graph (`align`), that says which attributes made which number of the graph; the small graph says what these
numbers are now, and so what the attributes have to become (`constraints`). What no forward reads is told from the
sizes that it states (`own_sizes`). The result is accepted only when it computes what the small graph computes.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.capture import Captured
from prunus.capture.copying import copy_of
from prunus.capture.diagnose import first_line, place_in_model
from prunus.structure import Structure
from prunus.surgery.agreement import Agreement
from prunus.surgery.align import Use, align
from prunus.surgery.attributes import find_slots, set_slots
from prunus.surgery.constraints import Solution, solve_slots
from prunus.surgery.guesses import guesses
from prunus.surgery.own_forward import recorded_forward
from prunus.surgery.own_sizes import stated_sizes
from prunus.surgery.temperature import compensation
from prunus.surgery.training import training_failure

__all__ = ["write_back"]


def write_back(
    structure: Structure, small: Captured, graph_module: nn.Module, keep: Any
) -> tuple[nn.Module | None, str]:
    """Turn the small graph back into the user's class, if the class can express it.

    Args:
        structure: The structure of the original, whose model is copied and never touched.
        small: What the model was cut to.
        graph_module: The same as a module that runs, which the class has to agree with.
        keep: (labels,) bool: what stays.

    Returns:
        The module in the mode (training or evaluation) of the user's model, with a note if something else than
        parameters and attributes had to change; or None, and the reason with the source line that prevented it.
    """
    if structure.captured.model is None:
        return None, "the source was an exported program, which has no class"
    try:
        return _written_back(structure, structure.captured.model, small, graph_module, torch.as_tensor(keep))
    except Exception as failure:  # noqa: BLE001  the graph is right without it
        return None, f"its class could not be given back: {first_line(failure)}"


def _written_back(
    structure: Structure, model: nn.Module, small: Captured, graph_module: nn.Module, keep: Tensor
) -> tuple[nn.Module | None, str]:
    captured = structure.captured
    slots = find_slots(model)
    try:
        candidate = _cut_copy(model, captured, small)
        recording = recorded_forward(model, captured)
    except Exception as failure:  # noqa: BLE001  whatever the user's classes raise
        return None, f"the model cannot be copied and run: {first_line(failure)}"
    solution = solve_slots(slots, recording, align(recording, captured, small), captured, small)
    stated = stated_sizes(structure, small, slots, solution.values)
    trials = _Trials(structure, small, Agreement(captured, graph_module), keep, solution)
    reason = ""
    for guess in guesses(model, slots, solution):
        # every slot is set, so that nothing of an earlier guess stays
        set_slots(candidate, {**slots, **stated, **guess, **solution.values})
        note, why = trials.judge(candidate)
        if not why:
            return candidate, note
        reason = reason or why
    return None, reason


@dataclass(frozen=True)
class _Trials:
    """Runs candidates against the graph module."""

    structure: Structure
    small: Captured
    agreement: Agreement
    keep: Tensor
    solution: Solution

    def judge(self, candidate: nn.Module) -> tuple[str, str]:
        """Bring the temperature of its attentions in order, if need be.

        Returns:
            What else had to be done, and why the candidate is not accepted: both may be empty.
        """
        try:
            trial = self.agreement.trial(candidate)
            note, scalings = compensation(self.structure, self.small, candidate, trial.recording, self.keep)
            if scalings:
                trial = self.agreement.trial(candidate, scalings)
        except Exception as failure:  # noqa: BLE001  whatever the user's forward raises
            return "", _obstacle(self.solution) or (
                f"its forward fails at {place_in_model(failure)} ({first_line(failure)})"
            )
        if trial.error:
            return "", _obstacle(self.solution) or (
                f"its forward computes something else (relative error {trial.error:.2g})"
            )
        with torch.no_grad():
            for name, scaling in scalings.items():
                parameter = candidate.get_parameter(name)
                parameter.mul_(scaling.to(parameter))
        return note, training_failure(self.structure.captured, candidate)


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


def _obstacle(solution: Solution) -> str:
    """The first number in the code that cannot be what it has to be."""
    for use, got in solution.unmet:
        needed = use.needed if use.after is None else use.after
        return f"{_line(use)} makes {got} where {needed} would be needed"
    for use in solution.written:
        if use.after is None:
            return f"{_line(use)} makes equal parts, where {use.needed} would be needed"
        return f"{_line(use)} has the number {use.before} in the code, where {use.after} would be needed"
    return ""


def _line(use: Use) -> str:
    file, _, number = use.call.place.rpartition(":")
    code = linecache.getline(file, int(number)).strip() if number.isdigit() else ""
    where = f"in module {use.call.path!r}, " if use.call.path else ""
    return f"{where}{use.call.place}: `{code}`" if code else f"{where}{use.call.place}"
