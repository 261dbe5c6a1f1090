"""Random small networks: blocks of every family that the rules know, in sequence, nested and side by side."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.property import attention, maps, recurrent, tokens
from tests.property.choices import Drawn, Pick
from tests.property.form import CONVS, Do, Form, Made, divisors, project, randomize, width

BATCH, OUTPUTS = 2, 3


@dataclass(frozen=True, eq=False)
class Network:
    """A model and inputs for it."""

    model: nn.Module
    inputs: tuple[Tensor, ...]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in self.inputs)
        return f"\n{self.model}\non {sizes}"


# ---------------------------------------------------------------------- blocks around blocks
def keeping(pick: Pick, form: Form, depth: int) -> nn.Module:
    """Something that returns what has the form it was given."""
    body, after = sequence(pick, form, depth - 1, pick.integer(1, 2), resize=False)
    if after.size != form.size:  # a token more: leave it out again
        body = nn.Sequential(body, Do("cut", lambda self, x: x[:, -form.size[0] :]))
    return body if after.channels == form.channels else nn.Sequential(body, project(after, form.channels))


def residual(pick: Pick, form: Form, depth: int) -> Made:
    kind = pick.one_of(("add", "in place", "scaled", "difference", "gate"))
    body = keeping(pick, form, depth)
    functions = {
        "add": lambda self, x: x + self.body(x),
        "in place": lambda self, x: self.body(x).add_(x),
        "scaled": lambda self, x: x + 0.5 * self.body(x),
        "difference": lambda self, x: self.body(x) - x,
        "gate": lambda self, x: x * torch.sigmoid(self.body(x)),
    }
    return Do(kind, functions[kind], body=body), form


def dense(pick: Pick, form: Form, depth: int) -> Made:
    """Concatenation with what was there."""
    body, after = sequence(pick, form, depth - 1, 1, resize=False)
    if after.size != form.size:
        return residual(pick, form, depth)
    times = pick.one_of((1, 2))

    def run(self: Do, x: Tensor) -> Tensor:
        return torch.cat((self.body(x), *(x,) * times), form.axis)

    return Do(f"dense {times}", run, body=body), form.wide(after.channels + times * form.channels)


def branches(pick: Pick, form: Form, depth: int) -> Made:
    """Two branches of one width: stacked and summed (maybe with weights), added, or the larger of both."""
    kind = pick.one_of(("stack", "select", "maximum", "mean"))
    first, second = keeping(pick, form, depth), keeping(pick, form, depth)
    parts = {"first": first, "second": second}

    def run(self: Do, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        if kind == "maximum":
            return torch.maximum(a, b)
        both = torch.stack((a, b), 1)
        if kind == "select":
            return (both * self.choice.softmax(0).view(1, 2, *(1,) * (x.dim() - 1))).sum(1)
        return both.sum(1) if kind == "stack" else both.mean(1)

    if kind == "select":
        return Do(kind, run, **parts, choice=torch.zeros(2)), form
    return Do(kind, run, **parts), form


def parts(pick: Pick, form: Form, depth: int) -> Made:
    """Cut the channels apart, work on one part, join (or add) them."""
    axis, c = form.axis, form.channels
    how = pick.one_of(("split", "chunk", "slice", "unbind"))
    cut = pick.integer(1, c - 1) if how in ("split", "slice") else c // 2
    if c % 2 and how in ("chunk", "unbind"):
        how, cut = "split", 1
    body, after = sequence(pick, form.wide(cut), depth - 1, 1, resize=False)
    if after.size != form.size:
        return residual(pick, form, depth)
    added = after.channels == c - cut and pick.one_of((True, False))
    swapped = pick.one_of((True, False))

    def run(self: Do, x: Tensor) -> Tensor:
        if how == "split":
            a, b = torch.split(x, (cut, c - cut), axis)
            a = a.clone()  # torch forbids writing to a part of a split
        elif how == "chunk":
            a, b = (part.clone() for part in x.chunk(2, axis))
        elif how == "unbind":
            a, b = (
                part.clone() for part in x.unflatten(axis, (2, cut)).unbind(axis if axis > 0 else axis - 1)
            )
        else:
            a, b = x.narrow(axis, 0, cut), x.narrow(axis, cut, c - cut)
        a = self.body(a)
        if added:
            return a + b
        return torch.cat((b, a) if swapped else (a, b), axis)

    made = Do(f"parts by {how} at {cut}, added={added}, swapped={swapped}", run, body=body)
    return made, form.wide(c - cut if added else after.channels + c - cut)


AROUND = (residual, residual, dense, branches, parts)


# ---------------------------------------------------------------------- from form to form
def vector_block(pick: Pick, form: Form) -> Made:
    c = form.channels
    kind = pick.one_of(("linear", "linear", "activation", "batch", "layer", "rows", "outer", "bilinear"))
    if kind == "linear":
        return tokens.linear(pick, form)
    if kind == "activation":
        return tokens.activation(pick, form)
    if kind == "batch":
        return nn.BatchNorm1d(c), form
    if kind == "layer":
        return tokens.norm(pick, form)
    if kind == "bilinear":
        out = width(pick)
        return Do(kind, lambda self, x: self.layer(x, F.relu(x)), layer=nn.Bilinear(c, c, out)), form.wide(
            out
        )
    if kind == "outer":
        a, b = nn.Linear(c, 2), nn.Linear(c, 3)
        made = Do(kind, lambda self, x: (self.a(x)[:, :, None] * self.b(x)[:, None]).flatten(1), a=a, b=b)
        return made, form.wide(6)
    rows = pick.one_of(divisors(c))
    function = pick.one_of(("sum", "amax", "norm"))

    def reduced(self: Do, x: Tensor) -> Tensor:
        table = x.view(-1, rows, c // rows)
        return table.norm(dim=2) if function == "norm" else getattr(table, function)(2)

    return Do(f"{function} of {rows} rows", reduced), form.wide(rows)


def change_form(pick: Pick, form: Form) -> Made:
    c = form.channels
    if form.kind == "map":
        if pick.one_of((True, False)):
            count = torch.Size(form.size).numel()
            return Do("to tokens", lambda self, x: x.flatten(2).transpose(1, 2)), Form("tokens", c, (count,))
        return nn.Flatten(), Form("vector", c * torch.Size(form.size).numel())
    if form.kind == "tokens":
        t = form.size[0]
        if t % 2 == 0 and pick.one_of((True, False)):
            # the rest of a network for maps follows
            made = Do("to map", lambda self, x: x.transpose(1, 2).reshape(x.shape[0], -1, 2, t // 2))
            return made, Form("map", c, (2, t // 2))
        return nn.Flatten(), Form("vector", c * t)
    return nn.Identity(), form


def block(pick: Pick, form: Form, depth: int, resize: bool) -> Made:
    choices: list[str] = ["plain", "plain", "plain"]
    if depth > 0:
        choices += ["around", "around", "around"]
    if form.channels >= 2 and form.kind == "tokens":
        choices += ["attention", "recurrent"]
    if resize:
        choices += ["size", "form"]
    kind = pick.one_of(choices)
    if form.channels > 16:  # keep it small
        out = width(pick)
        return project(form, out), form.wide(out)
    if kind == "form":
        return change_form(pick, form)
    if kind == "size" and form.kind == "map" and max(form.size) <= 6:
        return pick.one_of(maps.CHANGE_SIZE)(pick, form)
    if form.channels < 2:
        return project(form, 4), form.wide(4)
    if kind == "around":
        return pick.one_of(AROUND)(pick, form, depth)
    if kind == "attention":
        return pick.one_of(attention.MAKERS)(pick, form)
    if kind == "recurrent":
        return pick.one_of(recurrent.MAKERS)(pick, form)
    if form.kind == "map":
        return pick.one_of(maps.KEEP_SIZE)(pick, form)
    return pick.one_of(tokens.MAKERS)(pick, form) if form.kind == "tokens" else vector_block(pick, form)


def sequence(pick: Pick, form: Form, depth: int, steps: int, resize: bool) -> Made:
    layers: list[nn.Module] = []
    for _ in range(steps):
        layer, form = block(pick, form, depth, resize)
        layers.append(layer)
    return nn.Sequential(*layers), form


# ---------------------------------------------------------------------- whole networks
def front(pick: Pick) -> tuple[nn.Module, Form, tuple[Tensor, ...]]:
    """The first layer, what it returns, and inputs."""
    out = width(pick)
    kind = pick.one_of(("2d", "1d", "3d", "vector", "tokens", "embedding", "patches"))
    if kind == "vector":
        return nn.Linear(5, out), Form("vector", out), (torch.randn(BATCH, 5),)
    if kind == "tokens":
        return nn.Linear(5, out), Form("tokens", out, (6,)), (torch.randn(BATCH, 6, 5),)
    if kind == "embedding":
        return nn.Embedding(9, out), Form("tokens", out, (6,)), (torch.randint(9, (BATCH, 6)),)
    if kind == "patches":
        cut = Do(
            "patches", lambda self, x: self.conv(x).flatten(2).transpose(1, 2), conv=nn.Conv2d(3, out, 2, 2)
        )
        return cut, Form("tokens", out, (4,)), (torch.randn(BATCH, 3, 4, 4),)
    size = {"1d": (6,), "2d": (4, 4), "3d": (2, 2, 2)}[kind]
    conv = CONVS[len(size)](3, out, 3, padding=1)
    return conv, Form("map", out, size), (torch.randn(BATCH, 3, *size),)


def head(pick: Pick, form: Form) -> nn.Module:
    """Down to a vector in one of the usual ways, and a linear layer."""
    c = form.channels
    if form.kind == "map":
        n, count = len(form.size), torch.Size(form.size).numel()
        if pick.one_of((True, False)):
            return nn.Sequential(nn.Flatten(), nn.Linear(c * count, OUTPUTS))
        pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[n - 1](1)
        return nn.Sequential(pool, nn.Flatten(), nn.Linear(c, OUTPUTS))
    if form.kind == "vector":
        return nn.Linear(c, OUTPUTS)
    kind = pick.one_of(("all", "mean", "first", "flat"))
    if kind == "flat":
        return nn.Sequential(nn.Flatten(), nn.Linear(c * form.size[0], OUTPUTS))
    functions = {
        "all": lambda self, x: x,
        "mean": lambda self, x: x.mean(1),
        "first": lambda self, x: x[:, 0],
    }
    return nn.Sequential(Do(kind, functions[kind]), nn.Linear(c, OUTPUTS))


def build(pick: Pick) -> Network:
    torch.manual_seed(0)
    stem, form, inputs = front(pick)
    body, form = sequence(pick, form, depth=2, steps=pick.integer(1, 4), resize=True)
    model = nn.Sequential(stem, body, head(pick, form))
    return Network(randomize(model, 1).eval(), inputs)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """A random network with inputs."""
    return build(Drawn(draw))
