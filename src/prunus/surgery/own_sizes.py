"""Attributes that only state a size: the forward never reads them, people and other tools do.

Such an attribute follows a formula (a size of the module's own weights, times or divided by another attribute) that
holds in every module of its class. In and out are told apart by modules in which they differ, or else by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus.capture import Captured
from prunus.structure import Structure
from prunus.surgery.attributes import Slot

__all__ = ["stated_sizes"]

_SMALLEST_FROM_CHILDREN = 8  # a smaller number equals some width by chance


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a module's tensors, before and after: (name relative to the module, axis) -> size."""

    before: dict[tuple[str, int], int]
    after: dict[tuple[str, int], int]


@dataclass(frozen=True)
class _Formula:
    """A size of the module's tensors, changed by another of its attributes or by a small number."""

    name: str
    axis: int
    operation: str = ""
    other: str | int = ""

    @property
    def rank(self) -> int:
        """Simple formulas explain better than compound ones."""
        return 0 if not self.operation else 1 if isinstance(self.other, str) else 2

    def value(self, sizes: Mapping[tuple[str, int], int], attributes: Mapping[str, int]) -> int | None:
        size = sizes.get((self.name, self.axis))
        if size is None or not self.operation:
            return size
        other = attributes.get(self.other) if isinstance(self.other, str) else self.other
        if not other:
            return None
        if self.operation == "times":
            return size * other
        return size // other if size % other == 0 else None


def stated_sizes(
    structure: Structure,
    small: Captured,
    slots: dict[Slot, int],
    solved: Mapping[Slot, int],
    depths: tuple[int, ...] = (0,),
) -> dict[Slot, int]:
    """New values of attributes that the forward was not seen to use but that state a size which changed.

    The sizes are those of tensors this many modules below: further down, a number equals one by chance.
    """
    model = structure.captured.model
    if model is None:
        return {}
    shapes = _shapes(structure.captured, small)
    roles = {(m.parameter, m.axis): m.produces for group in structure.groups for m in group.members}
    modules = dict(model.named_modules())
    slots_of: dict[str, dict[tuple[Any, ...], Slot]] = defaultdict(dict)
    for slot in slots:
        slots_of[slot.owner][slot.name] = slot
    by_class: dict[type, list[str]] = defaultdict(list)
    for path, module in modules.items():
        by_class[type(module)].append(path)
    found: dict[Slot, int] = {}
    for paths in by_class.values():
        names = dict.fromkeys(
            name for path in paths for name, slot in slots_of[path].items() if not slot.shared
        )
        for name in names:
            instances = [slots_of[path][name] for path in paths if name in slots_of[path]]
            if any(slot not in solved for slot in instances):
                found.update(_restated(instances, modules, shapes, roles, slots_of, slots, solved, depths))
    return found


