"""Steps from tokens (N, T, C) to tokens."""

from tests.property.form import divisors
from tests.property.graphs import maps
from tests.property.graphs.sketch import Sketch, Value


def linear(g: Sketch, x: Value) -> Value:
    out = g.one_of(maps.WIDTHS)
    layer = g.part(f"nn.Linear({x.channels}, {out}, bias={g.maybe(0.7)})")
    g.layers.append((layer, "tokens", x.channels, out))
    g.layers.append((layer, "vector", x.channels, out))
    return g.make(x, f"{layer}({x.name})", channels=out)


def tied(g: Sketch, x: Value) -> Value:
    """Down, and up by the same matrix."""
    layer = g.part(f"nn.Linear({x.channels}, {g.one_of(maps.WIDTHS)}, bias=False)")
    return g.make(x, f"F.linear(F.relu({layer}({x.name})), {layer}.weight.t())")


def norm(g: Sketch, x: Value) -> Value:
    g.mixes()
    layer = g.part(
        g.one_of(("nn.LayerNorm({})", "nn.RMSNorm({})", "nn.LayerNorm({}, bias=False)")).format(x.channels)
    )
    return g.make(x, f"{layer}({x.name})")


def scaled(g: Sketch, x: Value) -> Value:
    return g.make(x, f"{x.name} * {g.param(x.channels)}")


def mlp(g: Sketch, x: Value) -> Value:
    c, inner = x.channels, g.one_of((4, 6))
    kind = g.one_of(("plain", "gated", "geglu", "einsum"))
    if kind == "einsum":
        heads, dim = 2, g.one_of((2, 3))
        up, down = g.param(c, heads, dim), g.param(heads, dim, c)
        head = f"torch.einsum('...c,chd->...hd', {x.name}, {up})"
        return g.make(x, f"torch.einsum('...hd,hdc->...c', F.relu({head}), {down})")
    up, down = (
        g.part(f"nn.Linear({c}, {2 * inner if kind == 'geglu' else inner})"),
        g.part(f"nn.Linear({inner}, {c})"),
    )
    if kind == "plain":
        return g.make(x, f"{x.name} + {down}(F.gelu({up}({x.name})))")
    if kind == "gated":
        gate = g.part(f"nn.Linear({c}, {inner}, bias=False)")
        return g.make(x, f"{down}(F.silu({gate}({x.name})) * {up}({x.name}))")
    return g.make(x, f"NEW_a, NEW_b = {up}({x.name}).chunk(2, -1)", f"{down}(NEW_a * F.gelu(NEW_b))")


def attention(g: Sketch, x: Value) -> Value:
    """Of the tokens, by layers of its own, in one of the ways to write it."""
    g.mixes()
    c, heads, dim = x.channels, 2, g.one_of((2, 4))
    wide = heads * dim
    pack = g.one_of(("three", "qkv", "heads first", "kv"))
    shape = f"({heads}, {dim})"
    lines: list[str] = []
    if pack == "three":
        layers = [g.part(f"nn.Linear({c}, {wide}, bias={g.maybe()})") for _ in "qkv"]
        lines += [
            f"NEW_{n} = {layer}({x.name}).unflatten(-1, {shape}).transpose(1, 2)"
            for n, layer in zip("qkv", layers, strict=True)
        ]
    elif pack == "kv":
        q, kv = g.part(f"nn.Linear({c}, {wide})"), g.part(f"nn.Linear({c}, {2 * wide})")
        lines.append(f"NEW_q = {q}({x.name}).unflatten(-1, {shape}).transpose(1, 2)")
        lines.append(
            f"NEW_k, NEW_v = {kv}({x.name}).unflatten(-1, (2, {heads}, {dim})).permute(2, 0, 3, 1, 4).unbind(0)"
        )
    elif pack == "qkv":
        layer = g.part(f"nn.Linear({c}, {3 * wide})")
        lines.append(
            f"NEW_q, NEW_k, NEW_v = {layer}({x.name}).unflatten(-1, (3, {heads}, {dim})).permute(2, 0, 3, 1, 4)"
        )
    else:
        layer = g.part(f"nn.Linear({c}, {3 * wide})")
        lines.append(
            f"NEW_q, NEW_k, NEW_v = {layer}({x.name}).unflatten(-1, ({heads}, {3 * dim})).transpose(1, 2).chunk(3, -1)"
        )
    out = g.part(f"nn.Linear({wide}, {c})")
    kernel = g.one_of(("fused", "causal", "written", "einsum", "linear"))
    text = {
        "fused": "F.scaled_dot_product_attention(NEW_q, NEW_k, NEW_v)",
        "causal": "F.scaled_dot_product_attention(NEW_q, NEW_k, NEW_v, is_causal=True)",
        "written": f"(NEW_q @ NEW_k.transpose(-2, -1) * {dim**-0.5}).softmax(-1) @ NEW_v",
        "einsum": "torch.einsum('nhqk,nhkd->nhqd', (torch.einsum('nhqd,nhkd->nhqk', NEW_q, NEW_k) / 1.4).softmax(-1), NEW_v)",
        "linear": "F.relu(NEW_q) @ (F.relu(NEW_k).transpose(-2, -1) @ NEW_v)",
    }[kernel]
    residual = f"{x.name} + " if g.maybe() else ""
    return g.make(x, *lines, f"{residual}{out}(({text}).transpose(1, 2).flatten(2))")


