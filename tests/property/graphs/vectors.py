"""Steps from a vector (N, C) to another."""

from tests.property.form import divisors
from tests.property.graphs import maps, tokens
from tests.property.graphs.sketch import Sketch, Value


def norm(g: Sketch, x: Value) -> Value:
    if g.maybe():
        return g.make(x, f"{g.part(f'nn.BatchNorm1d({x.channels})')}({x.name})")
    return tokens.norm(g, x)


def bilinear(g: Sketch, x: Value) -> Value:
    out = g.one_of(maps.WIDTHS)
    layer = g.part(f"nn.Bilinear({x.channels}, {x.channels}, {out})")
    return g.make(x, f"{layer}({x.name}, torch.tanh({x.name}))", channels=out)


def outer(g: Sketch, x: Value) -> Value:
    a, b = g.part(f"nn.Linear({x.channels}, 2)"), g.part(f"nn.Linear({x.channels}, 3)")
    if g.maybe():
        return g.make(x, f"({a}({x.name})[:, :, None] * {b}({x.name})[:, None]).flatten(1)", channels=6)
    return g.make(x, f"torch.einsum('na,nb->nab', {a}({x.name}), {b}({x.name})).flatten(1)", channels=6)


def steps(g: Sketch, x: Value) -> Value:
    """A recurrent cell, twice."""
    kind, hidden = g.one_of(("LSTM", "GRU", "RNN")), g.one_of((2, 4))
    cell = g.part(f"nn.{kind}Cell({x.channels}, {hidden})")
    g.mixes()
    g.holds("the states of a recurrent layer")
    last = "NEW_b[0]" if kind == "LSTM" else "NEW_b"
    return g.make(
        x, f"NEW_a = {cell}({x.name})", f"NEW_b = {cell}({x.name} * 2, NEW_a)", last, channels=hidden
    )


def mixture(g: Sketch, x: Value) -> Value:
    """Experts by soft weights."""
    out, experts = g.one_of(maps.WIDTHS), 2
    gate = g.part(f"nn.Linear({x.channels}, {experts})")
    layers = [g.part(f"nn.Linear({x.channels}, {out})") for _ in range(experts)]
    both = ", ".join(f"{layer}({x.name})" for layer in layers)
    g.mixes()
    g.holds("number of experts")
    return g.make(
        x, f"(torch.stack(({both}), 1) * {gate}({x.name}).softmax(-1)[..., None]).sum(1)", channels=out
    )


def reduced(g: Sketch, x: Value) -> Value:
    rows = g.one_of(divisors(x.channels))
    g.mixes()
    return g.make(
        x,
        f"{x.name}.view(-1, {rows}, {x.channels // rows}).{g.one_of(('sum', 'amax', 'mean'))}(2)",
        channels=rows,
    )


STEPS = (
    *[tokens.linear] * 4, maps.again, tokens.tied, norm, bilinear, outer, steps, mixture, reduced, tokens.scaled, tokens.mlp,
    maps.pointwise, maps.pointwise, maps.moved, maps.gated, maps.over_channels, maps.held,
)  # fmt: skip
