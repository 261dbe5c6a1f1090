"""The user's own class first: what has to stay so that its own forward can run what is left.

A plan is cut as it is. Where the class cannot run that, the numbers that it has only once are tied (`surgery/class_ties.py`);
where that is not enough, groups are held: those that write-back blames are tried before others, each by leaving it out of the
plan. Whatever is held, the plan is made anew, so that the target is met by the others.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.api.forming import Cut, require_class, structure_of
from prunus.capture.surroundings import surroundings
from prunus.errors import PrunusError, SurgeryError, TargetError
from prunus.inputs import Inputs
from prunus.plan import Plan
from prunus.structure import Structure
from prunus.surgery import count_macs, groups_at, relative_error

__all__ = ["class_first", "runs"]

LITTLE = 0.1  # more parameters, MACs or error than the graph form has; see benchmarks/results/zoo.md
_ROUNDS = 3  # plans that are made with more and more held
_TRIED = {False: 12, True: 60}  # cuts, for finding what to hold

Planned = Callable[[Structure], Plan]


def class_first(
    structure: Structure, planned: Planned, keep_class: bool | None
) -> tuple[Cut, tuple[str, ...]]:
    """The plan for a structure, or one with more held if the user's own class needs that.

    Args:
        structure: without anything held or tied for the class.
        planned: makes a plan for such a structure with some groups tied or held.
        keep_class: see `prunus.compress`.

    Returns:
        What is cut, and what the report should say about it.

    Raises:
        PrunusError: what `planned` raises; with `keep_class=True` also where the target cannot be reached by such a plan.
    """
    if keep_class:
        require_class(structure.captured)
    plain = Cut(structure, planned(structure))
    if keep_class is False or structure.captured.model is None or runs(plain):
        return plain, ()
    refusals: list[PrunusError] = []
    found = min(
        _of_class(plain, planned, bool(keep_class), refusals), key=lambda each: each.cost, default=None
    )
    if found is None:
        if keep_class and refusals:
            raise TargetError(f"with keep_class=True: {refusals[0]}") from refusals[0]
        return plain, ()
    if keep_class or found.cost <= LITTLE:
        return found.cut, (f"{found.said}, so that your own class comes back: {found.price}",)
    return plain, (f"keep_class=True would give your own class back: {found.said}, and {found.price}",)


def runs(cut: Cut) -> bool:
    """Whether the user's class comes back."""
    try:
        return cut.form.name == "class"
    except SurgeryError:
        return False


@dataclass(frozen=True)
class _Found:
    """A cut that the class can run.

    Attributes:
        cut: with more tied or held than the plain one.
        said: what is.
        price: in words, compared with the plain one.
        cost: the largest of the shares by which it has more parameters, MACs or error.
    """

    cut: Cut
    said: str
    price: str
    cost: float


def _of_class(plain: Cut, planned: Planned, insist: bool, refusals: list[PrunusError]) -> Iterator[_Found]:
    """Cuts that the class can run; of two ways, the second only where the first is dear or fails."""
    tied = _again(partial(structure_of, plain.structure.captured, True), planned, refusals)
    if tied is not None and runs(tied):
        found = _found(plain, tied, "what the class has one number for was tied")
        yield found
        if found.cost <= LITTLE:
            return
    for start in (tied, plain):
        held = None if start is None or runs(start) else _with_held(start, planned, insist, refusals)
        if held is not None:
            cut, names = held
            yield _found(plain, cut, f"held: {', '.join(sorted(names))}")
            return


def _again(make: Callable[[], Structure], planned: Planned, refusals: list[PrunusError]) -> Cut | None:
    try:
        structure = make()
        return Cut(structure, planned(structure))
    except PrunusError as refusal:
        refusals.append(refusal)
        return None


