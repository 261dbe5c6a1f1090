"""Steps from a feature map (N, C, *size) in one or two dimensions to another."""

from tests.property.form import divisors
from tests.property.graphs.sketch import Sketch, Value

WIDTHS = (2, 4, 6, 8)


def conv(g: Sketch, x: Value) -> Value:
    out, n = g.one_of(WIDTHS), len(x.size)
    groups = g.one_of((1, 1, g.one_of(divisors(x.channels, out)), g.one_of(divisors(x.channels, out))))
    kernel, dilation = g.one_of((1, 3)), g.one_of((1, 1, 1, 2))
    mode = g.one_of(("zeros", "zeros", "zeros", "circular", "replicate"))
    bias = g.maybe()
    layer = g.part(
        f"nn.Conv{n}d({x.channels}, {out}, {kernel}, padding={kernel // 2 * dilation}, dilation={dilation}, "
        f"groups={groups}, bias={bias}, padding_mode={mode!r})"
    )
    g.layers.append((layer, "map", x.channels, out))
    return g.make(x, f"{layer}({x.name})", channels=out)


def again(g: Sketch, x: Value) -> Value:
    """A layer that was used before, once more."""
    fitting = [entry for entry in g.layers if entry[1] == x.kind and entry[2] == x.channels]
    if not fitting:
        return conv(g, x) if x.kind == "map" else g.make(x, f"{x.name} * 1.5")
    layer, _, _, out = g.one_of(fitting)
    if x.kind == "map" and f"Conv{len(x.size)}d" not in g.parts[layer.removeprefix("self.")]:
        return conv(g, x)
    return g.make(x, f"{layer}({x.name})", channels=out)


def depthwise(g: Sketch, x: Value) -> Value:
    times = g.one_of((1, 2)) if x.channels <= 4 else 1
    layer = g.part(
        f"nn.Conv{len(x.size)}d({x.channels}, {x.channels * times}, 3, padding=1, groups={x.channels}, bias={g.maybe()})"
    )
    return g.make(x, f"{layer}({x.name})", channels=x.channels * times)


def transposed(g: Sketch, x: Value) -> Value:
    out, stride = g.one_of(WIDTHS), g.one_of((1, 1, 2))
    groups = g.one_of((1, 1, g.one_of(divisors(x.channels, out))))
    if stride == 2 and max(x.size) > 8:
        stride = 1
    layer = g.part(
        f"nn.ConvTranspose{len(x.size)}d({x.channels}, {out}, 3, stride={stride}, padding=1, "
        f"output_padding={stride - 1}, groups={groups}, bias={g.maybe()})"
    )
    return g.make(x, f"{layer}({x.name})", channels=out, size=tuple(s * stride for s in x.size))


