"""Recommended ranks of all layers, as a table to edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunus.alone import alone
from prunus.capture import capture
from prunus.decomposition.choices import chain_costs, pays
from prunus.decomposition.decide import metrics_of, workable
from prunus.decomposition.ranks import as_rule, estimated
from prunus.decomposition.request import held_layers, requested
from prunus.decomposition.table import RankRow, RankTable
from prunus.errors import ConfigError

__all__ = ["rank_table"]


@alone
def rank_table(
    model: Any,
    example_inputs: Any = None,
    *,
    method: Any = "svd",
    ranks: Any = "evbmf",
    data: Any = None,
    hold: Sequence[str] = (),
) -> RankTable:
    """The layers that can be decomposed, with their channels and recommended ranks, as a table to edit.

    The cells of the ranks that are used are filled with the recommended ones where that pays.

    Args:
        model, example_inputs: see `prunus.analyze`; a model that is an `nn.Module`.
        method, ranks, data, hold: see `prunus.decompose`; `ranks` is a rule. Methods whose ranks are those of no matrix (CP) get no
            recommendation.

    Raises:
        ConfigError: see `prunus.decompose`.
    """
    captured = capture(model, example_inputs)
    if captured.model is None:
        raise ConfigError("a table of ranks needs an nn.Module")
    request = requested(method, None, ranks, None, 1, 1, True)
    rule = as_rule(ranks)
    work = workable(captured, request.methods, held_layers(captured, hold))
    rows = []
    for path, site, kernel, metric in metrics_of(captured, work, work.sites, data, True):
        way, g = work.methods[path], site.geometry
        recommended = None
        if way.unfoldings(kernel, g, metric):
            recommended = estimated(rule, way, kernel, g, metric)
        chosen = None
        if recommended is not None:
            good = pays(site, *chain_costs(site, way, recommended, work.bias(path, data is not None, True)))
            chosen = recommended if good else None
        rows.append(RankRow(path, way.name, g.inputs, g.outputs, way.full(g), recommended, chosen))
    return RankTable(rows)