def packaged(g: Sketch, x: Value) -> Value:
    """Attention as torch's classes have it."""
    g.mixes()
    c = x.channels
    heads = g.one_of([d for d in (1, 2) if c % d == 0])
    if g.maybe(0.7):
        layer = g.part(f"nn.MultiheadAttention({c}, {heads}, batch_first=True, bias={g.maybe()})")
        return g.make(x, f"{layer}({x.name}, {x.name}, {x.name}, need_weights={g.maybe(0.3)})[0]")
    layer = g.part(
        f"nn.TransformerEncoderLayer({c}, {heads}, 6, 0.1, batch_first=True, norm_first={g.maybe()})"
    )
    return g.make(x, f"{layer}({x.name})")


def recurrent(g: Sketch, x: Value) -> Value:
    kind, hidden, both = g.one_of(("LSTM", "GRU", "RNN")), g.one_of((2, 4)), g.maybe()
    layer = g.part(
        f"nn.{kind}({x.channels}, {hidden}, {g.one_of((1, 1, 2))}, batch_first=True, bidirectional={both}, bias={g.maybe(0.8)})"
    )
    g.mixes()  # a state of zeros becomes one of numbers where a gate has a bias
    g.holds("the states of a recurrent layer")
    return g.make(x, f"{layer}({x.name})[0]", channels=hidden * (2 if both else 1))


def convolved(g: Sketch, x: Value) -> Value:
    c, out = x.channels, g.one_of(maps.WIDTHS)
    groups = g.one_of((1, *divisors(c, out)))
    layer = g.part(f"nn.Conv1d({c}, {out}, 3, padding=1, groups={groups})")
    return g.make(x, f"{layer}({x.name}.transpose(1, 2)).transpose(1, 2)", channels=out)


def longer(g: Sketch, x: Value) -> Value:
    """A learned token more."""
    token = f"{g.param(1, 1, x.channels)}.expand({x.name}.shape[0], -1, -1)"
    return g.make(x, f"torch.cat(({token}, {x.name}), 1)", size=(x.size[0] + 1,))


def mixed(g: Sketch, x: Value) -> Value:
    """Something over the positions."""
    kind = g.one_of(("linear", "table", "softmax", "lag", "half"))
    t = x.size[0]
    if kind == "linear":
        layer = g.part(f"nn.Linear({t}, {t})")
        return g.make(x, f"{layer}({x.name}.transpose(1, 2)).transpose(1, 2)")
    if kind == "table":
        if g.maybe():
            return g.make(x, f"{x.name} + {g.param(1, t, x.channels)}")
        table = g.part(f"nn.Embedding(64, {x.channels})")
        return g.make(x, f"{x.name} + {table}(torch.arange({x.name}.shape[1]))")
    if kind == "softmax":
        return g.make(x, f"{x.name} * {x.name}.softmax(1)")
    if kind == "lag" or t < 2:
        return g.make(x, f"torch.cat(({x.name}[:, :1] * 0, {x.name}[:, :-1]), 1)")
    return g.make(x, f"{x.name}[:, ::2]", size=((t + 1) // 2,))


def grouped(g: Sketch, x: Value) -> Value:
    """A matrix for each part of the channels, or one for all parts."""
    groups = g.one_of(divisors(x.channels))
    per, out = x.channels // groups, g.one_of((1, 2))
    parts = f"{x.name}.unflatten(-1, ({groups}, {per}))"
    if g.maybe():
        return g.make(
            x,
            f"torch.einsum('ntgi,gio->ntgo', {parts}, {g.param(groups, per, out)}).flatten(2)",
            channels=groups * out,
        )
    layer = g.part(f"nn.Linear({per}, {out})")
    return g.make(x, f"{layer}({parts}).flatten(2)", channels=groups * out)


STEPS = (
    *[linear] * 4, maps.again, tied, norm, norm, scaled, mlp, mlp, attention, attention, attention, packaged, recurrent, convolved, longer,
    mixed, mixed, grouped, maps.pointwise, maps.pointwise, maps.moved, maps.moved_in_space, maps.gated, maps.over_channels, maps.held,
)  # fmt: skip
