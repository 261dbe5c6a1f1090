"""A report as plain text, for a terminal of any width."""

from __future__ import annotations

import statistics

from prunus.report.data import Report
from prunus.report.replaced import REPLACED_HEAD, replaced_cells, replaced_line
from prunus.report.rows import Row, layer_rows
from prunus.structure.table import aligned, by_operator

__all__ = [
    "LAYER_HEAD",
    "TOTALS_HEAD",
    "as_text",
    "asked",
    "checked_lines",
    "counts_line",
    "form_line",
    "layer_cells",
    "percent",
    "recovery_lines",
    "remarks",
    "totals",
    "verification_line",
    "versions_line",
]

_CONDITIONS = 4  # shown
_NAMES = {"params": "parameters", "macs": "MACs", "size_bytes": "bytes", "latency_ms": "latency (ms)"}
TOTALS_HEAD = ("", "before", "after", "kept")
LAYER_HEAD = ("layer", "kind", "weight before", "weight after", "parameters", "kept", "note")


def as_text(report: Report) -> str:
    """What was asked for, the totals, what came back, the verification, and the table of layers."""
    rows = [LAYER_HEAD, *(layer_cells(row) for row in layer_rows(report))]
    lines = [
        asked(report),
        "",
        *aligned([TOTALS_HEAD, *totals(report)], right=(1, 2, 3)),
        "",
        form_line(report),
        *inputs_lines(report),
        *checked_lines(report),
        *remarks(report),
        *(by_operator(report.unknown_operators)),
        "",
        *([*aligned(rows, right=(4, 5)), "", counts_line(report)] if report.layers else []),
        *(_replaced(report) if report.replaced else []),
        versions_line(report),
    ]
    return "\n".join(lines)


def _replaced(report: Report) -> list[str]:
    cells = [REPLACED_HEAD, *map(replaced_cells, report.replaced)]
    return [*aligned(cells, right=(2, 3, 4, 5, 6)), "", replaced_line(report.replaced)]


def inputs_lines(report: Report) -> list[str]:
    """Which sizes of the inputs are free in a graph, a saved model and an ONNX file, and why others are not."""
    sizes = report.inputs.get("sizes", {})
    if not sizes:
        return []
    shown = [
        f"{name} ({', '.join('any' if n is None else str(n) for n in mine)})" for name, mine in sizes.items()
    ]
    where = report.inputs["where"]
    more = f" and {len(where) - _CONDITIONS} more" if len(where) > _CONDITIONS else ""
    reasons = dict[str, list[str]]()
    for size, reason in report.inputs["fixed"].items():
        reasons.setdefault(reason, []).append(size)
    return [
        f"Inputs: {', '.join(shown)}{', where ' * bool(where)}{'; '.join(where[:_CONDITIONS])}{more}.",
        *(f"Fixed: {', '.join(fixed)}, because {reason}." for reason, fixed in reasons.items()),
    ]


def checked_lines(report: Report) -> list[str]:
    """What was verified and repaired; where several things were done, of each."""
    if not report.steps:
        return [verification_line(report), *recovery_lines(report)]
    lines = [
        f"{number}. {line}"
        for number, step in enumerate(report.steps, 1)
        for line in (verification_line(step), *(_repaired(step)))
    ]
    return [*lines, *_evaluated(report)]


def asked(report: Report) -> str:
    """Method, target and how numbers were chosen, in a sentence; of all steps, one after the other."""
    if report.steps:
        first, *others = (_asked(step) for step in report.steps)
        return " ".join([first, *(f"Then {said[0].lower()}{said[1:]}" for said in others)])
    return _asked(report)


def _asked(report: Report) -> str:
    target = ", ".join(f"{unit}={fraction:g}" for unit, fraction in report.target.items())
    chosen = (
        "numbers given by hand"
        if report.allocation == "manual"
        else report.allocation and f"{report.allocation} allocation"
    )
    options = [f"{name}={value}" for name, value in report.options.items()]
    said = ", ".join([*([chosen] if chosen else []), *options])
    return (
        f"{'Decomposed' if report.replaced else 'Pruned'} by {report.method or 'hand'}"
        + (f" to {target}" if target else "")
        + (f" ({said})." if said else ".")
    )


def totals(report: Report) -> list[tuple[str, str, str, str]]:
    """Rows of name, before, after and the share kept; latency only where it was measured."""
    rows = []
    for unit, name in _NAMES.items():
        before, after = getattr(report.before, unit), getattr(report.after, unit)
        if after is None:
            continue
        if unit == "latency_ms" and report.latency_threads:
            name += f", {report.latency_threads} thread{'s' * (report.latency_threads != 1)}"
        form = ",.2f" if unit == "latency_ms" else ",d"
        kept = "" if before is None else f"{after / before:.1%}" if before else "100.0%"
        rows.append((name, "-" if before is None else format(before, form), format(after, form), kept))
    return rows


