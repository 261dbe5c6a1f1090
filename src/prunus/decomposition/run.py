"""Decompose the layers of a model: check what was asked for, choose ranks, replace, verify, measure."""

from __future__ import annotations

import difflib
import fnmatch
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.allocation import Target
from prunus.capture import Captured
from prunus.capture.preserve import buffers_kept, left_as_found
from prunus.decomposition.base import Method, as_method
from prunus.decomposition.decide import Request, Work, choose_ranks, metrics_of, workable
from prunus.decomposition.moments import forward_all
from prunus.decomposition.ranks import as_rule
from prunus.decomposition.replace import Replacement, copy_with, factored, same_as_hooked
from prunus.decomposition.sites import Site, find_sites
from prunus.decomposition.table import RankTable
from prunus.decomposition.watch import attributes_read
from prunus.errors import ConfigError, PlanError, VerificationError
from prunus.plan import LayerPlan

__all__ = ["Outcome", "decided", "entries", "executed", "held_layers", "of_plan", "requested"]

TOLERANCE = 1e-4
_TURNS = 7  # timed runs of a layer and of its replacement


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


def requested(
    method: Any,
    target: Target | None,
    ranks: Any,
    table: RankTable | None,
    multiple_of: int,
    floor: int | float,
    correct_bias: bool,
) -> Request:
    """What is asked for, checked as far as that is possible without the model.

    Raises:
        ConfigError: bad method, goal, multiple or floor; or not exactly one goal.
    """
    given = {"target": target, "ranks": ranks, "table": table}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ConfigError(
            "give exactly one of target=prunus.Target(macs=0.5), ranks and table; got "
            + (" and ".join(named) or "none")  # fmt: skip
        )
    if target is not None and not isinstance(target, Target):
        raise ConfigError(f"target must be a prunus.Target, got {type(target).__name__}")
    if table is not None and not isinstance(table, RankTable):
        raise ConfigError(f"table must be a table of ranks, got {type(table).__name__}")
    if isinstance(multiple_of, bool) or not isinstance(multiple_of, int) or multiple_of < 1:
        raise ConfigError(f"multiple_of={multiple_of!r}: say a whole number, at least 1")
    whole = isinstance(floor, int) and not isinstance(floor, bool) and floor >= 1
    if not whole and not (isinstance(floor, float) and 0 < floor <= 1):
        raise ConfigError(
            f"floor={floor!r}: say a rank (a whole number from 1) or a share of the full one (up to 1.0)"
        )
    listed = list(method) if isinstance(method, list | tuple) else [method]
    if not listed:
        raise ConfigError("method is empty: say 'svd', 'tucker', 'cp' or 'spatial_svd'")
    methods = tuple(as_method(each) for each in listed)
    goal: Any = target if target is not None else table.ranks() if table is not None else ranks
    if not isinstance(goal, Target | Mapping):
        goal = as_rule(goal)
    if isinstance(goal, Mapping) and not goal:
        raise ConfigError("no layer is chosen: give ranks such as {'conv1': [8, 16]}")
    return Request(methods, goal, multiple_of, floor, bool(correct_bias))


def held_layers(captured: Captured, hold: Sequence[str]) -> dict[str, str]:
    """Layers that must not be touched: by the user's wish, or because the model's code reads their attributes.

    Raises:
        ConfigError: a pattern that matches nothing.
    """
    model = captured.model
    assert model is not None
    patterns = (hold,) if isinstance(hold, str) else tuple(hold)
    paths = [path for path, _ in model.named_modules()]
    missing = [pattern for pattern in patterns if not any(_matches(pattern, path) for path in paths)]
    if missing:
        near = difflib.get_close_matches(missing[0], paths, 3)
        similar = f"; similar: {', '.join(near)}" if near else ""
        raise ConfigError(f"hold: no layer matches {', '.join(map(repr, missing))}{similar}")
    held = {path: "is held, as asked" for path in paths if any(_matches(p, path) for p in patterns)}
    sites, _ = find_sites(captured)
    inputs = captured.run_inputs
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (inputs.args, inputs.kwargs))
    with left_as_found(model), buffers_kept(model), torch.no_grad():
        with attributes_read(model, sites) as read:
            model(*args, **kwargs)
    return {**{path: f"its {said} is read by the model's code" for path, said in read.items()}, **held}


def _matches(pattern: str, path: str) -> bool:
    return path == pattern or path.startswith(f"{pattern}.") or fnmatch.fnmatchcase(path, pattern)


def decided(
    captured: Captured, request: Request, data: Any, hold: Sequence[str]
) -> tuple[Work, dict[str, tuple[int, ...]]]:
    """Which layers are replaced, and at which ranks.

    Raises:
        ConfigError: layers, ranks or data that do not fit; all problems of the ranks at once.
        TargetError: no ranks reach the target.
    """
    if data is not None and iter(data) is data:
        raise ConfigError(
            "data can be read only once, and is read several times: pass a list of batches, or a data loader"
        )
    work = workable(captured, request.methods, held_layers(captured, hold))
    if isinstance(request.goal, Mapping):
        request = _checked_ranks(work, request)
    elif not work.sites:
        said = "; ".join(f"{path} {reason}" for path, reason in list(work.reasons.items())[:5])
        raise ConfigError(f"no layer can be decomposed by {_names(request.methods)}: {said or 'there is none'}")  # fmt: skip
    return work, choose_ranks(captured, work, request, data)


