"""What a report says, as plain data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from prunus.errors import printable
from prunus.report.replaced import ReplacedLayer


@dataclass(frozen=True)
class Totals:
    """A model in numbers.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulates of one sample (of the captured batch where the batch is not dynamic).
        size_bytes: bytes of parameters and persistent buffers.
        latency_ms: median time of one forward on the example inputs; None if not measured.
    """

    params: int
    macs: int
    size_bytes: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class GroupReport:
    """One group before and after: sizes are numbers of units."""

    name: str
    size: int
    kept: int
    held: str | None
    constraints: tuple[str, ...]
    members: tuple[str, ...]


@dataclass(frozen=True)
class LayerReport:
    """One layer with parameters.

    Attributes:
        path: module path.
        kind: the operator that uses its weight.
        before, after: shape of its largest parameter before and after; `after` is None if the layer disappeared.
        params_before, params_after: number of parameters.
        reason: why it was left alone, or None if it shrank.
    """

    path: str
    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...] | None
    params_before: int
    params_after: int
    reason: str | None


@dataclass(frozen=True)
class Report:
    """All that is known about one compression.

    Attributes:
        form: "class" when `model` is the user's own class, "graph" when it is a graph module with real layers.
        form_reason: what prevented the user's class, with the source line; empty for "class".
        method, target: what was asked for.
        before, after: totals.
        groups, layers: what happened to each.
        verification: error, tolerance, precision, inputs; None if it was turned off.
        unknown_operators: operators without a rule, by node.
        latency_threads: threads at which latency was measured.
        recovery: what was repaired on data, layer by layer (see `prunus.recovery.Recovery`), and under
            `groups` the mean errors of the layers that read each pruned group; None where nothing was.
        evaluation: what `evaluate` returned for the model, by step: "original", "cut", steps of the repair or "result";
            None without it.
        notes: remarks.
        inputs: `sizes` of each input of the graph, None along axes that are free; `where`: what must hold between free sizes;
            `fixed`: why axes that were to be free are not.
        versions: of prunus, torch and Python.
        seed: of the plan.
        allocation, options: how the plan chose numbers of channels, and which of its options differ from the defaults.
        replaced: layers that were, or could have been, replaced by chains of smaller ones.
        steps: where several things were done, the report of each; `target`, `allocation` and `options` are theirs alone then.
    """

    form: str
    form_reason: str
    method: str
    target: dict[str, float]
    before: Totals
    after: Totals
    groups: tuple[GroupReport, ...]
    layers: tuple[LayerReport, ...]
    verification: dict[str, Any] | None
    unknown_operators: dict[str, str] = field(default_factory=dict)
    latency_threads: int | None = None
    recovery: dict[str, Any] | None = None
    evaluation: dict[str, float] | None = None
    notes: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    allocation: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    replaced: tuple[ReplacedLayer, ...] = ()
    steps: tuple[Report, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def __str__(self) -> str:
        from prunus.report.text import as_text

        return printable(as_text(self))