def _shapes(captured: Captured, small: Captured) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Qualified name of every parameter and buffer, under all its names -> its shapes before and after."""
    shapes = {}
    for placeholder, name in captured.names.items():
        if placeholder in small.tensors:
            pair = tuple(captured.tensors[placeholder].shape), tuple(small.tensors[placeholder].shape)
            shapes.update(dict.fromkeys((name, *captured.aliases.get(name, ())), pair))
    return shapes


def _restated(
    instances: list[Slot],
    modules: dict[str, nn.Module],
    shapes: Any,
    roles: Any,
    slots_of: Any,
    slots: Mapping[Slot, int],
    solved: Mapping[Slot, int],
    depths: tuple[int, ...],
) -> Iterator[tuple[Slot, int]]:
    for depth in depths:
        sizes = {slot: _sizes_near(modules[slot.owner], slot.owner, shapes, depth) for slot in instances}
        formulas = _holding(instances, sizes, slots_of, slots, solved, depth)
        if depth and any(slots[slot] < _SMALLEST_FROM_CHILDREN for slot in instances):
            return
        if formulas:
            break
    else:
        return
    first = min(f.rank for f in formulas)
    formulas = [f for f in formulas if f.rank == first]
    formulas = _of_role(formulas, instances, roles, sizes[instances[0]].before)
    for slot in instances:
        others = _attributes_of(slot, slots_of, {**slots, **solved})
        predicted = {f.value(sizes[slot].after, others) for f in formulas} - {None}
        if slot not in solved and len(predicted) == 1:
            yield slot, predicted.pop()  # type: ignore[misc]


def _sizes_near(module: nn.Module, path: str, shapes: Any, depth: int) -> _Sizes:
    """Sizes of the tensors that lie exactly `depth` modules below."""
    before, after = {}, {}
    for inner, holder in module.named_modules():
        if (inner.count(".") + 1 if inner else 0) != depth:
            continue
        for name in (*holder._parameters, *holder._buffers):
            relative = f"{inner}.{name}" if inner else name
            pair = shapes.get(f"{path}.{relative}" if path else relative)
            if pair is not None:
                before.update({(relative, axis): size for axis, size in enumerate(pair[0])})
                after.update({(relative, axis): size for axis, size in enumerate(pair[1])})
    return _Sizes(before, after)


def _attributes_of(slot: Slot, slots_of: Any, values: Mapping[Slot, int]) -> dict[str, int]:
    """The module's other integers by name."""
    return {n[0]: values[s] for n, s in slots_of[slot.owner].items() if len(n) == 1 and n != slot.name}


def _holding(
    instances: list[Slot],
    sizes: dict[Slot, _Sizes],
    slots_of: Any,
    slots: Mapping[Slot, int],
    solved: Any,
    depth: int,
) -> list[_Formula]:
    """Formulas that give the attribute's value in every module that has the size, before and, where known, after."""
    first = instances[0]
    held = []
    for formula in _formulas(sizes[first].before, _attributes_of(first, slots_of, slots), depth):
        if all(_holds(formula, slot, sizes[slot], slots_of, slots, solved) for slot in instances):
            held.append(formula)
    return held


def _holds(formula: _Formula, slot: Slot, sizes: _Sizes, slots_of: Any, slots: Any, solved: Any) -> bool:
    if formula.value(sizes.before, _attributes_of(slot, slots_of, slots)) != slots[slot]:
        return False
    if slot not in solved:
        return True
    return formula.value(sizes.after, _attributes_of(slot, slots_of, {**slots, **solved})) == solved[slot]


def _formulas(
    sizes: Mapping[tuple[str, int], int], others: Mapping[str, int], depth: int
) -> Iterator[_Formula]:
    for name, axis in sizes:
        yield _Formula(name, axis)
        if depth == 0:
            for other in (*others, 2, 3, 4):
                yield _Formula(name, axis, "times", other)
                yield _Formula(name, axis, "over", other)


def _of_role(
    formulas: list[_Formula],
    instances: list[Slot],
    roles: Mapping[tuple[str, int], bool],
    sizes: Mapping[tuple[str, int], int],
) -> list[_Formula]:
    """Where the name says in or out, only what a weight consumes or produces; all where that leaves none."""
    tokens = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", instances[0].attribute).lower())
    wanted: Callable[[bool], bool] | None = None
    if any(token.startswith("out") for token in tokens):
        wanted = bool
    elif any(token == "in" or token.startswith("inp") for token in tokens):
        wanted = lambda produces: not produces  # noqa: E731
    if wanted is None:
        return formulas
    owners = [f"{slot.owner}." if slot.owner else "" for slot in instances]
    fitting = []
    for f in formulas:
        known = {roles[owner + f.name, f.axis] for owner in owners if (owner + f.name, f.axis) in roles}
        if known and all(wanted(produces) for produces in known):
            fitting.append(f)
    weights = [f for f in fitting if (f.name, 1) in sizes]  # a bias neither consumes nor produces
    return weights or fitting or formulas
