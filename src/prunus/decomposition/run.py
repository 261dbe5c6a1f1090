"""Decompose the layers of a model: choose ranks, replace, verify, measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus.capture import Captured
from prunus.decomposition.base import as_method
from prunus.decomposition.decide import Request, Work, choose_ranks, metrics_of, workable
from prunus.decomposition.measure import measured_errors, slower
from prunus.decomposition.replace import Replacement, copy_with, factored, same_as_hooked
from prunus.decomposition.request import checked_ranks, held_layers
from prunus.decomposition.sites import find_sites
from prunus.errors import ConfigError, PlanError, VerificationError
from prunus.heap import give_back
from prunus.plan import LayerPlan

__all__ = ["Outcome", "decided", "entries", "executed", "of_plan"]

TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Outcome:
    """A model with replaced layers.

    Attributes:
        model: a copy of the user's model.
        replacements: module path -> what stands in for the layer.
        measured: module path -> root of the mean squared error at the output on the data, relative to the output's spread.
        work: the layers, and why others were left alone.
        error: largest relative difference from the original model whose layers' results are overridden by the replacements'.
    """

    model: nn.Module
    replacements: dict[str, Replacement]
    measured: dict[str, float]
    work: Work
    error: float


def decided(
    captured: Captured, request: Request, data: Any, hold: Sequence[str]
) -> tuple[Work, dict[str, tuple[int, ...]]]:
    """Which layers are replaced, and at which ranks.

    Raises:
        ConfigError: layers, ranks or data that do not fit; all problems of the ranks at once.
        TargetError: no ranks reach the target.
    """
    work = workable(captured, request.methods, held_layers(captured, hold))
    give_back()  # of the forward pass
    if isinstance(request.goal, Mapping):
        request = checked_ranks(work, request)
    elif not work.sites:
        names = " or ".join(method.name for method in request.methods)
        said = "; ".join(f"{path} {reason}" for path, reason in list(work.reasons.items())[:5])
        raise ConfigError(f"no layer can be decomposed by {names}: {said or 'there is none'}")  # fmt: skip
    return work, choose_ranks(captured, work, request, data)


def executed(
    captured: Captured,
    work: Work,
    ranks: Mapping[str, tuple[int, ...]],
    data: Any,
    *,
    centered: bool = True,
    biases: Mapping[str, bool] | None = None,
    only_faster: bool = False,
) -> Outcome:
    """Replace layers in a copy of the model.

    Args:
        captured: the model.
        work: its layers.
        ranks: of those that are replaced.
        data: calibration data, or None.
        centered: the bias takes up the mean of what is lost.
        biases: which replacements have a bias; by default those whose layer has one, and with data all.
        only_faster: refuse replacements that take longer on this machine.

    Raises:
        VerificationError: a replacement does not compute what it should; nothing is handed back.
    """
    model = captured.model
    assert model is not None
    made: dict[str, Replacement] = {}
    # large ones first: what is needed for smaller ones then fits where it was for larger ones, between the new weights that stay
    ordered = sorted(ranks, key=lambda path: -int(work.sites[path].geometry.weights))
    for path, site, kernel, metric in metrics_of(captured, work, ordered, data, centered):
        has = biases[path] if biases is not None else work.bias(path, data is not None, centered)
        each = factored(site, kernel, work.methods[path], ranks[path], metric, has)
        late = slower(site, each.chain) if only_faster else None
        if late:
            work.refuse(path, late)
        else:
            made[path] = each
    work.metrics.clear()
    made = {path: made[path] for path in ranks if path in made}
    chains = {path: each.chain for path, each in made.items()}
    new = copy_with(model, chains)
    error = same_as_hooked(captured, new, chains)
    give_back()
    if not error <= TOLERANCE:
        raise VerificationError(
            f"the model with replaced layers differs by {error:.1e} from the original with the same layers' results overridden "
            f"(allowed {TOLERANCE:.0e}): its code looks at the layers otherwise than by calling them. Leave them alone with hold."
        )
    measured = measured_errors(captured, chains, data)
    give_back()
    return Outcome(new, made, measured, work, error)


def entries(outcome: Outcome) -> tuple[LayerPlan, ...]:
    """What a plan says about the replaced layers."""
    return tuple(
        LayerPlan(
            path,
            each.method.name,
            each.ranks,
            tuple(outcome.work.sites[path].layer.weight.shape),
            each.chain[-1].bias is not None,
            each.method.options(),
        )
        for path, each in outcome.replacements.items()
    )


def of_plan(
    captured: Captured, layers: Iterable[LayerPlan]
) -> tuple[Work, dict[str, tuple[int, ...]], dict[str, bool]]:
    """Work, ranks and biases that a plan says.

    Raises:
        PlanError: layers that are not there, of other shapes, or cannot be replaced; all problems at once.
    """
    sites, reasons = find_sites(captured)
    work, ranks, biases, problems = Work({}, {}), {}, {}, []
    for entry in layers:
        site = sites.get(entry.path)
        if site is None:
            problems.append(f"{entry.path} {reasons.get(entry.path, 'is no layer of this model')}")
        elif tuple(site.layer.weight.shape) != entry.shape:
            problems.append(f"{entry.path} has a weight of {tuple(site.layer.weight.shape)}, {entry.shape} in the plan")  # fmt: skip
        else:
            try:
                method = as_method(entry.method, entry.options)
            except ConfigError as error:
                problems.append(f"{entry.path}: {error}")
                continue
            full = method.full(site.geometry)
            fits = len(entry.ranks) == len(full) and all(r <= f for r, f in zip(entry.ranks, full, strict=True))  # fmt: skip
            if not fits or method.refusal(site.geometry):
                problems.append(
                    f"{entry.path}: ranks {entry.ranks} of {entry.method} do not fit; at most {full}"
                )
            work.sites[entry.path], work.methods[entry.path] = site, method
            ranks[entry.path], biases[entry.path] = entry.ranks, entry.bias
    if problems:
        raise PlanError("the plan does not fit the model: " + "; ".join(problems[:10]))
    left = {path: "the plan leaves it alone" for path in sites if path not in ranks}
    work.reasons.update(reasons | left)
    return work, ranks, biases
