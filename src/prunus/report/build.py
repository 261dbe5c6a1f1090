"""Collect a report from the structure, the small graph and the plan."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import fx, nn

from prunus.capture import Captured, Partial, output_paths, size_of, unreached
from prunus.plan import Plan
from prunus.report.data import GroupReport, LayerReport, Report, Totals
from prunus.report.latency import measure_many
from prunus.structure import Structure
from prunus.surgery import Verification, count_macs, count_params, count_size_bytes

LATENCY_THREADS = 1


def build_report(
    structure: Structure,
    small: Captured,
    plan: Plan,
    model: nn.Module,
    form: str,
    remark: str,
    verification: Verification | None,
    measure_latency: bool,
) -> Report:
    """Report on a compression: what happened to every group and layer, and the totals counted from the results."""
    before_ms, after_ms = latency_of(structure.captured, model) if measure_latency else (None, None)
    notes = (
        [f"not part of the graph: {', '.join(structure.captured.left_out)}"]
        if structure.captured.left_out
        else []
    )
    if form == "class" and remark:
        notes.append(remark)
    notes += output_notes(structure.captured, small)
    if structure.captured.partial:
        notes += partial_notes(structure.captured.partial)
    if structure.captured.packed:
        notes.append(
            "packs sequences: cut and verified as though all had full length, and run on the example inputs as they are; data count "
            "as not padded"
        )
    notes += unreached_notes(structure.captured)
    return Report(
        form=form,
        form_reason=remark if form == "graph" else "",
        method=plan.method,
        target=plan.target,
        before=totals_before(structure.captured, before_ms),
        after=Totals(count_params(model), count_macs(small), count_size_bytes(model), after_ms),
        groups=_groups(structure, plan),
        layers=_layers(structure, small, plan),
        verification=verification.to_dict() if verification else None,
        unknown_operators=dict(structure.unknown),
        latency_threads=LATENCY_THREADS if measure_latency else None,
        notes=tuple(notes),
        inputs=small.shapes.to_dict(),
        versions=versions(),
        seed=plan.seed,
        allocation=plan.allocation,
        options=plan.options,
    )


def partial_notes(partial: Partial) -> list[str]:
    """What was captured of a model that cannot be captured as a whole, and why not more."""
    return [
        f"captured in parts: {', '.join(partial.parts)}; their inputs and outputs keep their sizes, and MACs are those of "
        "one call of each part for each form of inputs that it gets",
        *(f"left out: the code of {each}" for each in partial.left_out),
        *([f"also used by code that was left out: {', '.join(sorted(partial.used_outside))}"] if partial.used_outside else []),
    ]  # fmt: skip


def unreached_notes(captured: Captured) -> list[str]:
    """What stays whole because no example input led to it."""
    paths = ", ".join(unreached(captured))
    remedy = "where other inputs use them, pass several examples in a list"
    return [f"not used on the example inputs, and so left whole: {paths}; {remedy}"] if paths else []


def output_notes(captured: Captured, small: Captured) -> list[str]:
    """Which outputs have become narrower, and which are not there any more."""
    before, after = (list(each.graph.output_node().args[0]) for each in (captured, small))  # type: ignore[arg-type]
    paths = output_paths(captured.out_spec)
    free = [
        f"{path or 'the output'} from {_shape(before[i])} to {_shape(after[i])}"
        for i, path in enumerate(paths)
        if captured.output_state(i) == "free" and _shape(before[i]) != _shape(after[i])
    ]
    dropped = [path for i, path in enumerate(paths) if captured.output_state(i) == "drop"]
    return [
        *([f"outputs that were free got narrower: {', '.join(free)}"] if free else []),
        *(
            [f"outputs that were dropped, and so neither held nor verified: {', '.join(dropped)}"]
            if dropped
            else []
        ),
    ]


def _shape(value: Any) -> tuple[int, ...]:
    return (
        size_of(value)
        if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)
        else ()
    )


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    from prunus import __version__

    return {"prunus": __version__, "torch": torch.__version__, "python": platform.python_version()}


def totals_before(captured: Captured, latency_ms: float | None) -> Totals:
    """The original in numbers."""
    if captured.owner is not None:
        return Totals(
            count_params(captured.owner), count_macs(captured), count_size_bytes(captured.owner), latency_ms
        )
    tensors = {name: t for name, t in captured.tensors.items() if captured.kinds[name] != "constant"}
    params = sum(t.numel() for name, t in tensors.items() if captured.kinds[name] == "parameter")
    return Totals(
        params, count_macs(captured), sum(t.numel() * t.element_size() for t in tensors.values()), latency_ms
    )


def latency_of(captured: Captured, model: nn.Module) -> tuple[float | None, float]:
    """Milliseconds of the original, where there is one that runs, and of the result."""
    if captured.owner is None:
        return None, measure_many({"after": model}, captured.example, threads=LATENCY_THREADS)["after"]
    times = measure_many(
        {"before": captured.owner, "after": model}, captured.example, threads=LATENCY_THREADS
    )
    return times["before"], times["after"]


def _groups(structure: Structure, plan: Plan) -> tuple[GroupReport, ...]:
    kept = {g.name: len(g.keep) for g in plan.groups}
    return tuple(
        GroupReport(
            g.name,
            g.size,
            kept.get(g.name, g.size),
            g.held,
            g.constraints,
            tuple(f"{m.parameter}:{m.axis}" for m in g.members),
        )
        for g in structure.groups
    )


def _layers(structure: Structure, small: Captured, plan: Plan) -> tuple[LayerReport, ...]:
    captured = structure.captured
    by_layer: dict[str, list[str]] = {}
    for name, qualified in captured.names.items():
        if captured.kinds[name] == "parameter":
            by_layer.setdefault(qualified.rpartition(".")[0] or qualified, []).append(name)
    kinds = _kinds(captured)
    reasons = _reasons(structure, plan)
    alive = {n.name for n in small.graph.nodes if n.op == "placeholder" and n.users}
    used = {n.name for n in captured.graph.nodes if n.op == "placeholder" and n.users}
    layers = []
    for path, names in by_layer.items():
        largest = max(names, key=lambda n: captured.tensors[n].numel())
        gone = all(n not in alive for n in names) and any(n in used for n in names)
        after = None if gone else tuple(small.tensors[largest].shape)
        before_params = sum(captured.tensors[n].numel() for n in names)
        after_params = 0 if gone else sum(small.tensors[n].numel() for n in names)
        reason = None
        if after_params == before_params:
            reason = reasons.get(path) or (
                "is not used by the forward"
                if not any(n in used for n in names)
                else "nothing was chosen for removal here"
            )
        layers.append(
            LayerReport(
                path,
                kinds.get(largest, ""),
                tuple(captured.tensors[largest].shape),
                after,
                before_params,
                after_params,
                reason,
            )
        )
    return tuple(layers)


def _kinds(captured: Captured) -> dict[str, str]:
    kinds: dict[str, str] = {}
    cast: dict[fx.Node, fx.Node] = {}
    for node in captured.graph.nodes:
        for used in node.all_input_nodes:
            source = cast[used] if used in cast else used
            if source.op == "placeholder" and node.target is torch.ops.aten.to.dtype:
                cast[node] = source
            elif source.op == "placeholder" and node.op == "call_function":
                kinds.setdefault(source.name, _operator(node.target))
    return kinds


def _operator(target: Any) -> str:
    return str(target).removeprefix("aten.").split(".")[0]


def _reasons(structure: Structure, plan: Plan) -> dict[str, str]:
    """Why the output of a layer was left alone."""
    chosen = {g.name for g in plan.groups}
    reasons: dict[str, str] = {}
    for group in structure.groups:
        text = (
            group.held
            if group.held
            else None
            if group.name in chosen or group.outer
            else "every channel was kept"
        )
        for path in group.modules:
            if text and (path in group.producers or path not in reasons):
                reasons[path] = text
    return reasons
