"""The layers of a report as rows for a table, equal blocks taken together."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from prunus.report.data import LayerReport, Report

__all__ = ["Row", "layer_rows"]


@dataclass(frozen=True)
class Row:
    """One line of the table of layers.

    Attributes:
        path: module path; `{0-11}` in it stands for equal layers in consecutive blocks.
        kind: the operator that uses the weight.
        before, after: shape of the largest parameter, as text.
        params: number of parameters that stay, of each of the layers.
        params_kept: as a fraction of those before.
        layers: how many layers the row stands for.
        reason: why the layer was left alone; empty if it shrank.
    """

    path: str
    kind: str
    before: str
    after: str
    params: int
    params_kept: float
    layers: int
    reason: str


def layer_rows(report: Report) -> list[Row]:
    """One row for each layer, or for each run of layers that are equal in consecutive blocks.

    Blocks are taken together where their paths differ in one number alone (`layers.0`, `layers.1`...), the
    numbers follow each other, and all their layers agree in kind, shapes, parameters and reason.
    """
    return [_row(*entry) for entry in _compact([(layer.path, layer, 1) for layer in report.layers])]


_Entry = tuple[str, LayerReport, int]  # path from the block that is looked at on, layer, how many such layers
_Block = tuple[str, int | None, list[_Entry]]  # path up to the number, the number, what is inside


def _compact(entries: list[_Entry]) -> list[_Entry]:
    """Merge equal consecutive blocks, outer blocks after what they contain."""
    blocks: list[_Block] = []
    for (head, number), run in groupby(entries, key=lambda entry: _split(entry[0])):
        inside = list(run)
        if number is not None:
            skip = len(f"{head}{number}")
            inside = _compact([(path[skip:], layer, count) for path, layer, count in inside])
        blocks.append((head, number, inside))
    result: list[_Entry] = []
    for same in _runs(blocks):
        head, first, inside = same[0]
        if first is None:
            result.extend(inside)
            continue
        numbers = str(first) if len(same) == 1 else f"{{{first}-{same[-1][1]}}}"
        result.extend((f"{head}{numbers}{path}", layer, count * len(same)) for path, layer, count in inside)
    return result


def _runs(blocks: list[_Block]) -> list[list[_Block]]:
    runs: list[list[_Block]] = []
    for block in blocks:
        head, number, inside = block
        last = runs[-1][-1] if runs else None
        if last and number is not None and last[1] is not None and last[0] == head and last[1] + 1 == number:
            if _content(last[2]) == _content(inside):
                runs[-1].append(block)
                continue
        runs.append([block])
    return runs


def _content(entries: Sequence[_Entry]) -> list[tuple[str, LayerReport, int]]:
    """What has to be equal: everything but where the block is."""
    return [(path, dataclasses.replace(layer, path=""), count) for path, layer, count in entries]


def _split(path: str) -> tuple[str, int | None]:
    """The first number that tells blocks apart, as in `layers.3.fc` or `layer3.fc`, and what comes before."""
    for match in re.finditer(r"([^.]*?)(0|[1-9]\d*)(\.|$)", path):
        name, digits, dot = match.groups()
        if dot or not name:  # the number at the end of a layer's own name says nothing about blocks
            return path[: match.start(2)], int(digits)
    return path, None


def _row(path: str, layer: LayerReport, count: int) -> Row:
    if layer.after is None:
        after = "gone"
    else:
        after = "same" if layer.after == layer.before and layer.reason else _shape(layer.after)
    kept = layer.params_after / layer.params_before if layer.params_before else 1.0
    shape = _shape(layer.before)
    return Row(path, layer.kind, shape, after, layer.params_after, kept, count, layer.reason or "")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "1"