def _names(methods: Sequence[Method]) -> str:
    return " or ".join(method.name for method in methods)


def _checked_ranks(work: Work, request: Request) -> Request:
    problems, checked = [], {}
    assert isinstance(request.goal, Mapping)
    for path, given in request.goal.items():
        if path not in work.sites:
            near = difflib.get_close_matches(path, work.sites, 3)
            similar = f"; similar: {', '.join(near)}" if near else ""
            problems.append(f"{path} {work.reasons[path]}" if path in work.reasons else f"there is no layer {path!r} that can be decomposed{similar}")  # fmt: skip
            continue
        method, site = work.methods[path], work.sites[path]
        ranks = tuple(given) if isinstance(given, list | tuple) else (given,)
        full, names = method.full(site.geometry), method.rank_names
        if len(ranks) != len(names):
            problems.append(f"{path}: {method.name} takes {len(names)} rank{'s' * (len(names) > 1)} ({', '.join(names)}), got {given!r}")  # fmt: skip
            continue
        for name, rank, most in zip(names, ranks, full, strict=True):
            if type(rank) is not int or not 1 <= rank <= most:
                problems.append(f"{path}: {name}={rank!r}; say a whole number, 1 to {most}")
        checked[path] = ranks
    if problems:
        raise ConfigError("ranks do not fit: " + "; ".join(problems[:10]))
    return Request(request.methods, checked, request.multiple_of, request.least, request.centered)


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
    for path, site, kernel, metric in metrics_of(captured, work, ranks, data, centered):
        has = biases[path] if biases is not None else work.bias(path, data is not None, centered)
        each = factored(site, kernel, work.methods[path], ranks[path], metric, has)
        slower = _slower(site, each.chain) if only_faster else None
        if slower:
            work.reasons[path] = slower
        else:
            made[path] = each
    work.metrics.clear()
    chains = {path: each.chain for path, each in made.items()}
    new = copy_with(model, chains)
    error = same_as_hooked(captured, new, chains)
    if not error <= TOLERANCE:
        raise VerificationError(
            f"the model with replaced layers differs by {error:.1e} from the original with the same layers' results overridden "
            f"(allowed {TOLERANCE:.0e}): its code looks at the layers otherwise than by calling them. Leave them alone with hold."
        )
    return Outcome(new, made, _measured(captured, chains, data), work, error)


def _measured(captured: Captured, chains: Mapping[str, nn.Module], data: Any) -> dict[str, float]:
    """Errors at the outputs of the layers on the data, or on the example inputs, with the original's inputs."""
    model = captured.model
    assert model is not None
    sums = {path: _Errors(model.get_submodule(path), chain) for path, chain in chains.items()}
    if sums:
        batches = [captured.run_inputs] if data is None else data
        forward_all(captured, {path: each.add for path, each in sums.items()}, batches)
    return {path: each.relative() for path, each in sums.items()}


@dataclass(eq=False)
class _Errors:
    layer: nn.Module
    chain: nn.Module
    squared: float = 0.0
    total: float = 0.0
    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        axis = -1 if isinstance(self.layer, nn.Linear) else 1 if x.dim() == self.layer.weight.dim() else 0  # type: ignore[union-attr, operator]
        # the class's own forward: the layer's hook is what called this
        wanted = type(self.layer).forward(self.layer, x)
        rows = wanted.movedim(axis, -1).flatten(0, -2).double()
        self.squared += float((self.chain(x).double() - wanted.double()).square().sum())
        self.total += float(rows.square().sum())
        self.mean = self.mean + rows.sum(0)
        self.count += len(rows)

    def relative(self) -> float:
        if not self.count:
            return 0.0
        spread = self.total - float(self.mean.square().sum()) / self.count
        return (self.squared / spread) ** 0.5 if spread > 0 else float(self.squared > 0)


def _slower(site: Site, chain: nn.Module) -> str | None:
    """Why a replacement is refused, where it is no faster than the layer on what one pass gives it."""
    g, weight = site.geometry, site.layer.weight
    rows, size = max(site.calls)
    x = torch.randn((rows, g.inputs, *size), device=weight.device).to(weight.dtype)
    times: dict[nn.Module, list[float]] = {site.layer: [], chain: []}
    with torch.no_grad():
        for turn in range(-1, _TURNS):
            for layer, took in times.items():
                began = time.perf_counter()
                type(layer).forward(layer, x)
                if x.device.type != "cpu":
                    torch.accelerator.synchronize(x.device)
                if turn >= 0:
                    took.append(1e3 * (time.perf_counter() - began))
    before, after = (statistics.median(took) for took in times.values())
    return None if after < before else f"would be no faster: {before:.2f} ms before, {after:.2f} ms after"


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
