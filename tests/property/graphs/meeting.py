"""Steps that join several values, or lead from one form to another."""

from tests.property.graphs import maps
from tests.property.graphs.sketch import Sketch, Value


def projected(g: Sketch, x: Value, channels: int) -> Value:
    """`x` with so many channels."""
    if x.channels == channels:
        return x
    kind = (
        f"nn.Conv{len(x.size)}d({x.channels}, {channels}, 1)"
        if x.kind == "map"
        else f"nn.Linear({x.channels}, {channels})"
    )
    return g.make(x, f"{g.part(kind)}({x.name})", channels=channels)


ALIKE = (
    "{a} + {b}", "{a} + {b}", "{a} + {b}", "{a} * {b}", "{a} - {b}", "torch.maximum({a}, {b})", "{a} * torch.sigmoid({b})",
    "torch.lerp({a}, {b}, 0.3)", "torch.where({a} > 0, {a}, {b})", "torch.addcmul({a}, {b}, {b}, value=0.5)",
    "torch.stack(({a}, {b})).mean(0)", "torch.stack(({a}, {b}), 1).sum(1)", "{a} / ({b}.abs() + 1)", "sum(({a}, {b}))",
    "torch.stack(({a}, {b}), 1).amax(1)", "{a}.clone().add_({b})", "torch.min({a}, {b})", "torch.atan2({a}, {b}.abs() + 1)",
    "{a} + 0.5 * {b}", "torch.add({a}, {b}, alpha=2)",
)  # fmt: skip


def added(g: Sketch, a: Value, b: Value) -> Value:
    return g.make(a, g.one_of(ALIKE).format(a=a.name, b=projected(g, b, a.channels).name))


def joined(g: Sketch, a: Value, b: Value) -> Value:
    kind = g.one_of(("cat", "cat", "cat", "inside", "stack"))
    if kind == "stack" and a.channels == b.channels:
        return g.make(
            a,
            f"torch.stack(({a.name}, {b.name}), {a.axis + 1}).flatten({a.axis}, {a.axis + 1})",
            channels=2 * a.channels,
        )
    if kind == "inside":
        return g.make(
            a, f"torch.cat(({a.name}, {b.name}, {a.name}), {a.axis})", channels=2 * a.channels + b.channels
        )
    return g.make(a, f"torch.cat(({a.name}, {b.name}), {a.axis})", channels=a.channels + b.channels)


def lengthened(g: Sketch, a: Value, b: Value) -> Value:
    """One after the other, along the positions."""
    b = projected(g, b, a.channels)
    if a.kind == "vector":
        return added(g, a, b)
    axis = 1 if a.kind == "tokens" else 2
    size = (a.size[0] + b.size[0], *a.size[1:])
    return g.make(a, f"torch.cat(({a.name}, {b.name}), {axis})", size=size)


def pooled(x: Value) -> str:
    """(N, C) as text."""
    return x.name if x.kind == "vector" else f"{x.name}.mean(({x.spatial},))"


def wide(text: str, like: Value) -> str:
    """(N, C) as text, to meet a value of the form of `like`."""
    if like.kind == "tokens":
        return f"{text}[:, None]"
    return f"{text}[:, :{', None' * len(like.size)}]" if like.size else text


def modulated(g: Sketch, a: Value, b: Value) -> Value:
    """Scaled and shifted by what another value says."""
    kind = g.one_of(("film", "shift", "attend", "matrix"))
    if kind == "attend" and a.kind == "tokens" and b.kind == "tokens":
        g.mixes()
        q, k, v = (g.part(f"nn.Linear({c}, 4)") for c in (a.channels, b.channels, b.channels))
        out = g.part(f"nn.Linear(4, {a.channels})")
        heads = ".unflatten(-1, (2, 2)).transpose(1, 2)"
        call = f"F.scaled_dot_product_attention({q}({a.name}){heads}, {k}({b.name}){heads}, {v}({b.name}){heads})"
        return g.make(a, f"{a.name} + {out}({call}.transpose(1, 2).flatten(2))")
    if kind == "film":
        layer = g.part(f"nn.Linear({b.channels}, {2 * a.channels})")
        scale, shift = wide("NEW_s", a), wide("NEW_t", a)
        return g.make(
            a, f"NEW_s, NEW_t = {layer}({pooled(b)}).chunk(2, 1)", f"{a.name} * (1 + {scale}) + {shift}"
        )
    if kind == "matrix" and a.channels <= 4 and b.channels <= 4:
        return g.make(
            a, f"torch.einsum('na,nb->nab', {pooled(a)}, {pooled(b)}).flatten(1)",
            kind="vector", channels=a.channels * b.channels, size=(),
        )  # fmt: skip
    return g.make(a, f"{a.name} + {wide(pooled(projected(g, b, a.channels)), a)}")


def changed(g: Sketch, x: Value) -> Value:
    """To another form."""
    count = 1
    for s in x.size:
        count *= s
    c = x.channels
    if x.kind == "map":
        kind = g.one_of(("tokens", "vector", "flat", "rows"))
        if kind == "tokens":
            return g.make(x, f"{x.name}.flatten(2).transpose(1, 2)", kind="tokens", size=(count,))
        if kind == "rows" and len(x.size) == 2 and c * x.size[1] <= 32:
            text = f"{x.name}.permute(0, 2, 1, 3).flatten(2)"
            return g.make(x, text, kind="tokens", channels=c * x.size[1], size=(x.size[0],))
        if kind == "flat" and c * count <= 64:
            return g.make(x, f"{x.name}.flatten(1)", kind="vector", channels=c * count, size=())
        text = g.one_of(
            ("{x}.mean(({s},))", "{x}.amax(({s},))", "{x}.flatten(2).sum(-1)", "{x}.flatten(2).max(2)[0]")
        )
        return g.make(x, text.format(x=x.name, s=x.spatial), kind="vector", size=())
    if x.kind == "tokens":
        kind = g.one_of(("map", "square", "mean", "first", "flat", "weighted"))
        t = x.size[0]
        if kind == "map":
            return g.make(x, f"{x.name}.transpose(1, 2)", kind="map")
        if kind == "square" and t % 2 == 0:
            return g.make(x, f"{x.name}.transpose(1, 2).unflatten(2, (2, -1))", kind="map", size=(2, t // 2))
        if kind == "flat" and c * t <= 64:
            return g.make(x, f"{x.name}.flatten(1)", kind="vector", channels=c * t, size=())
        if kind == "weighted":
            layer = g.part(f"nn.Linear({c}, 1)")
            return g.make(
                x,
                f"(({layer}({x.name}).softmax(1)).transpose(1, 2) @ {x.name})[:, 0]",
                kind="vector",
                size=(),
            )
        text = g.one_of(("{x}.mean(1)", "{x}[:, 0]", "{x}[:, -1]", "{x}.amax(1)", "{x}.select(1, 0)"))
        return g.make(x, text.format(x=x.name), kind="vector", size=())
    if c % 4 == 0 and c > 4 and g.maybe():
        return g.make(x, f"{x.name}.view(-1, {c // 4}, 2, 2)", kind="map", channels=c // 4, size=(2, 2))
    tokens = g.one_of((2, 3))
    layer = g.part(f"nn.Linear({c}, {tokens * 4})")
    return g.make(
        x, f"{layer}({x.name}).unflatten(1, ({tokens}, 4))", kind="tokens", channels=4, size=(tokens,)
    )


PAIRS = (added, added, added, joined, joined, lengthened, modulated)
__all__ = ["PAIRS", "changed", "joined", "maps", "projected"]
