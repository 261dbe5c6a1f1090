"""From a model and what is asked for to the ranks of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunus.allocation import Target
from prunus.capture import Captured
from prunus.decomposition.allocate import allocate_ranks
from prunus.decomposition.base import Method
from prunus.decomposition.choices import Choices, chain_costs, choices_of, pays
from prunus.decomposition.geometry import kernel_of
from prunus.decomposition.metric import Metric
from prunus.decomposition.moments import BUDGET_BYTES, Sums, collect_moments
from prunus.decomposition.ranks import EVBMF, Energy, estimated, rounded
from prunus.decomposition.sites import Site, find_sites
from prunus.errors import ConfigError
from prunus.heap import give_back
from prunus.surgery import count_macs, count_params, count_size_bytes

__all__ = ["Request", "Work", "choose_ranks", "metrics_of", "workable"]

Ranks = Mapping[str, tuple[int, ...]]
_LARGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        methods: tried in this order for each layer.
        goal: a target, a rule, or ranks per layer.
        multiple_of: ranks are multiples of this, or full.
        least: smallest rank, as a number or a share of the full one.
        centered: the bias takes up the mean of what is lost.
    """

    methods: tuple[Method, ...]
    goal: Target | EVBMF | Energy | Ranks
    multiple_of: int = 1
    least: int | float = 1
    centered: bool = True


@dataclass(frozen=True, eq=False)
class Work:
    """Layers that can be factored, and how.

    Attributes:
        sites, methods: module path -> the layer, and the method that takes it.
        reasons: module path -> why a layer is left alone.
        refused: paths of those whose replacement would not have paid.
        metrics: moments that are kept for a second use, where all of them fit into memory at once.
    """

    sites: dict[str, Site]
    methods: dict[str, Method]
    reasons: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    metrics: dict[str, Metric] = field(default_factory=dict)

    def refuse(self, path: str, reason: str) -> None:
        """Leave a layer alone because its replacement would not pay."""
        self.reasons[path] = reason
        self.refused.add(path)

    def bias(self, path: str, aware: bool, centered: bool) -> bool:
        """Whether what replaces a layer has a bias."""
        return self.sites[path].layer.bias is not None or (aware and centered)


def workable(captured: Captured, methods: Sequence[Method], held: Mapping[str, str]) -> Work:
    """Layers that one of the methods takes; the others with the reason.

    Args:
        captured: the model.
        methods: tried in this order.
        held: module path -> why it must not be touched.
    """
    found, reasons = find_sites(captured)
    work = Work({}, {}, reasons)
    for path, site in found.items():
        if path in held:
            reasons[path] = held[path]
            continue
        refusals = [method.refusal(site.geometry) for method in methods]
        if not torch.isfinite(site.layer.weight).all():
            reasons[path] = "has a weight that is not finite"
        elif not site.layer.weight.any():
            reasons[path] = "has a weight of zeros"
        elif all(refusals):
            reasons[path] = "; ".join(dict.fromkeys(str(reason) for reason in refusals))
        else:
            work.sites[path] = site
            work.methods[path] = methods[refusals.index(None)]
    return work


def metrics_of(
    captured: Captured, work: Work, paths: Iterable[str], data: Any, centered: bool
) -> Iterator[tuple[str, Site, Tensor, Metric]]:
    """Path, layer, kernel and metric of each of the layers, one after the other, as the memory for moments allows."""
    wanted = list(paths)
    large = _LARGE_BYTES // 8

    def entry(path: str, metric: Metric) -> tuple[str, Site, Tensor, Metric]:
        site = work.sites[path]
        return path, site, kernel_of(site.layer.weight, site.geometry).cpu(), metric

    if data is None or all(path in work.metrics for path in wanted):
        for path in wanted:
            yield entry(path, work.metrics.get(path, Metric()))
            if work.sites[path].geometry.weights > large:
                give_back()
        return
    geometries = {path: work.sites[path].geometry for path in wanted}
    keep = sum(Sums(geometry).bytes for geometry in geometries.values()) <= BUDGET_BYTES
    for path, sums in collect_moments(captured, geometries, data):
        metric = sums.metric(centered)
        if keep:
            work.metrics[path] = metric
        yield entry(path, metric)
        if work.sites[path].geometry.weights > large:
            give_back()


def choose_ranks(captured: Captured, work: Work, request: Request, data: Any) -> dict[str, tuple[int, ...]]:
    """Ranks of each layer that is replaced; the reasons of the others are added to the work.

    Raises:
        ConfigError: ranks that do not fit, all problems at once; or a target in channels.
        TargetError: no ranks reach the target.
    """
    if isinstance(request.goal, Target):
        return _under_target(captured, work, request, request.goal, data)
    if isinstance(request.goal, EVBMF | Energy):
        return _by_rule(captured, work, request, request.goal, data)
    ranks = {path: tuple(given) for path, given in request.goal.items()}
    for path in work.sites:
        if path not in ranks:
            work.reasons[path] = "no ranks were given for it"
    return _those_that_pay(work, ranks, request, data is not None)


def _by_rule(
    captured: Captured, work: Work, request: Request, rule: EVBMF | Energy, data: Any
) -> dict[str, tuple[int, ...]]:
    ranks = {}
    for path, site, kernel, metric in metrics_of(captured, work, work.sites, data, request.centered):
        method = work.methods[path]
        found = estimated(rule, method, kernel, site.geometry, metric)
        ranks[path] = rounded(found, method.full(site.geometry), request.multiple_of, request.least)
    return _those_that_pay(work, ranks, request, data is not None)


def _those_that_pay(
    work: Work, ranks: dict[str, tuple[int, ...]], request: Request, aware: bool
) -> dict[str, tuple[int, ...]]:
    kept = {}
    for path, chosen in ranks.items():
        site, method = work.sites[path], work.methods[path]
        params, macs = chain_costs(site, method, chosen, work.bias(path, aware, request.centered))
        if pays(site, params, macs):
            kept[path] = chosen
        else:
            own = site.macs([site.geometry])
            said = ", ".join(map(str, chosen))
            work.refuse(
                path,
                f"at rank {said} it would not pay: {params / site.params:.0%} of the parameters, {macs / own:.0%} of the MACs",
            )
    return kept


def _under_target(
    captured: Captured, work: Work, request: Request, target: Target, data: Any
) -> dict[str, tuple[int, ...]]:
    if target.unit == "channels":
        raise ConfigError("decomposition keeps all channels: set a target for macs, params or size_bytes")
    model = captured.model
    assert model is not None
    total = {"macs": count_macs, "params": count_params, "size_bytes": count_size_bytes}
    whole = float(total[target.unit](captured if target.unit == "macs" else model))  # type: ignore[operator]
    offers: list[Choices] = []
    for path, site, kernel, metric in metrics_of(captured, work, work.sites, data, request.centered):
        method = work.methods[path]
        bias = work.bias(path, data is not None, request.centered)
        curve = method.curve(kernel, site.geometry, metric)
        offers.append(choices_of(site, method, curve, bias, request.multiple_of, request.least))
    fixed = whole - sum(float(each.cost(target.unit)[0]) for each in offers)
    chosen = allocate_ranks(offers, target.unit, fixed, target.fraction * whole)
    ranks = {}
    for each in offers:
        if chosen[each.path]:
            ranks[each.path] = tuple(int(rank) for rank in each.ranks[chosen[each.path]])
        elif len(each.lost) == 1:
            work.refuse(each.path, "no rank pays")
        else:
            work.reasons[each.path] = "the target is met without it"
    return ranks
