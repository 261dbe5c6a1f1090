"""What must be true of a network and what is left of it."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import prunus
from prunus.api import execute
from prunus.structure import Structure
from prunus.surgery.precision import OnePrecision
from tests.property import plans, zeroed
from tests.property.choices import Seeded
from tests.property.graphs.draw import graph
from tests.property.graphs.sketch import Network

SIZES = ({"N": 1}, {"N": 5, "H": 6, "W": 4, "L": 4}, {"N": 2, "H": 8, "W": 8, "L": 8})
PLANS = 2
DEFECTS = (prunus.SurgeryError, prunus.VerificationError)


@dataclass(frozen=True)
class Found:
    """What was looked at.

    Attributes:
        plans: How many plans were executed.
        exact: How many results were compared with the original with zeros in its weights.
        sizes: How many other sizes a result was run at.
        refused: How many of them it refused, with an error that says so.
        trained: How many results took a step.
        held: Reasons for which channels are held, other than that they are returned.
        own_class: How many results are of the user's class.
    """

    plans: int = 0
    exact: int = 0
    sizes: int = 0
    refused: int = 0
    trained: int = 0
    held: tuple[str, ...] = ()
    own_class: int = 0


class Wrong(AssertionError):  # noqa: N818
    """Something that must be true is not; the text has a seed, what happened, and the network."""


def check(seed: int) -> Found:
    """The network of a seed, and several plans for it.

    Raises:
        Wrong: whatever is wrong, with the text of the network.
    """
    network = graph(seed)
    try:
        return check_network(network, seed)
    except Exception as error:
        raise Wrong(f"seed {seed}: {type(error).__name__}: {error}\n{network}") from error


def check_network(network: Network, seed: int) -> Found:
    """What `check` does, for any network."""
    pick = Seeded(seed)
    model, inputs = network.model(), network.inputs()
    before = _state(model)
    free = pick.one_of((True, *[False] * 4))  # torch takes five times as long to export free sizes
    dynamic = "auto" if free else False
    structure = prunus.analyze(model, inputs, keep_class=pick.one_of((False, False, True)), dynamic=dynamic)
    assert not structure.unknown, f"no rule for {structure.unknown}"
    held = tuple(
        group.held.partition(" (")[0]
        for group in structure.groups
        if group.held and not group.held.startswith("is part of the model's output")
    )
    counts = dict(plans=0, exact=0, sizes=0, refused=0, trained=0, own_class=0)
    for _ in range(PLANS if free else 1) if structure.prunable else ():
        plan = _plan(pick, structure)
        result = execute(structure, plan)
        counts["plans"] += 1
        counts["own_class"] += result.report.form == "class"
        _same_form(model, result.model, inputs)
        exact = network.exact and not zeroed.mixes_channels(structure) and not zeroed.counts_on(result)
        if exact:
            _close(
                _zeroed(structure, plan, inputs), _double(result.model, inputs), 1e-9, "original with zeros"
            )
            counts["exact"] += 1
        for sizes in SIZES if free else ():
            ran, refused = _at_other_sizes(network, structure, result, exact, sizes)
            counts["sizes"] += ran
            counts["refused"] += refused
        counts["trained"] += _trains(network, result.model, inputs)
    after = _state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before), (
        "the model was changed"
    )
    assert not model.training
    return Found(**counts, held=held)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _plan(pick: Seeded, structure: Structure) -> prunus.Plan:
    kept = plans.plan(pick, structure)
    while structure.emptied(structure.keep_labels(kept)):  # at least one must stay everywhere
        name, _ = kept.popitem()
        kept = {each: units for each, units in kept.items() if each not in structure.group(name).tied}
    if not kept:
        kept = {group.name: np.arange(group.size) for group in structure.prunable}
    return prunus.plan(structure, method=prunus.ByIndex(keep={k: v.tolist() for k, v in kept.items()}))


def _leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _fresh(inputs: tuple[Tensor, ...], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [x.to(dtype) if dtype and x.is_floating_point() else x.clone() for x in inputs]


@torch.no_grad()
def _double(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    double, given = copy.deepcopy(model).double(), _fresh(inputs, torch.float64)
    # states that a forward makes for itself are of single precision in the graph
    with OnePrecision(torch.float64):
        return _leaves(double(*given))


def _zeroed(structure: Structure, plan: prunus.Plan, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    kept = structure.keep_labels(dict(plan.keep))
    with OnePrecision(torch.float64):  # a forward that asks for single precision would be of two
        return _leaves(zeroed.outputs(structure, kept, tuple(_fresh(inputs))))


def _close(expected: list[Tensor], found: list[Tensor], limit: float, what: str) -> None:
    assert len(expected) == len(found), f"{len(found)} outputs instead of {len(expected)}"
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert a.shape == b.shape, f"output {i} is {tuple(b.shape)}, of the {what} {tuple(a.shape)}"
        scale = max(float(a.abs().max()), 1e-30)
        error = float((a.double() - b.double()).abs().max()) / scale
        assert error <= limit, f"output {i} differs by {error:.1e} of its scale from the {what}"


@torch.no_grad()
def _same_form(model: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    one, two = (m(*_fresh(inputs)) for m in (model, small))
    a, b = pytree.tree_flatten(one), pytree.tree_flatten(two)
    assert a[1] == b[1], f"returns {b[1]} instead of {a[1]}"
    assert [(x.shape, x.dtype) for x in a[0]] == [(x.shape, x.dtype) for x in b[0]], (
        "other shapes than the original"
    )


def _at_other_sizes(
    network: Network, structure: Structure, result: prunus.Result, exact: bool, sizes: dict[str, int]
) -> tuple[int, int]:
    """Whether the result ran at these sizes, and whether it refused."""
    inputs = network.inputs(1, **sizes)
    try:
        with torch.no_grad():
            expected = _leaves(network.model()(*_fresh(inputs)))
    except (RuntimeError, ValueError, IndexError):  # the original does not take them either
        return 0, 0
    try:
        found = _double(result.model, inputs)
    except prunus.PrunusError:
        return 0, 1
    except Exception as error:
        raise AssertionError(
            f"at {sizes} the original runs, and the result raises {type(error).__name__}: {str(error)[:300]}"
        ) from error
    assert [x.shape for x in expected] == [x.shape for x in found], (
        f"other shapes than the original at {sizes}"
    )
    if exact:
        _close(_zeroed(structure, result.plan, inputs), found, 1e-9, f"original with zeros at {sizes}")
    elif sizes is SIZES[-1] and result.plan.keep:
        there = _made_there(network, result, inputs)
        if there is not None:
            _close(there, found, 1e-9, f"result made at {sizes}")
    return 1, 0


def _made_there(network: Network, result: prunus.Result, inputs: tuple[Tensor, ...]) -> list[Tensor] | None:
    """What the same choice gives in the network captured on these inputs; None where it has other groups there."""
    structure = prunus.analyze(network.model(), inputs, keep_class=result.plan.keep_class, dynamic=False)
    kept = {name: list(units) for name, units in result.plan.keep.items()}
    if not set(kept) <= {group.name for group in structure.prunable}:
        return None
    plan = prunus.plan(structure, method=prunus.ByIndex(keep=kept))
    return _double(execute(structure, plan).model, inputs)


def _trains(network: Network, model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the result took a step; it must where the original does."""
    try:
        _step(network.model(), inputs)
    except RuntimeError:  # writes in place to what the backward pass needs, for one
        return False
    try:
        _step(copy.deepcopy(model), inputs)
    except Exception as error:
        raise AssertionError(f"does not train: {type(error).__name__}: {str(error)[:300]}") from error
    return True


def _step(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    sum(leaf.square().mean() for leaf in _leaves(model(*_fresh(inputs)))).backward()
    optimizer.step()
    model(*_fresh(inputs))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """One thread, and no log of what is traced: both cost more than the work."""
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    yield
    torch.set_num_threads(threads)
    logging.disable(level)
