"""A cut network as a model: of the user's own class, or as a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.capture import Captured, scripted_paths
from prunus.capture.copying import copy_of
from prunus.capture.surroundings import surroundings
from prunus.errors import CaptureError
from prunus.plan import Plan
from prunus.structure import Structure, find_structure
from prunus.surgery import Written, cut, in_mode_of, lift, put_back, with_class_ties, write_back

__all__ = ["Cut", "Form", "Former", "as_tensor", "require_class", "structure_of"]

_SCRIPTED = "{} is a TorchScript module, whose code cannot take smaller parameters"


def structure_of(captured: Captured, keep_class: bool) -> Structure:
    """The structure, with what the user's class needs if it is to be kept."""
    if keep_class:
        require_class(captured)
    keep_class = keep_class or captured.packed  # no graph packs
    structure = find_structure(captured, keep_class=keep_class)
    with surroundings(captured):
        return with_class_ties(structure) if keep_class else structure


def require_class(captured: Captured) -> None:
    """Refuse a model whose class can take no smaller parameters.

    Raises:
        CaptureError: names the module.
    """
    scripted = scripted_paths(captured.owner) if captured.owner is not None else []
    if scripted:
        raise CaptureError(
            f"keep_class=True cannot be met: {_SCRIPTED.format(scripted[0])}. Use the original class there."
        )


@dataclass(frozen=True)
class Form:
    """A small model.

    Attributes:
        model: what the user gets.
        name: "class" or "graph".
        remark: why not the class, or what had to be changed for it.
        blamed: nodes of the original at which the class goes wrong, as far as that is known.
    """

    model: nn.Module
    name: str
    remark: str
    blamed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Former:
    """Turns small graphs of one structure into models."""

    structure: Structure
    keep: np.ndarray
    plan: Plan

    def __call__(self, small: Captured, module: nn.Module | None = None) -> Form:
        """The model; `module` is the same as a graph module, if there is one already."""
        module = lift(small) if module is None else module
        captured = self.structure.captured
        with surroundings(captured):
            own = self._own_class(small, module)
        model, name = (module, "graph") if own.module is None else (own.module, "class")
        if own.module is None:
            model = in_mode_of(captured.model, module)
        if not captured.is_program:
            model = put_back(captured, small, own.module, own.remark)
        return Form(model, name, own.remark, own.blamed)

    def _own_class(self, small: Captured, module: nn.Module) -> Written:
        captured = self.structure.captured
        scripted = scripted_paths(captured.owner or captured.model) if captured.model is not None else []
        if scripted:
            return Written(None, _SCRIPTED.format(scripted[0]))
        if captured.model is not None and not self.plan.groups and not self.plan.biases:
            return Written(copy_of(captured.model))
        return write_back(self.structure, small, module, as_tensor(self.keep))


@dataclass(frozen=True, eq=False)
class Cut:
    """What a plan makes of a structure; each part is made when it is first asked for."""

    structure: Structure
    plan: Plan

    @cached_property
    def keep(self) -> np.ndarray:
        """(labels,) bool: what stays."""
        return self.structure.keep_labels(self.plan.keep)

    @cached_property
    def small(self) -> Captured:
        """The cut graph, without the biases that the plan may give."""
        return cut(self.structure, self.keep)

    @cached_property
    def module(self) -> nn.Module:
        """The same as a module."""
        return lift(self.small)

    @cached_property
    def form(self) -> Form:
        """The same as a model for the user."""
        return Former(self.structure, self.keep, self.plan)(self.small, self.module)

    def with_shapes(self, shapes: Any) -> Cut:
        """The same where the graph takes inputs of other shapes; the user's class, if it was had, is as before."""
        made = Cut(self.structure, self.plan)
        made.__dict__["small"] = self.small.with_(shapes=shapes)
        if "form" in self.__dict__ and self.form.name == "class":
            made.__dict__["form"] = self.form
        return made

    def of_groups(self, names: Collection[str]) -> Cut:
        """The same with these groups alone."""
        groups = tuple(group for group in self.plan.groups if group.name in names)
        return Cut(self.structure, dataclasses.replace(self.plan, groups=groups))


def as_tensor(keep: np.ndarray) -> torch.Tensor:
    """(labels,) as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(keep))
