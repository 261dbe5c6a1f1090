"""Why a class cannot be given back: the number, the node and the line at which its forward departs from the small graph."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from prunus.capture.diagnose import first_line, place_in_model
from prunus.surgery.align import Alignment, shapes_of
from prunus.surgery.constraints import Solution
from prunus.surgery.record import Call, Recording

__all__ = ["Obstacle", "Obstacles"]


@dataclass(frozen=True)
class Obstacle:
    """A reason in words, and the nodes of the original that it is about, as far as they are known."""

    said: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Obstacles:
    """Knows the original's calls and nodes, and so where a candidate goes wrong."""

    solution: Solution
    alignment: Alignment

    def failing(self, failure: Exception, recording: Recording) -> Obstacle:
        """For a forward that raises; `recording` ends where it did."""
        at = self._departure(recording)
        at = min(len(recording.calls), len(self.alignment.calls) - 1) if at is None else at
        place = place_in_model(failure) or self._line(at)
        return self._numbers() or Obstacle(
            f"its forward fails at {place} ({first_line(failure)})", self._nodes(at)
        )

    def differing(self, error: float, recording: Recording) -> Obstacle:
        """For a forward that runs and computes something else."""
        at = self._departure(recording)
        where = "" if at is None else f", first at {self._line(at)}"
        said = f"its forward computes something else (relative error {error:.2g}{where})"
        return self._numbers() or Obstacle(said, () if at is None else self._nodes(at))

    def _departure(self, recording: Recording) -> int | None:
        """The first call whose result has another shape than in the small graph, as far as calls are the original's."""
        for i, (was, now) in enumerate(zip(self.alignment.calls, recording.calls, strict=False)):
            if was.name != now.name or was.path != now.path:
                return i
            node = self.alignment.new[i]
            if node is not None and shapes_of(node.meta.get("val")) != now.shapes:
                return i
        return None

    def _numbers(self) -> Obstacle | None:
        """Numbers in the code that cannot be what they have to be; the first in words."""
        said = list(self._numbers_said())
        if not said:
            return None
        at = {id(call): i for i, call in enumerate(self.alignment.calls)}
        nodes = [name for _, call in said for name in self._nodes(at[id(call)])]
        return Obstacle(said[0][0], tuple(dict.fromkeys(nodes)))

    def _numbers_said(self) -> Iterator[tuple[str, Call]]:
        for use, got in self.solution.unmet:
            needed = use.needed if use.after is None else use.after
            yield f"{_line(use.call)} makes {got} where {needed} would be needed", use.call
        for use in self.solution.written:
            if use.after is None:
                yield f"{_line(use.call)} makes equal parts, where {use.needed} would be needed", use.call
            else:
                said = f"has the number {use.before} in the code, where {use.after} would be needed"
                yield f"{_line(use.call)} {said}", use.call

    def _line(self, at: int) -> str:
        nodes = self._nodes(at)
        return _line(self.alignment.calls[at]) + (f" (node {nodes[0]!r})" if nodes else "")

    def _nodes(self, at: int) -> tuple[str, ...]:
        """The node of a call, or of the nearest one before it that has one, with its operands."""
        node = next((n for n in reversed(self.alignment.old[: at + 1]) if n is not None), None)
        operands: list[fx.Node] = [] if node is None else [node, *node.all_input_nodes]
        return tuple(dict.fromkeys(n.name for n in operands))


def _line(call: Call) -> str:
    file, _, number = call.place.rpartition(":")
    code = linecache.getline(file, int(number)).strip() if number.isdigit() else ""
    where = f"in module {call.path!r}, " if call.path else ""
    return f"{where}{call.place}: `{code}`" if code else f"{where}{call.place}"
