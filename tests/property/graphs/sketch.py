"""A network as the text of a module: values, each made by a line or two from others."""

from __future__ import annotations

import linecache
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.property.form import randomize

T = TypeVar("T")

HEAD = """\
import math
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2 - weight.mean()
"""
BATCH = 3


@dataclass(frozen=True)
class Value:
    """A value of the network: `map` (N, C, *size), `tokens` (N, T, C) with size (T,), or `vector` (N, C)."""

    name: str
    kind: str
    channels: int
    size: tuple[int, ...] = ()

    @property
    def axis(self) -> int:
        """The axis of the channels."""
        return 2 if self.kind == "tokens" else 1

    @property
    def spatial(self) -> str:
        """The axes of the positions, as text."""
        return {"map": ", ".join(map(str, range(2, 2 + len(self.size)))), "tokens": "1", "vector": ""}[
            self.kind
        ]

    def alike(self, other: Value) -> bool:
        """Of one shape."""
        return (self.kind, self.channels, self.size) == (other.kind, other.channels, other.size)


@dataclass(frozen=True)
class Step:
    """What makes a value: statements, of which the last assigns it."""

    value: Value
    lines: tuple[str, ...]

    @property
    def reads(self) -> set[str]:
        return set(re.findall(r"\bv\d+\b", "\n".join(self.lines))) - {self.value.name}


@dataclass(frozen=True)
class Given:
    """An input of the network: its name and how an example of it is made; `{N}` and the like are sizes."""

    name: str
    text: str


@dataclass
class Sketch:
    """A network that is being drawn.

    Attributes:
        random: Where choices come from.
        parts: Text of each module or parameter, by its attribute.
        steps: What the forward does, in order.
        given: Its inputs.
        outputs: Text of each output.
        exact: Whether a removed channel is one of zeros wherever it goes: nothing mixes channels but weights.
        held: What may hold channels with a reason other than that they are returned.
    """

    random: random.Random
    parts: dict[str, str] = field(default_factory=dict)
    layers: list[tuple[str, str, int, int]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    container: str = "tuple"
    exact: bool = True
    held: set[str] = field(default_factory=set)

    # ------------------------------------------------------------------ choices
    def one_of(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def maybe(self, share: float = 0.5) -> bool:
        return self.random.random() < share

    # ------------------------------------------------------------------ text
    def part(self, text: str) -> str:
        """A module or parameter of the network; what it is called in the forward."""
        name = f"m{len(self.parts)}"
        self.parts[name] = text
        return f"self.{name}"

    def param(self, *shape: int) -> str:
        return self.part(f"nn.Parameter(torch.ones({', '.join(map(str, shape))}))")

    def make(self, like: Value, *lines: str, **changed: Any) -> Value:
        """A value with the form of `like` but for what is `changed`; the last line is an expression."""
        value = replace(like, name=f"v{len(self.steps)}", **changed)
        *before, last = lines
        before = [line.replace("NEW", value.name) for line in before]
        self.steps.append(Step(value, (*before, f"{value.name} = {last}".replace("NEW", value.name))))
        return value

    def mixes(self) -> None:
        """A removed channel of zeros would be noticed from here on."""
        self.exact = False

    def holds(self, what: str) -> None:
        """From here on, channels may be held by this."""
        self.held.add(what)


@dataclass(frozen=True)
class Network:
    """A module with inputs for it, and the text that it was made from.

    Attributes:
        source: The text of class `Net`.
        given: Its inputs.
        exact: See `Sketch`.
        held: See `Sketch`.
    """

    source: str
    given: tuple[Given, ...]
    exact: bool
    held: frozenset[str]

    def model(self) -> nn.Module:
        """The network, the same numbers every time."""
        torch.manual_seed(0)
        name = f"<random graph {hash(self.source)}>"
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(keepends=True), name)
        space: dict[str, Any] = {"__name__": "random_graph"}
        exec(compile(self.source, name, "exec"), space)
        return randomize(space["Net"](), 1).eval()

    def inputs(self, seed: int = 0, **sizes: int) -> tuple[Tensor, ...]:
        """Inputs; `N` is the batch, `H`, `W` and `L` the sizes of maps and sequences."""
        generator = torch.Generator().manual_seed(seed)
        used = {"N": BATCH, "H": 4, "W": 6, "L": 6} | sizes
        space = {"torch": torch, "g": generator}
        return tuple(eval(given.text.format(**used), space) for given in self.given)

    def __str__(self) -> str:
        args = ", ".join(f"{given.name}={given.text.format(N=BATCH, H=4, W=6, L=6)}" for given in self.given)
        return f"{self.source}\n# {args}"


def finished(sketch: Sketch) -> Network:
    """The text of a sketch."""
    returned = {
        "tuple": "(" + ", ".join(sketch.outputs) + ",)",
        "list": "[" + ", ".join(sketch.outputs) + "]",
        "dict": "{" + ", ".join(f"'o{i}': {text}" for i, text in enumerate(sketch.outputs)) + "}",
        "one": sketch.outputs[0],
    }[sketch.container if len(sketch.outputs) > 1 else "one"]
    forward = [line for step in sketch.steps for line in step.lines] + [f"return {returned}"]
    lines = [
        HEAD,
        "",
        "class Net(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        self.{name} = {text}" for name, text in sketch.parts.items()),
        "",
        f"    def forward(self, {', '.join(given.name for given in sketch.given)}):",
        *(f"        {line}" for line in forward),
        "",
    ]
    return Network("\n".join(lines), tuple(sketch.given), sketch.exact, frozenset(sketch.held))