# ---------------------------------------------------------------------- what to hold
def _with_held(
    start: Cut, planned: Planned, insist: bool, refusals: list[PrunusError]
) -> tuple[Cut, set[str]] | None:
    """A plan that holds what stands in the way of the class, and what that is; None where it is not found."""
    cut, held, left = start, set[str](), _TRIED[insist]
    for _ in range(_ROUNDS):
        reason, blamed = _why_not(cut)
        found, left = _in_the_way(cut, blamed, left)
        if not found:
            return None
        held |= found
        made = _again(partial(_holding, cut.structure, found, reason), planned, refusals)
        if made is None:
            return None
        if runs(made):
            return made, held
        cut = made
    return None


def _why_not(cut: Cut) -> tuple[str, set[str]]:
    """Why the class does not come back, and the groups that are blamed for it."""
    try:
        return cut.form.remark, groups_at(cut.structure, cut.form.blamed)
    except SurgeryError as error:
        return str(error), set()


def _holding(structure: Structure, names: set[str], reason: str) -> Structure:
    text = f"has to stay for the model's own class: {reason}"
    groups = (
        dataclasses.replace(group, held=text, tied=()) if group.name in names else group
        for group in structure.groups
    )
    return dataclasses.replace(structure, groups=tuple(groups))


def _in_the_way(cut: Cut, blamed: set[str], left: int) -> tuple[set[str], int]:
    """Groups without which the class runs the rest of the plan, and how many cuts may still be tried.

    One family of groups after the other is left out of the plan; where no single one helps, the first of them stays out.
    """
    out = set[str]()
    while left > 0:
        rest = cut.of_groups({g.name for g in cut.plan.groups} - out)
        families = _families(rest, blamed)
        if not families:
            break
        for family in families[:left]:
            left -= 1
            if runs(rest.of_groups({g.name for g in rest.plan.groups} - family)):
                return out | family, left
        out |= families[0]
    return set(), left


def _families(cut: Cut, blamed: set[str]) -> list[set[str]]:
    """Pruned groups that are tied or play the same part in repeated blocks: blamed ones first, then those that save least."""
    pruned = {group.name: group for group in cut.plan.groups}
    families: dict[str, set[str]] = {}
    for name in pruned:
        every = {name, *cut.structure.group(name).tied} & pruned.keys()
        families.setdefault(min(re.sub(r"(?<!\w)\d+(?=\.)", "*", each) for each in every), set()).update(
            every
        )
    saved = {name: sum(1 - len(g.keep) / g.size for _ in g.members) * g.size for name, g in pruned.items()}
    return sorted(families.values(), key=lambda f: (not f & blamed, sum(saved[name] for name in f)))


# ---------------------------------------------------------------------- what it costs
def _found(plain: Cut, cut: Cut, said: str) -> _Found:
    params, macs = (_more(count(cut), count(plain)) for count in (_params, _macs))
    errors = _error(plain), _error(cut)
    price = (
        f"{params:+.1%} parameters and {macs:+.1%} MACs, error of the outputs before any repair {errors[1]:.3g} "
        f"instead of {errors[0]:.3g}"
    )
    return _Found(cut, said, price, max(params, macs, _more(errors[1], errors[0])))


def _more(now: float, before: float) -> float:
    return now / before - 1 if before else float(now > 0)


def _params(cut: Cut) -> int:
    return sum(t.numel() for name, t in cut.small.tensors.items() if cut.small.kinds[name] == "parameter")


def _macs(cut: Cut) -> int:
    return count_macs(cut.small)


@torch.no_grad()
def _error(cut: Cut) -> float:
    """Of the outputs on the example inputs, relative to the original's."""
    captured = cut.structure.captured
    original = Cut(cut.structure, dataclasses.replace(cut.plan, groups=())).module
    with surroundings(captured):
        pairs = zip(
            *(_outputs(module, captured.run_inputs) for module in (original, cut.module)), strict=True
        )
    return max(
        (relative_error(a, b) for a, b in pairs if a.shape == b.shape and a.is_floating_point()), default=0.0
    )


def _outputs(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (inputs.args, inputs.kwargs))
    return [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor)]
