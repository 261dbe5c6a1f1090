"""Collect a report on a decomposition."""

from __future__ import annotations

from torch import nn

from prunus.capture import Captured
from prunus.decomposition.choices import chain_costs
from prunus.decomposition.run import Outcome
from prunus.plan import Plan
from prunus.report.build import LATENCY_THREADS, latency_of, totals_before, versions
from prunus.report.data import Report, Totals
from prunus.report.replaced import ReplacedLayer
from prunus.surgery import Verification, count_macs, count_params, count_size_bytes

__all__ = ["decomposition_report"]

_EXACT = 1e-9


def decomposition_report(
    captured: Captured, small: Captured, outcome: Outcome, plan: Plan, measure_latency: bool
) -> Report:
    """Report on a decomposition: every layer that has a kernel, and the totals counted from the results."""
    before_ms, after_ms = latency_of(captured, outcome.model) if measure_latency else (None, None)
    errors = [each.error for each in outcome.replacements.values()]
    verification = Verification(
        max(errors, default=0.0),
        _EXACT,
        "float64",
        len(errors),
        True,
        (f"the whole model agrees with the original whose layers' results are overridden, to {outcome.error:.0e}",),
    )  # fmt: skip
    model = outcome.model
    return Report(
        form="class",
        form_reason="",
        method=plan.method,
        target=plan.target,
        before=totals_before(captured, before_ms),
        after=Totals(count_params(model), count_macs(small), count_size_bytes(model), after_ms),
        groups=(),
        layers=(),
        verification=verification.to_dict(),
        latency_threads=LATENCY_THREADS if measure_latency else None,
        notes=tuple(f"not part of the graph: {name}" for name in captured.left_out),
        versions=versions(),
        seed=plan.seed,
        options=plan.options,
        replaced=_layers(captured, outcome),
    )


def _layers(captured: Captured, outcome: Outcome) -> tuple[ReplacedLayer, ...]:
    assert captured.model is not None
    work = outcome.work
    found = []
    for path, module in captured.model.named_modules():
        if path in outcome.replacements:
            found.append(_replaced(path, module, outcome))
        elif path in work.reasons:
            params = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            weight = getattr(module, "weight", None)
            shape = () if weight is None else tuple(weight.shape)
            kind = type(module).__name__
            alone = ReplacedLayer(
                path, kind, shape, "", (), params, params, 0, 0, None, None, work.reasons[path], path in work.refused
            )  # fmt: skip
            found.append(alone)
    return tuple(found)


def _replaced(path: str, module: nn.Module, outcome: Outcome) -> ReplacedLayer:
    each, site = outcome.replacements[path], outcome.work.sites[path]
    _, macs = chain_costs(site, each.method, each.ranks, False)
    params = sum(parameter.numel() for parameter in each.chain.parameters())
    return ReplacedLayer(
        path,
        type(module).__name__,
        tuple(site.layer.weight.shape),
        each.method.name,
        each.ranks,
        site.params,
        params,
        int(site.macs([site.geometry])),
        int(macs),
        each.predicted,
        outcome.measured.get(path),
        None,
    )
