"""A structure as a table that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from prunus.errors import printable
from prunus.structure.groups import Group
from prunus.structure.structure import Structure

__all__ = ["aligned", "as_text", "by_operator", "prunable_share"]

_LISTED = 3  # layers or nodes named before "and 5 more"


def as_text(structure: Structure) -> str:
    """The groups that can be pruned with their layers, then those that are held with the reasons."""
    prunable = structure.prunable
    held = [group for group in structure.groups if group.held is not None]
    lines = [
        f"{_count(len(structure.groups), 'group')} of channels: {len(prunable)} can be pruned, {len(held)} "
        f"held. {prunable_share(structure):.1%} of the parameters are in tensors that can shrink."
    ]
    if prunable:
        rows = [("group", "units", "constraint", "made by -> used by")]
        lines += ["", *aligned([*rows, *(_prunable_row(group) for group in prunable)], right=(1,))]
    if held:
        rows = [("held group", "units", "why")]
        lines += ["", *aligned([*rows, *((g.name, f"{g.size:,}", g.held or "") for g in held)], right=(1,))]
    lines += by_operator(structure.unknown)
    if structure.captured.partial:
        partial = structure.captured.partial
        lines += ["", f"Captured in parts: {', '.join(partial.parts)}. Left out is the code of"]
        lines += [f"  {each}" for each in partial.left_out]
    if structure.captured.left_out:
        lines += ["", f"Not part of the graph: {', '.join(structure.captured.left_out)}."]
    return printable("\n".join(lines))


def prunable_share(structure: Structure) -> float:
    """Share of the parameters, by number of elements, in tensors from which something can be removed."""
    captured = structure.captured
    parameters = [name for name, kind in captured.kinds.items() if kind == "parameter"]
    sizes = {captured.names[name]: captured.tensors[name].numel() for name in parameters}
    reached = {member.parameter for group in structure.prunable for member in group.members}
    total = sum(sizes.values())
    return sum(size for name, size in sizes.items() if name in reached) / total if total else 0.0


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows as lines of columns, the head underlined; the last column is as wide as it likes.

    Args:
        rows: cells, the head first, equally many in each row.
        right: columns that are aligned to the right.
    """
    rows = [[printable(cell).replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[-1] = len(rows[0][-1])
    lines = []
    for row in rows:
        cells = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def by_operator(unknown: dict[str, str]) -> list[str]:
    """Lines that name each operator without a rule once, with some of the nodes that call it."""
    nodes: dict[str, list[str]] = {}
    for node, operator in unknown.items():
        nodes.setdefault(operator, []).append(node)
    lines = [
        f"No rule for {operator} (at {', '.join(calls[:_LISTED])}{_more(calls)}): what touches it is held."
        for operator, calls in nodes.items()
    ]
    return ["", *lines] if lines else []


def _prunable_row(group: Group) -> tuple[str, str, str, str]:
    makers = group.producers
    users = tuple(path for path in group.modules if path not in makers)
    made_by = "itself" if makers == (group.name,) else _listed(makers)
    where = f"{made_by} -> {_listed(users)}" if users else made_by
    return group.name, f"{group.size:,}", "; ".join(group.constraints), where


def _listed(paths: Sequence[str]) -> str:
    """The first few paths, what they all begin with written once: `layer2.{0.conv2, 1.conv2}`."""
    named = [path.split(".") for path in paths[:_LISTED]]
    steps = zip(*(path[:-1] for path in named), strict=False)
    common = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, steps)]
    text = ", ".join(".".join(path[len(common) :]) for path in named)
    if common and len(named) > 1:
        text = f"{'.'.join(common)}.{{{text}}}"
    elif common:
        text = ".".join((*common, text))
    return text + _more(paths)


def _more(things: Sequence[str]) -> str:
    return f" and {len(things) - _LISTED} more" if len(things) > _LISTED else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
