"""The drawing of a whole network from a seed."""

import random

from tests.property.graphs import maps, meeting, tokens, vectors
from tests.property.graphs.sketch import Given, Network, Sketch, Value, finished

STEPS = {"map": maps.STEPS, "tokens": tokens.STEPS, "vector": vectors.STEPS}
INEXACT = {
    maps.normed_weight, maps.reduced, maps.over_channels, maps.held, tokens.norm, tokens.attention, tokens.packaged, tokens.recurrent,
    vectors.norm, vectors.steps, vectors.mixture, vectors.reduced,
}  # fmt: skip
WIDE, MANY = 12, 80


def graph(seed: int) -> Network:
    """The network of a seed."""
    return finished(drawn(seed))


def drawn(seed: int) -> Sketch:
    """What the network of a seed is made of; two of five have only steps by which zeros stay where they are."""
    g = Sketch(random.Random(seed))
    only_exact = g.maybe(0.4)
    pool = [stem(g, only_exact) for _ in range(g.one_of((1, 1, 1, 2)))]
    for _ in range(g.integer(2, 7)):
        pool.append(step(g, pool, only_exact))
    end(g, pool)
    return g


def stem(g: Sketch, only_exact: bool) -> Value:
    """An input, and the first layer on it."""
    name, out = f"x{len(g.given)}", g.one_of((4, 6, 8))
    kind = g.one_of(("image", "image", "image", "sequence", "tokens", "ids", "vector"))
    given = {
        "image": "torch.randn({N}, 3, {H}, {W}, generator=g)",
        "sequence": "torch.randn({N}, 3, {L}, generator=g)",
        "tokens": "torch.randn({N}, {L}, 5, generator=g)",
        "ids": "torch.randint(9, ({N}, {L}), generator=g)",
        "vector": "torch.randn({N}, 5, generator=g)",
    }[kind]
    g.given.append(Given(name, given))
    layer, value = {
        "image": (f"nn.Conv2d(3, {out}, 3, padding=1)", Value("", "map", out, (4, 6))),
        "sequence": (f"nn.Conv1d(3, {out}, 3, padding=1)", Value("", "map", out, (6,))),
        "tokens": (f"nn.Linear(5, {out})", Value("", "tokens", out, (6,))),
        "ids": (f"nn.Embedding(9, {out})", Value("", "tokens", out, (6,))),
        "vector": (f"nn.Linear(5, {out})", Value("", "vector", out)),
    }[kind]
    return g.make(value, f"{g.part(layer)}({name})")


def step(g: Sketch, pool: list[Value], only_exact: bool) -> Value:
    """One more value: of one that is there, or of two."""
    x = pool[-1] if g.maybe(0.6) else g.one_of(pool)
    if x.channels > WIDE:
        return meeting.projected(g, x, g.one_of(maps.WIDTHS))
    if g.maybe(0.12) or (x.size and volume(x) > MANY):
        return meeting.changed(g, x)
    others = [y for y in pool if y is not x and y.kind == x.kind and y.size == x.size]
    if others and g.maybe(0.45):
        return g.one_of(meeting.PAIRS)(g, x, g.one_of(others))
    if len(pool) > 1 and g.maybe(0.1):
        return meeting.modulated(g, x, g.one_of(pool))
    while True:
        made = g.one_of(STEPS[x.kind])
        if not (only_exact and made in INEXACT):
            return made(g, x)


def volume(x: Value) -> int:
    count = 1
    for s in x.size:
        count *= s
    return count


def end(g: Sketch, pool: list[Value]) -> None:
    """Outputs: of every value that nothing read, and maybe of one more."""
    read = set().union(*(step.reads for step in g.steps))
    ends = [x for x in pool if x.name not in read]
    inner = [x for x in pool if x.name in read]
    if inner and g.maybe(0.3):
        ends.append(g.one_of(inner))
    for x in ends:
        kind = g.one_of(("head", "head", "pool", "pool", "raw"))
        if kind == "raw":
            g.outputs.append(x.name)
            continue
        if kind == "pool" and x.size:
            text = f"{x.name}.mean(({x.spatial},))"
            x = g.make(x, text, kind="vector", size=())
        g.outputs.append(meeting.projected(g, x, 3 if x.channels != 3 else 5).name)
    g.container = g.one_of(("tuple", "list", "dict"))
