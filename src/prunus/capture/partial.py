"""Capture what can be captured of a model whose whole forward cannot: its largest submodules that export.

One real forward for each example shows what each submodule is called with. Those that export are called, one after another, by one bare
module (`Parts`) that keeps their names; that module is captured like any other. Where one gets the very tensor that another
has returned, it does so in `Parts` too (`flow`). All else that flows between them passes through code that nobody has
seen, so it keeps its sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture.batch import batch_size, with_batch
from prunus.capture.diagnose import first_line, place_in_model
from prunus.capture.export import Export, NotExportableError, export_calls, export_module
from prunus.capture.flow import Flow, Leaf, kind_of_call, loose_kind, run_once, watched
from prunus.capture.parts import LeftOut, Partial, Parts
from prunus.errors import CaptureError
from prunus.inputs import Inputs

__all__ = ["capture_parts"]

Check = Callable[[nn.Module, Inputs, Export], object]
_PLAIN = (Tensor, int, float, complex, bool, str, type(None), torch.dtype, torch.device)


@dataclass
class _Search:
    """What was found so far.

    Attributes:
        parts: Path of a submodule that exports -> kind of call -> export.
        same: (path, kind of call) -> the kind with whose export it shares all but the size of the batch.
        left_out: Submodules that do not export.
    """

    parts: dict[str, dict[str, Export]] = field(default_factory=dict)
    same: dict[tuple[str, str], str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def capture_parts(
    model: nn.Module, examples: Sequence[Inputs], whole: CaptureError, check: Check
) -> tuple[Parts, Export, Inputs, Partial]:
    """Find the largest submodules that can be exported, and export them together.

    Returns:
        The parts as one module; its export; smaller inputs for it, enough to check that two versions of it agree; and what
        else is known.

    Args:
        model: The model, in evaluation mode.
        examples: Inputs with which it runs; what each of them reaches is united.
        whole: Why it cannot be exported as a whole.
        check: Raises `NotExportableError` where the export of a submodule, with its inputs, is of no use.

    Raises:
        CaptureError: If no submodule with parameters can be exported: the given one.
    """
    search = _Search(left_out=[_left_out("", whole)])
    frontier = [""]
    while frontier:
        wanted = {path: module for parent in frontier for path, module in _children(model, parent)}
        calls = _recorded(model, examples, wanted) if wanted else {}
        frontier = [path for path in wanted if not _try(search, path, wanted[path], calls[path], check)]
    if not search.parts:
        raise CaptureError(str(whole)) from whole.__cause__
    flow = _united(watched(model, examples, list(search.parts)), search.same)
    # in the order in which they were called, so that what is passed on is there
    keys = [key for key in flow.links if key[1] in search.parts.get(key[0], {})]
    exports = [search.parts[path][kind] for path, kind in keys]
    links = _links(flow, keys)
    parts = Parts(model, tuple(path for path, _ in keys), links)
    calls = [_without(each.run_inputs, linked) for each, linked in zip(exports, links, strict=True)]
    export = export_calls(parts, [(c, e.static_reason) for c, e in zip(calls, exports, strict=True)])
    partial = Partial(
        model,
        tuple(dict.fromkeys(parts.calls)),
        tuple(search.left_out),
        frozenset(flow.used),
        frozenset(flow.touched),
        tuple(examples),
        _passed_on(flow, keys, exports),
    )
    return parts, export, _few(calls, exports, links), partial


def _united(flow: Flow, same: dict[tuple[str, str], str]) -> Flow:
    """The flow with calls that differ in the size of the batch alone as one kind."""

    def leaf(source: Leaf) -> Leaf:
        path, kind, number = source
        return path, same.get((path, kind), kind), number

    united = Flow(used=flow.used, touched=flow.touched, opened={leaf(source) for source in flow.opened})
    for (path, kind), arguments in flow.links.items():
        mine = united.links.setdefault((path, same.get((path, kind), kind)), {})
        for number, sources in arguments.items():
            mine.setdefault(number, set()).update(s and leaf(s) for s in sources)
    for source, axes in flow.read.items():
        united.read.setdefault(leaf(source), set()).update(axes)
    return united


def _few(calls: list[Inputs], exports: list[Export], links: tuple[dict[int, tuple[int, int]], ...]) -> Inputs:
    """The inputs of all calls with two samples each, as far as batches are dynamic: detectors make a thousand boxes."""
    chain = list(range(len(calls)))  # calls that hand each other tensors have one batch
    for index, linked in enumerate(links):
        for source, _ in linked.values():
            chain = [chain[source] if c == chain[index] else c for c in chain]
    reduced = []
    for index, call in enumerate(calls):
        together = [exports[i] for i, c in enumerate(chain) if c == chain[index]]
        sizes = {batch_size(each.run_inputs) for each in together}
        size = next(iter(sizes))
        free = len(sizes) == 1 and all(each.static_reason is None for each in together)
        reduced.append(with_batch(call, size, 2) if free and size is not None and size > 2 else call)
    return Inputs(tuple((call.args, call.kwargs) for call in reduced))


def _links(flow: Flow, keys: list[tuple[str, str]]) -> tuple[dict[int, tuple[int, int]], ...]:
    """What each call gets of earlier ones; what goes somewhere only sometimes, or backwards, counts as opened."""
    at = {key: index for index, key in enumerate(keys)}
    found = []
    for index, key in enumerate(keys):
        mine = {}
        for number, sources in flow.links[key].items():
            source = next(iter(sources)) if len(sources) == 1 else None
            if source is not None and at.get(source[:2], index) < index:
                mine[number] = (at[source[:2]], source[2])
            else:
                flow.opened |= {each for each in sources if each is not None}
        found.append(mine)
    return tuple(found)


def _without(call: Inputs, links: dict[int, tuple[int, int]]) -> Inputs:
    """The inputs of a call, with None for those that come from other calls."""
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    for number in links:
        leaves[number] = None
    return Inputs(*pytree.tree_unflatten(leaves, spec))


def _passed_on(flow: Flow, keys: list[tuple[str, str]], exports: list[Export]) -> dict[int, frozenset[int]]:
    """Outputs that other code passes on and does not compute with, among those of all calls."""
    found = {}
    number = 0
    for (path, kind), export in zip(keys, exports, strict=True):
        for leaf in range(export.program.call_spec.out_spec.num_leaves):  # type: ignore[union-attr]
            source = (path, kind, leaf)
            if source not in flow.opened:
                found[number] = frozenset(flow.read.get(source, ()))
            number += 1
    return found


def _children(model: nn.Module, parent: str) -> Iterable[tuple[str, nn.Module]]:
    owner = model.get_submodule(parent) if parent else model
    for name, child in owner.named_children():
        if any(True for _ in child.parameters()):
            yield (f"{parent}.{name}" if parent else name), child


def _try(
    search: _Search, path: str, module: nn.Module, calls: dict[str, Inputs] | CaptureError, check: Check
) -> bool:
    """Export a submodule for each kind of call that it gets. False: its children have to be looked at."""
    if not calls:
        return False  # a container, or not used at all: nothing to tell
    exports: dict[str, Export] = {}
    loose: dict[str, str] = {}
    try:
        if isinstance(calls, CaptureError):
            raise calls
        for kind, call in calls.items():
            twin = loose.setdefault(loose_kind(call.args, call.kwargs), kind)
            if twin in exports and exports[twin].static_reason is None:
                search.same[path, kind] = twin
            else:
                exports[kind] = export_module(module, call, "batch")
    except CaptureError as error:
        search.left_out.append(_left_out(path, error))
        return False
    try:  # what has sizes that nobody knows beforehand can be exported, and no more
        for kind, each in exports.items():
            check(module, calls[kind], each)
    except NotExportableError as error:
        search.left_out.append(_left_out(path, error))
        return False
    search.parts[path] = exports
    return True


def _left_out(path: str, error: CaptureError) -> LeftOut:
    cause = error.__cause__
    place = place_in_model(cause) if isinstance(cause, Exception) else None
    return LeftOut(path, first_line(cause) if isinstance(cause, Exception) else str(error), place)


def _recorded(
    model: nn.Module, examples: Sequence[Inputs], wanted: dict[str, nn.Module]
) -> dict[str, dict[str, Inputs] | CaptureError]:
    """One real forward for each example: with what each of the submodules is called, one example of each kind."""
    calls: dict[str, dict[str, Inputs] | CaptureError] = {path: {} for path in wanted}

    def hook(path: str) -> Any:
        def remember(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen = calls[path]
            if isinstance(seen, CaptureError) or _is_empty(args, kwargs):
                return
            strange = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if not isinstance(leaf, _PLAIN)]
            if strange:
                kind = type(strange[0])
                calls[path] = CaptureError(f"it is called with a {kind.__module__}.{kind.__qualname__}")
                return
            # a copy: the model may go on to write to what it passed
            copied = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
            seen.setdefault(kind_of_call(args, kwargs), Inputs(*copied))

        return remember

    with ExitStack() as stack:
        for path, module in wanted.items():
            stack.callback(module.register_forward_pre_hook(hook(path), with_kwargs=True).remove)
        for example in examples:
            run_once(model, example)
    return calls


def _is_empty(args: Any, kwargs: Any) -> bool:
    """A call with no rows, such as that of an expert to which nothing was sent, shows nothing."""
    return any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in pytree.tree_leaves((args, kwargs)))
