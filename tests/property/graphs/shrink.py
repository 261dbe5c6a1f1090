"""A failing network made smaller, for whoever has to mend it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.property.graphs.sketch import Network, Sketch, finished


def shrunk(sketch: Sketch, fails: Callable[[Network], bool]) -> Network:
    """The smallest network that still fails, by leaving out outputs and steps one after the other."""
    while True:
        for smaller in _smaller(sketch):
            if fails(finished(smaller)):
                sketch = smaller
                break
        else:
            return finished(sketch)


def _smaller(sketch: Sketch) -> Iterator[Sketch]:
    for output in sketch.outputs if len(sketch.outputs) > 1 else ():
        yield _pruned(sketch, outputs=[text for text in sketch.outputs if text != output])
    for step in reversed(sketch.steps):
        values = {other.value.name: other.value for other in sketch.steps}
        for name in sorted(step.reads):
            if name in values and values[name].alike(step.value):
                yield _without(sketch, step.value.name, name)


def _without(sketch: Sketch, name: str, instead: str) -> Sketch:
    def renamed(text: str) -> str:
        return re.sub(rf"\b{name}\b", instead, text)

    steps = [replace(s, lines=tuple(map(renamed, s.lines))) for s in sketch.steps if s.value.name != name]
    return _pruned(sketch, steps=steps, outputs=list(dict.fromkeys(map(renamed, sketch.outputs))))


def _pruned(sketch: Sketch, **changed: list) -> Sketch:
    """With what is `changed`, and without what nothing uses any more."""
    made = copy.copy(sketch)
    for key, value in changed.items():
        setattr(made, key, value)
    used, kept = set(re.findall(r"\bv\d+\b", "\n".join(made.outputs))), []
    for step in reversed(made.steps):
        if step.value.name in used:
            kept.append(step)
            used |= step.reads
    made.steps = kept[::-1]
    text = "\n".join(line for step in made.steps for line in step.lines)
    made.parts = {
        key: part for key, part in made.parts.items() if re.search(rf"\b{key.removesuffix('_made')}\b", text)
    }
    made.given = [given for given in made.given if re.search(rf"\b{given.name}\b", text)]
    return made