def form_line(report: Report) -> str:
    """What kind of module came back, and why."""
    if report.form == "class" and report.replaced and report.layers:
        return "Model: your own class with smaller parameters, and layers replaced by chains of smaller ones."
    if report.form == "class" and report.replaced:
        return "Model: your own class with layers replaced by chains of smaller ones."
    if report.form == "class":
        said = f" ({report.form_reason})" if report.form_reason else ""
        return f"Model: your own class with smaller parameters{said}."
    return f"Model: a graph module with layers under their original names, because {report.form_reason}"


def verification_line(report: Report) -> str:
    """How well the result agrees with the masked original."""
    checked = report.verification
    if checked is None:
        return "Not verified: verification was turned off."
    count = checked["inputs_checked"]
    said = "Verified" if checked["passed"] else "WRONG"
    error, tolerance = checked["max_relative_error"], checked["tolerance"]
    if report.replaced:
        return (
            f"{said}: replaced layers differ from the product of their factors by {error:.1e} of their outputs' scale at most "
            f"(allowed {tolerance:.0e}; {checked['dtype']}, {count} layer{'s' * (count != 1)})."
        )
    return (
        f"{said}: differs from the masked original by {error:.1e} of the outputs' scale at most "
        f"(allowed {tolerance:.0e}; {checked['dtype']}, {count} input{'s' * (count != 1)})."
    )


def percent(share: float) -> str:
    """A share as text; what an estimate puts below zero is zero."""
    return f"{max(share, 0.0):.1%}"


def recovery_lines(report: Report) -> list[str]:
    """What was repaired on data, and what that brought."""
    return [*_repaired(report), *_evaluated(report)]


def _evaluated(report: Report) -> list[str]:
    said = {
        "original": "the original",
        "cut": "cut",
        "compensate": "after compensation",
        "batch_norm": "after batch normalizations",
        "result": "the result",
    }
    values = report.evaluation or {}
    return (
        ["Evaluated: " + ", ".join(f"{v:.6g} {said[step]}" for step, v in values.items()) + "."]
        if values
        else []
    )


def _repaired(report: Report) -> list[str]:
    if report.recovery is None:
        return []
    names = {
        "compensate": "layers were fitted to the original's outputs",
        "heads": "sets of heads keep mixtures of all their channels",
        "logits": "attentions got back what their queries and keys had lost",
        "batch_norm": "batch normalizations were estimated anew",
    }
    lines = []
    for step, said in names.items():
        repairs = [r for r in report.recovery["repairs"] if r["step"] == step]
        if repairs and step == "heads":
            lines.append(f"Repaired: {len(repairs)} {said} instead of some as they are.")
        elif repairs:
            before, after = (statistics.median(r[key] for r in repairs) for key in ("before", "after"))
            lines.append(
                f"Repaired: {len(repairs)} {said}, from {report.recovery['samples']:,} inputs without labels: their relative error "
                f"fell from {percent(before)} to {percent(after)} in the median, on inputs that were held out."
            )
    worst = sorted(report.recovery.get("groups", {}).items(), key=lambda item: -item[1]["after"])[:3]
    if worst:
        said = ", ".join(f"{name} {percent(e['before'])} → {percent(e['after'])}" for name, e in worst)
        lines.append(f"Most error left behind groups: {said}.")
    if report.recovery["biases"]:
        count = len(report.recovery["biases"])
        lines.append(
            f"{count} {'layer was' if count == 1 else 'layers were'} given a bias, as the plan says."
        )
    return lines or ["Repaired: nothing, as no step helped on inputs that were held out."]


def remarks(report: Report) -> list[str]:
    """Notes on the run and on the verification."""
    said = (report.verification or {}).get("remarks", ())
    return [f"Note: {text}" for text in (*report.notes, *said)]


def layer_cells(row: Row) -> tuple[str, str, str, str, str, str, str]:
    """A row as text."""
    notes = [f"each of {row.layers}"] if row.layers > 1 else []
    notes += [f"left alone: {row.reason}"] if row.reason else []
    kept = "" if row.reason else f"{row.params_kept:.1%}"
    return row.path, row.kind, row.before, row.after, f"{row.params:,}", kept, "; ".join(notes)


def counts_line(report: Report) -> str:
    """How many layers shrank, went, and stayed."""
    alone = sum(layer.reason is not None for layer in report.layers)
    gone = sum(layer.after is None for layer in report.layers)
    smaller = len(report.layers) - alone - gone
    return f"{len(report.layers)} layers: {smaller} smaller, {gone} gone, {alone} left alone."


def versions_line(report: Report) -> str:
    """What it was made with."""
    made = {"prunus": "prunus", "torch": "torch", "python": "Python"}
    said = [f"{made.get(name, name)} {version}" for name, version in report.versions.items()]
    return ", ".join([*said, f"seed {report.seed}"])
