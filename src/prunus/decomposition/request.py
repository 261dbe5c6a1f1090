"""What is asked for, checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunus.allocation import Target
from prunus.capture import Captured
from prunus.capture.preserve import buffers_kept, left_as_found
from prunus.decomposition.base import as_method
from prunus.decomposition.decide import Request, Work
from prunus.decomposition.ranks import as_rule
from prunus.decomposition.sites import find_sites
from prunus.decomposition.table import RankTable
from prunus.decomposition.watch import attributes_read
from prunus.errors import ConfigError
from prunus.patterns import checked_patterns, matches, paths_of
from prunus.request import checked_target

__all__ = ["checked_ranks", "held_layers", "requested"]


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
        said = " and ".join(named) or "none"
        raise ConfigError(f"give exactly one of target=prunus.Target(macs=0.5), ranks and table; got {said}")
    if target is not None and checked_target(target).unit == "channels":
        raise ConfigError("decomposition keeps all channels: set a target for macs, params or size_bytes")
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


def held_layers(captured: Captured, hold: Sequence[Any]) -> dict[str, str]:
    """Layers that must not be touched: by the user's wish, or because the model's code reads their attributes.

    Raises:
        ConfigError: a pattern that matches nothing.
    """
    model = captured.model
    assert model is not None
    patterns = paths_of(model, checked_patterns(hold, "hold"), "hold")
    paths = [path for path, _ in model.named_modules()]
    missing = [pattern for pattern in patterns if not any(matches(pattern, path) for path in paths)]
    if missing:
        near = difflib.get_close_matches(missing[0], paths, 3)
        similar = f"; similar: {', '.join(near)}" if near else ""
        raise ConfigError(f"hold: no layer matches {', '.join(map(repr, missing))}{similar}")
    held = {path: "is held, as asked" for path in paths if any(matches(p, path) for p in patterns)}
    sites, _ = find_sites(captured)
    inputs = captured.run_inputs
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (inputs.args, inputs.kwargs))
    with left_as_found(model), buffers_kept(model), torch.no_grad():
        with attributes_read(model, sites) as read:
            model(*args, **kwargs)
    return {**{path: f"its {said} is read by the model's code" for path, said in read.items()}, **held}


def checked_ranks(work: Work, request: Request) -> Request:
    """The request with ranks as tuples that fit the layers.

    Raises:
        ConfigError: they do not; all problems at once.
    """
    problems, checked = [], {}
    assert isinstance(request.goal, Mapping)
    for path, given in request.goal.items():
        if path not in work.sites:
            near = difflib.get_close_matches(path, work.sites, 3)
            similar = f"; similar: {', '.join(near)}" if near else ""
            unknown = f"there is no layer {path!r} that can be decomposed{similar}"
            problems.append(f"{path} {work.reasons[path]}" if path in work.reasons else unknown)
            continue
        method, site = work.methods[path], work.sites[path]
        ranks = tuple(given) if isinstance(given, list | tuple) else (given,)
        full, names = method.full(site.geometry), method.rank_names
        if len(ranks) != len(names):
            takes = f"{len(names)} rank{'s' * (len(names) > 1)} ({', '.join(names)})"
            problems.append(f"{path}: {method.name} takes {takes}, got {given!r}")
            continue
        for name, rank, most in zip(names, ranks, full, strict=True):
            if type(rank) is not int or not 1 <= rank <= most:
                problems.append(f"{path}: {name}={rank!r}; say a whole number, 1 to {most}")
        checked[path] = ranks
    if problems:
        raise ConfigError("ranks do not fit: " + "; ".join(problems[:10]))
    return Request(request.methods, checked, request.multiple_of, request.least, request.centered)