def strided(g: Sketch, x: Value) -> Value:
    if min(x.size) < 4 or any(s % 2 for s in x.size):
        return depthwise(g, x)
    out = g.one_of(WIDTHS)
    layer = g.part(f"nn.Conv{len(x.size)}d({x.channels}, {out}, 2, stride=2)")
    return g.make(x, f"{layer}({x.name})", channels=out, size=tuple(s // 2 for s in x.size))


def normed_weight(g: Sketch, x: Value) -> Value:
    """The weight is made from others: reparametrized, standardized, put together."""
    out, n = g.one_of(WIDTHS), len(x.size)
    plain = f"nn.Conv{n}d({x.channels}, {out}, 3, padding=1)"
    kind = g.one_of(("weight_norm", "old", "spectral", "own", "standardized", "cat", "product", "scaled"))
    if kind in ("weight_norm", "old", "spectral", "own"):
        wrapped = {
            "weight_norm": f"parametrizations.weight_norm({plain})",
            "old": f"weight_norm({plain})",
            "spectral": f"parametrizations.spectral_norm({plain})",
            "own": plain,
        }[kind]
        layer = g.part(wrapped)
        if kind == "own":
            name = layer.removeprefix("self.")
            g.parts[f"{name}_made"] = f"parametrize.register_parametrization({layer}, 'weight', Doubled())"
        g.mixes()
        return g.make(x, f"{layer}({x.name})", channels=out)
    ones = ", ".join("1" for _ in range(n))
    if kind == "cat":
        half = g.integer(1, out - 1)
        a, b = g.param(half, x.channels, *(3,) * n), g.param(out - half, x.channels, *(3,) * n)
        weight = f"torch.cat(({a}, {b}))"
    elif kind == "product":
        a, b = g.param(out, 2), g.param(2, x.channels)
        weight = f"({a} @ {b}).view({out}, {x.channels}, {ones})"
    elif kind == "scaled":
        a, b = g.param(out, x.channels, *(3,) * n), g.param(out, *(1,) * (n + 1))
        weight = f"{a} * {b}"
    else:
        a = g.param(out, x.channels, *(3,) * n)
        axes = ", ".join(map(str, range(1, n + 2)))
        weight = f"({a} - {a}.mean(({axes}), keepdim=True)) / ({a}.std(({axes}), keepdim=True) + 1e-5)"
        g.mixes()
    padding = 0 if kind == "product" else 1
    return g.make(x, f"F.conv{n}d({x.name}, {weight}, padding={padding})", channels=out)


def norm(g: Sketch, x: Value) -> Value:
    n, c = len(x.size), x.channels
    kind = g.one_of(("batch", "batch", "group", "instance", "layer", "last", "affine"))
    if kind == "affine":
        scale, shift = g.param(c, *(1,) * n), g.param(1, c, *(1,) * n)
        return g.make(x, f"{x.name} * {scale} + {shift}")
    if kind == "last":
        layer = g.part(f"nn.LayerNorm({c})")
        g.mixes()
        return g.make(x, f"{layer}({x.name}.movedim(1, -1)).movedim(-1, 1)")
    if kind == "batch":
        layer = g.part(f"nn.BatchNorm{n}d({c}, affine={g.maybe(0.8)})")
    elif kind == "instance":
        layer = g.part(f"nn.InstanceNorm{n}d({c}, affine={g.maybe()})")
    else:
        g.mixes()
        layer = g.part(f"nn.GroupNorm({1 if kind == 'layer' else g.one_of(divisors(c))}, {c})")
    return g.make(x, f"{layer}({x.name})")


POINTWISE = (
    "F.relu({x})", "F.gelu({x})", "F.silu({x})", "torch.tanh({x})", "torch.sigmoid({x})", "F.hardswish({x})", "{x} * 2 + 1",
    "F.leaky_relu({x}, 0.2)", "{x}.abs()", "torch.where({x} > 0, {x}, -0.1 * {x})", "{x}.clamp(-1, 1)", "F.softplus({x})",
    "{x}.sin()", "1 - {x}", "{x}.square()", "F.elu({x})", "F.dropout({x}, 0.1, self.training)", "{x}.clone()",
    "torch.exp(-{x}.square())", "{x}.contiguous()", "F.hardtanh({x})", "{x} / 3", "-{x}", "{x}.float()", "F.mish({x})",
)  # fmt: skip


def pointwise(g: Sketch, x: Value) -> Value:
    kind = g.one_of(("text", "text", "text", "prelu", "in place", "module"))
    if kind == "prelu":
        count = g.one_of((1, x.channels)) if x.kind != "tokens" else 1
        return g.make(x, f"{g.part(f'nn.PReLU({count})')}({x.name})")
    if kind == "in place":
        if g.maybe():  # of a copy, or of a value that others may read
            return g.make(x, f"{x.name}.clone().mul_(0.5).add_(1)")
        return g.make(
            x, f"{x.name}.{g.one_of(('relu_()', 'mul_(2)', 'add_(1)', 'clamp_(-1, 1)', 'tanh_()'))}"
        )
    if kind == "module":
        return g.make(
            x, f"{g.part(g.one_of(('nn.ReLU(inplace=True)', 'nn.GELU()', 'nn.Dropout(0.2)')))}({x.name})"
        )
    return g.make(x, g.one_of(POINTWISE).format(x=x.name))


def pooled(g: Sketch, x: Value) -> Value:
    n = len(x.size)
    kind = g.one_of(("max3", "avg3", "max2", "avg2", "adaptive"))
    if kind.endswith("3"):
        text = f"F.{kind[:3]}_pool{n}d({x.name}, 3, stride=1, padding=1)"
        return g.make(x, text)
    if kind == "adaptive":
        size = tuple(g.one_of((1, 2)) for _ in x.size)
        return g.make(x, f"F.adaptive_avg_pool{n}d({x.name}, {size})", size=size)
    if min(x.size) < 2:
        return pointwise(g, x)
    return g.make(x, f"F.{kind[:3]}_pool{n}d({x.name}, 2)", size=tuple(s // 2 for s in x.size))


def resampled(g: Sketch, x: Value) -> Value:
    if max(x.size) > 8:
        return pooled(g, x)
    double = tuple(2 * s for s in x.size)
    kind = g.one_of(("nearest", "linear", "shuffle", "unshuffle", "focus"))
    if len(x.size) == 2 and kind == "shuffle" and x.channels % 4 == 0:
        return g.make(x, f"F.pixel_shuffle({x.name}, 2)", channels=x.channels // 4, size=double)
    even = len(x.size) == 2 and all(s % 2 == 0 for s in x.size) and x.channels <= 4
    if kind in ("unshuffle", "focus") and even:
        half = tuple(s // 2 for s in x.size)
        if kind == "unshuffle":
            return g.make(x, f"F.pixel_unshuffle({x.name}, 2)", channels=4 * x.channels, size=half)
        corners = ", ".join(f"{x.name}[..., {i}::2, {j}::2]" for i in (0, 1) for j in (0, 1))
        return g.make(x, f"torch.cat(({corners}), 1)", channels=4 * x.channels, size=half)
    mode = "nearest" if kind != "linear" else {1: "linear", 2: "bilinear"}[len(x.size)]
    return g.make(x, f"F.interpolate({x.name}, scale_factor=2, mode={mode!r})", size=double)


def shuffled(g: Sketch, x: Value) -> Value:
    groups = g.one_of(divisors(x.channels))
    if len(x.size) == 2 and g.maybe():
        return g.make(x, f"F.channel_shuffle({x.name}, {groups})")
    return g.make(x, f"{x.name}.unflatten(1, ({groups}, -1)).transpose(1, 2).flatten(1, 2)")


def moved(g: Sketch, x: Value) -> Value:
    """The same channels in another order, or more than once, or some of them."""
    c, a = x.channels, x.axis
    kind = g.one_of(
        ("flip", "roll", "index", "twice", "each twice", "slice", "every second", "stack", "expand")
    )
    if c > 8 and kind in ("twice", "each twice", "stack", "expand"):
        kind = "slice"
    if c < 2:
        return pointwise(g, x)
    before = ":, " * a
    if kind == "flip":
        return g.make(x, f"{x.name}.flip({a})")
    if kind == "roll":
        return g.make(x, f"{x.name}.roll({g.integer(1, c - 1)}, {a})")
    if kind == "index":
        order = list(range(c))
        g.random.shuffle(order)
        order = order[: g.integer(1, c)] if g.maybe() else order
        return g.make(x, f"{x.name}[{before}torch.tensor({order})]", channels=len(order))
    if kind == "twice":
        return g.make(x, f"torch.cat(({x.name}, {x.name}), {a})", channels=2 * c)
    if kind == "each twice":
        return g.make(x, f"{x.name}.repeat_interleave(2, {a})", channels=2 * c)
    if kind == "stack":
        return g.make(x, f"torch.stack(({x.name}, -{x.name}), {a + 1}).flatten({a}, {a + 1})", channels=2 * c)
    if kind == "expand":
        ones = ", ".join("-1" for _ in range(x.axis))
        rest = "".join(", -1" for _ in range(1 + (len(x.size) if x.kind == "map" else 0)))
        text = f"{x.name}.unsqueeze({a}).expand({ones}, 2{rest}).flatten({a}, {a + 1})"
        return g.make(x, text, channels=2 * c)
    if kind == "every second":
        first = g.integer(0, 1)
        return g.make(x, f"{x.name}[{before}{first}::2]", channels=len(range(first, c, 2)))
    low = g.integer(0, c - 1)
    high = g.integer(low + 1, c)
    return g.make(x, f"{x.name}.narrow({a}, {low}, {high - low})", channels=high - low)


def moved_in_space(g: Sketch, x: Value) -> Value:
    last = 1 if x.kind == "tokens" else len(x.size) + 1
    kinds = ["flip({})", "roll(1, {})", "cumsum({})"]
    if x.kind == "map" and len(x.size) == 2 and g.maybe():
        kind = g.one_of(("transpose", "rot90"))
        text = f"{x.name}.transpose(2, 3)" if kind == "transpose" else f"torch.rot90({x.name}, 1, (2, 3))"
        return g.make(x, text, size=x.size[::-1])
    return g.make(x, f"{x.name}.{g.one_of(kinds).format(last)}")


def padded(g: Sketch, x: Value) -> Value:
    n, c = len(x.size), x.channels
    kind = g.one_of(("channels", "zeros", "space", "grid"))
    if kind == "channels":
        low, high = g.integer(0, 2), g.integer(1, 2)
        widths = (*(0, 0) * n, low, high)
        fill = g.one_of((0, 0, 0.5))
        return g.make(x, f"F.pad({x.name}, {widths}, value={fill})", channels=c + low + high)
    if kind == "zeros":
        count = g.integer(1, 2)
        zeros = f"{x.name}.new_zeros({x.name}.shape[0], {count}, *{x.name}.shape[2:])"
        pair = (zeros, x.name) if g.maybe() else (x.name, zeros)
        return g.make(x, f"torch.cat(({pair[0]}, {pair[1]}), 1)", channels=c + count)
    if kind == "grid":
        line = f"torch.linspace(-1, 1, {x.name}.shape[-1]).expand({x.name}.shape[0], 1, *{x.name}.shape[2:])"
        return g.make(x, f"torch.cat(({x.name}, {line}), 1)", channels=c + 1)
    mode = g.one_of(("constant", "replicate", "circular", "reflect"))
    if min(x.size) < 2:
        mode = "constant"
    size = tuple(s + 2 for s in x.size)
    return g.make(x, f"F.pad({x.name}, {(1, 1) * n}, mode={mode!r})", size=size)


def partial(g: Sketch, x: Value) -> Value:
    """A layer on some of the channels, joined or written back."""
    if x.channels < 2:
        return conv(g, x)
    some = g.integer(1, x.channels - 1)
    layer = g.part(f"nn.Conv{len(x.size)}d({some}, {some}, 3, padding=1)")
    if g.maybe():
        return g.make(x, f"NEW_ = {x.name}.clone()", f"NEW_[:, :{some}] = {layer}(NEW_[:, :{some}])", "NEW_")
    return g.make(x, f"torch.cat(({layer}({x.name}[:, :{some}]), {x.name}[:, {some}:]), 1)")


def excited(g: Sketch, x: Value) -> Value:
    n, c, inner = len(x.size), x.channels, g.one_of((2, 4))
    pool = f"{x.name}.mean(({x.spatial},), keepdim=True)"
    kind = g.one_of(("conv", "linear", "eca", "space"))
    if kind == "conv":
        down, up = g.part(f"nn.Conv{n}d({c}, {inner}, 1)"), g.part(f"nn.Conv{n}d({inner}, {c}, 1)")
        return g.make(x, f"{x.name} * torch.sigmoid({up}(F.relu({down}({pool}))))")
    if kind == "linear":
        down, up = g.part(f"nn.Linear({c}, {inner})"), g.part(f"nn.Linear({inner}, {c})")
        wide = "[:, :" + ", None" * n + "]"
        return g.make(x, f"{x.name} * {up}({down}({pool}.flatten(1)).relu()).sigmoid(){wide}")
    if kind == "space":
        layer = g.part(f"nn.Conv{n}d({c}, 1, 1)")
        return g.make(x, f"{x.name} * torch.sigmoid({layer}({x.name}))")
    g.mixes()
    g.holds("a convolution along the channels")
    layer = g.part("nn.Conv1d(1, 1, 3, padding=1)")
    ones = ", None" * n
    return g.make(x, f"{x.name} * {layer}({pool}.flatten(1)[:, None])[:, 0, :{ones}].sigmoid()")


def reduced(g: Sketch, x: Value) -> Value:
    """Rows of channels become one each."""
    options = [d for d in divisors(x.channels) if d < x.channels]
    if not options:
        return conv(g, x)
    rows, function = g.one_of(options), g.one_of(("amax", "sum", "mean", "norm"))
    g.mixes()
    call = "norm(dim=2)" if function == "norm" else f"{function}(2)"
    return g.make(x, f"{x.name}.unflatten(1, ({rows}, -1)).{call}", channels=rows)


def gated(g: Sketch, x: Value) -> Value:
    if x.channels % 2:
        return pointwise(g, x)
    a = x.axis
    half = x.channels // 2
    kind = g.one_of(("glu", "chunk", "split", "swap", "cat"))
    if kind == "glu":
        return g.make(x, f"F.glu({x.name}, {a})", channels=half)
    cut = f"{x.name}.chunk(2, {a})" if kind == "chunk" else f"torch.split({x.name}, {half}, {a})"
    if kind in ("chunk", "split"):
        return g.make(x, f"NEW_a, NEW_b = {cut}", "NEW_a * torch.tanh(NEW_b)", channels=half)
    if kind == "swap":
        return g.make(x, f"NEW_a, NEW_b = {cut}", f"torch.cat((NEW_b, NEW_a), {a})")
    return g.make(
        x, f"NEW_a, NEW_b = {cut}", f"torch.cat((NEW_a, NEW_a * NEW_b, NEW_b), {a})", channels=3 * half
    )


def over_channels(g: Sketch, x: Value) -> Value:
    """Something that all channels have a part in, each keeping its own."""
    g.mixes()
    a = x.axis
    texts = [
        f"{x.name}.softmax({a})",
        f"F.normalize({x.name}, dim={a})",
        f"{x.name} - {x.name}.mean({a}, keepdim=True)",
        f"{x.name} * {x.name}.amax({a}, keepdim=True).sigmoid()",
        f"{x.name} / ({x.name}.square().sum({a}, keepdim=True) + 1).sqrt()",
        f"{x.name} - {x.name}.logsumexp({a}, keepdim=True)",
    ]
    return g.make(x, g.one_of(texts))


def held(g: Sketch, x: Value) -> Value:
    """Something that depends on which channel is next to which, or on their order."""
    g.mixes()
    g.holds("order of the channels")
    a = x.axis
    texts = [f"{x.name}.cumsum({a})", f"{x.name}.sort({a}).values", f"{x.name}.cummax({a}).values"]
    if x.kind == "map" and len(x.size) == 2:
        texts.append(f"F.local_response_norm({x.name}, 3)")
    return g.make(x, g.one_of(texts))


STEPS = (
    *[conv] * 5, again, depthwise, transposed, strided, normed_weight, norm, norm, pointwise, pointwise, pointwise, pooled, resampled,
    shuffled, moved, moved, moved_in_space, padded, partial, excited, reduced, gated, gated, over_channels, held,
)  # fmt: skip
