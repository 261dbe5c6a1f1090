"""Blocks for tokens (N, T, C), attention aside."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.property.choices import Pick
from tests.property.form import Do, Form, Made, divisors, width


class WrittenRMSNorm(nn.Module):
    """RMS norm as language models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(
            x.dtype
        )


def linear(pick: Pick, form: Form) -> Made:
    out = width(pick)
    return nn.Linear(form.channels, out, bias=pick.one_of((True, False))), form.wide(out)


def norm(pick: Pick, form: Form) -> Made:
    kinds = (nn.LayerNorm, nn.RMSNorm, WrittenRMSNorm)
    return pick.one_of(kinds)(form.channels), form


def activation(pick: Pick, form: Form) -> Made:
    return pick.one_of([nn.GELU(), nn.ReLU(inplace=True), nn.PReLU(), nn.Tanh()]), form


def mlp(pick: Pick, form: Form) -> Made:
    inner = width(pick)
    return nn.Sequential(nn.Linear(form.channels, inner), nn.GELU(), nn.Linear(inner, form.channels)), form


def gated(pick: Pick, form: Form) -> Made:
    """Gate and value from one projection, cut apart in different ways."""
    c, inner = form.channels, width(pick)
    how = pick.one_of(("chunk", "slice", "interleaved", "split", "glu", "two"))

    def run(self: Do, x: Tensor) -> Tensor:
        if how == "two":
            return self.down(F.silu(self.up(x)) * self.gate(x))
        both = self.up(x)
        if how == "glu":
            return self.down(F.glu(both, -1))
        if how == "chunk":
            a, b = both.chunk(2, -1)
        elif how == "slice":
            a, b = both[..., :inner], both[..., inner:]
        elif how == "split":
            a, b = torch.split(both, inner, -1)
        else:
            a, b = both[..., ::2], both[..., 1::2]
        return self.down(F.silu(a) * b)

    layers = {"up": nn.Linear(c, inner if how == "two" else 2 * inner), "down": nn.Linear(inner, c)}
    if how == "two":
        layers["gate"] = nn.Linear(c, inner, bias=False)
    return Do(f"gated by {how}", run, **layers), form


def mixed(pick: Pick, form: Form) -> Made:
    """A perceptron over the tokens."""
    tokens, inner = form.size[0], width(pick)
    up, down = nn.Linear(tokens, inner), nn.Linear(inner, tokens)

    def run(self: Do, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)

    return Do("mixed", run, up=up, down=down), form


def spatial_gate(pick: Pick, form: Form) -> Made:
    """Half of the channels, mixed over tokens, gates the other half."""
    if form.channels % 2:
        return nn.Identity(), form

    def run(self: Do, x: Tensor) -> Tensor:
        u, v = x.chunk(2, -1)
        return u * self.mix(self.norm(v).transpose(-1, -2)).transpose(-1, -2)

    half, tokens = form.channels // 2, form.size[0]
    return Do("spatial gate", run, norm=nn.LayerNorm(half), mix=nn.Linear(tokens, tokens)), form.wide(half)


def class_token(pick: Pick, form: Form) -> Made:
    """One more token, learned."""

    def run(self: Do, x: Tensor) -> Tensor:
        return torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)

    longer = Form("tokens", form.channels, (form.size[0] + 1,))
    return Do("class token", run, token=torch.zeros(1, 1, form.channels)), longer


def positions(pick: Pick, form: Form) -> Made:
    tokens = form.size[0]
    if pick.one_of((True, False)):
        table = torch.zeros(1, tokens, form.channels)
        return Do("positions", lambda self, x: x + self.table, table=table), form
    table = nn.Embedding(tokens + 2, form.channels)
    return Do("positions", lambda self, x: x + self.table(torch.arange(tokens)), table=table), form


def by_einsum(pick: Pick, form: Form) -> Made:
    """A projection to heads by one parameter (C, H, D), and back by (H, D, C)."""
    c, heads, dim = form.channels, pick.one_of((2, 3)), pick.one_of((2, 4))

    def run(self: Do, x: Tensor) -> Tensor:
        return torch.einsum("nthd,hdc->ntc", F.relu(torch.einsum("ntc,chd->nthd", x, self.up)), self.down)

    return Do("by einsum", run, up=torch.zeros(c, heads, dim), down=torch.zeros(heads, dim, c)), form


def grouped(pick: Pick, form: Form) -> Made:
    """A separate matrix for each part of the channels."""
    groups = pick.one_of(divisors(form.channels))
    per, out = form.channels // groups, pick.one_of((2, 3))
    einsum = pick.one_of((True, False))

    def run(self: Do, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        parts = x.view(n, t, groups, per)
        if einsum:
            return torch.einsum("ntgi,gio->ntgo", parts, self.weight).flatten(2)
        return (parts.transpose(1, 2) @ self.weight).transpose(1, 2).reshape(n, t, -1)

    return Do(f"grouped, einsum={einsum}", run, weight=torch.zeros(groups, per, out)), form.wide(groups * out)


def convolved(pick: Pick, form: Form) -> Made:
    """A convolution along the tokens, depthwise or not."""
    c = form.channels
    layer = nn.Conv1d(c, c, 3, padding=1, groups=pick.one_of((1, c)))
    return Do("convolved", lambda self, x: self.layer(x.transpose(1, 2)).transpose(1, 2), layer=layer), form


def tied(pick: Pick, form: Form) -> Made:
    """Down and up by one matrix."""
    inner = width(pick)

    def run(self: Do, x: Tensor) -> Tensor:
        return F.relu(self.layer(x)) @ self.layer.weight

    return Do("tied", run, layer=nn.Linear(form.channels, inner, bias=False)), form


def scaled(pick: Pick, form: Form) -> Made:
    return Do("scaled", lambda self, x: x * self.gamma, gamma=torch.ones(form.channels)), form


MAKERS = (
    linear, linear, norm, norm, activation, activation, mlp, gated, gated, mixed, spatial_gate, class_token, positions,
    by_einsum, grouped, convolved, tied, scaled,
)  # fmt: skip
