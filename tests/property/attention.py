"""Attention in the ways that models write it."""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.property.choices import Pick
from tests.property.form import Do, Form, Made


@dataclass(frozen=True)
class Settings:
    heads: int
    dim: int
    pack: str  # how q, k and v are projected and cut apart
    kernel: str  # how they are combined
    rotary: str = "none"
    bias: str = "none"
    shared: str = "none"  # how fewer key heads reach all query heads
    normed: bool = False
    value_dim: int = 0


class Attention(nn.Module):
    def __init__(self, c: int, tokens: int, s: Settings) -> None:
        super().__init__()
        self.s = s
        self.key_heads = s.heads if s.shared == "none" else s.heads // 2
        self.value_dim = s.value_dim or s.dim
        q, k, v = s.heads * s.dim, self.key_heads * s.dim, self.key_heads * self.value_dim
        if s.pack == "separate":
            self.q, self.k, self.v = nn.Linear(c, q), nn.Linear(c, k, bias=False), nn.Linear(c, v)
        elif s.pack == "q, kv":
            self.q, self.kv = nn.Linear(c, q), nn.Linear(c, k + v)
        else:
            self.qkv = nn.Linear(c, q + k + v)
        self.sizes = (q, k, v)
        self.out = nn.Linear(s.heads * self.value_dim, c)
        if s.normed:
            self.q_norm, self.k_norm = nn.LayerNorm(s.dim), nn.RMSNorm(s.dim)
        if s.rotary != "none":
            angles = torch.arange(tokens)[:, None] * torch.rand(s.dim // 2).add(0.1)
            angles = (
                torch.cat((angles, angles), -1) if s.rotary == "halves" else angles.repeat_interleave(2, -1)
            )
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())
        if s.bias == "table":
            self.table = nn.Parameter(torch.zeros(2 * tokens - 1, s.heads))
            steps = torch.arange(tokens)
            self.register_buffer("index", steps[:, None] - steps[None, :] + tokens - 1)
        elif s.bias == "full":
            self.table = nn.Parameter(torch.zeros(1, s.heads, tokens, tokens))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, t, _ = x.shape
        s, keys = self.s, self.key_heads
        if s.pack == "separate":
            q, k, v = self.q(x), self.k(x), self.v(x)
        elif s.pack == "q, kv":
            q, (k, v) = self.q(x), self.kv(x).split(self.sizes[1:], -1)
        elif s.pack == "3hd":
            q, k, v = self.qkv(x).reshape(n, t, 3, s.heads, s.dim).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        elif s.pack == "3hd by index":
            qkv = self.qkv(x).reshape(n, t, 3, s.heads, s.dim).permute(2, 0, 3, 1, 4)
            return qkv[0], qkv[1], qkv[2]
        elif s.pack == "h3d":
            q, k, v = self.qkv(x).view(n, t, s.heads, 3, s.dim).unbind(3)
            return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        elif s.pack == "heads then chunk":
            q, k, v = self.qkv(x).view(n, t, s.heads, 3 * s.dim).transpose(1, 2).chunk(3, -1)
            return q, k, v
        else:
            q, k, v = self.qkv(x).split(self.sizes, -1)
        q = q.view(n, t, s.heads, s.dim).transpose(1, 2)
        k = k.view(n, t, keys, s.dim).transpose(1, 2)
        return q, k, v.reshape(n, -1, keys, self.value_dim).transpose(1, 2)

    def rotate(self, x: Tensor) -> Tensor:
        if self.s.rotary == "halves":
            a, b = x.chunk(2, -1)
            turned = torch.cat((-b, a), -1)
        else:
            turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * self.cos + turned * self.sin

    def share(self, x: Tensor) -> Tensor:
        n, keys, t, dim = x.shape
        times = self.s.heads // self.key_heads
        if self.s.shared == "expand":
            return x[:, :, None].expand(n, keys, times, t, dim).reshape(n, keys * times, t, dim)
        return x.repeat_interleave(times, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = self.s
        q, k, v = self.project(x)
        if s.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        if s.rotary != "none":
            q, k = self.rotate(q), self.rotate(k)
        if s.shared in ("expand", "repeat"):
            k, v = self.share(k), self.share(v)
        bias = None
        if s.bias == "table":
            t = x.shape[1]
            bias = self.table[self.index.view(-1)].view(t, t, -1).permute(2, 0, 1).unsqueeze(0)
        elif s.bias == "full":
            bias = self.table
        out = self.combine(q, k, v, bias)
        return self.out(out.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    def combine(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        s = self.s
        if s.kernel == "fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=s.shared == "fused")
        if s.kernel == "fused, scaled":
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, scale=0.7, enable_gqa=s.shared == "fused"
            )
        if s.kernel == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=s.shared == "fused")
        if s.kernel == "linear":
            return F.relu(q) @ (F.relu(k).transpose(-2, -1) @ v)
        if s.kernel == "einsum":
            scores = torch.einsum("nhqd,nhkd->nhqk", q, k) / math.sqrt(s.dim)
        else:
            scores = (q * s.dim**-0.5) @ k.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        weights = scores.softmax(-1)
        return torch.einsum("nhqk,nhkd->nhqd", weights, v) if s.kernel == "einsum" else weights @ v

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in asdict(self.s).items() if value)


PACKS = ("separate", "3hd", "3hd by index", "h3d", "heads then chunk", "split", "q, kv")
EVEN = ("3hd", "3hd by index", "h3d", "heads then chunk")  # as many key heads as query heads, of one width


def attention(pick: Pick, form: Form) -> Made:
    shared = pick.one_of(("none", "none", "expand", "repeat", "fused"))
    heads = pick.one_of((2, 3)) if shared == "none" else 4
    pack = pick.one_of(PACKS if shared == "none" else ("separate", "split", "q, kv"))
    fused = ("fused", "fused, scaled", "causal")
    kernel = pick.one_of(fused if shared == "fused" else ("matmul", *fused, "linear", "einsum"))
    settings = Settings(
        heads=heads,
        dim=pick.one_of((2, 4)),
        pack=pack,
        kernel=kernel,
        rotary=pick.one_of(("none", "none", "halves", "pairs")),
        bias="none" if kernel in ("causal", "linear") else pick.one_of(("none", "table", "full")),
        shared=shared,
        normed=pick.one_of((False, False, True)),
        value_dim=0 if pack in EVEN else pick.one_of((0, 3)),
    )
    return Attention(form.channels, form.size[0], settings), form


def talking(pick: Pick, form: Form) -> Made:
    """Scores are mixed between heads before and after the softmax."""
    c, heads, dim = form.channels, pick.one_of((2, 3)), 2

    def run(self: Do, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, heads * dim))

    layers = {"qkv": nn.Linear(c, 3 * heads * dim), "out": nn.Linear(heads * dim, c)}
    return Do("talking", run, **layers, before=nn.Linear(heads, heads), after=nn.Linear(heads, heads)), form


def transposed(pick: Pick, form: Form) -> Made:
    """Channels attend to channels (cross-covariance)."""
    c, heads, dim = form.channels, 2, pick.one_of((2, 3))

    def run(self: Do, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, heads, dim).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return self.out((weights @ v).permute(0, 3, 1, 2).reshape(n, t, -1))

    layers = {"qkv": nn.Linear(c, 3 * heads * dim), "out": nn.Linear(heads * dim, c)}
    return Do("cross covariance", run, **layers, temperature=torch.ones(heads, 1, 1)), form


def packaged(pick: Pick, form: Form) -> Made:
    """The class of torch."""
    heads = pick.one_of([d for d in (1, 2, 3) if form.channels % d == 0])
    layer = nn.MultiheadAttention(form.channels, heads, batch_first=True)
    weights = pick.one_of((False, True))
    return Do("packaged", lambda self, x: self.layer(x, x, x, need_weights=weights)[0], layer=layer), form


def crossed(pick: Pick, form: Form) -> Made:
    """Queries from one stream, keys and values from another: of another width, of learned tokens, or both by torch's class."""
    c, heads, dim = form.channels, 2, pick.one_of((2, 3))
    kind = pick.one_of(("memory", "latents", "class"))
    other = pick.one_of((4, 6))

    def run(self: Do, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        asked = self.latents.expand(n, -1, -1) if kind == "latents" else x
        memory = x if kind == "latents" else F.relu(self.side(x))[:, : max(1, t // 2)]
        if kind == "class":
            return x + self.layer(asked, memory, memory, need_weights=False)[0]
        q = self.q(asked).view(n, -1, heads, dim).transpose(1, 2)
        k, v = self.kv(memory).view(n, -1, 2, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(y)

    if kind == "class":
        heads = pick.one_of([d for d in (1, 2, 3) if c % d == 0])
        layer = nn.MultiheadAttention(c, heads, kdim=other, vdim=other, batch_first=True)
        return Do("crossed, class", run, layer=layer, side=nn.Linear(c, other)), form
    layers = {"q": nn.Linear(c, heads * dim), "out": nn.Linear(heads * dim, c)}
    if kind == "latents":
        latents = torch.zeros(1, form.size[0], c)
        return Do("crossed, latents", run, **layers, kv=nn.Linear(c, 2 * heads * dim), latents=latents), form
    layers |= {"side": nn.Linear(c, other), "kv": nn.Linear(other, 2 * heads * dim)}
    return Do("crossed, memory", run, **layers), form


def windowed(pick: Pick, form: Form) -> Made:
    """Within windows of two tokens, maybe shifted by one."""
    inner, _ = attention(pick, Form("tokens", form.channels, (2,)))
    if form.size[0] % 2:
        return attention(pick, form)
    shifted = pick.one_of((False, True))

    def run(self: Do, x: Tensor) -> Tensor:
        n, t, c = x.shape
        y = x.roll(-1, 1) if shifted else x
        y = self.inner(y.reshape(n * (t // 2), 2, c)).reshape(n, t, c)
        return y.roll(1, 1) if shifted else y

    return Do(f"windowed, shifted={shifted}", run, inner=inner), form


MAKERS = (attention, attention, attention, talking, transposed, packaged, crossed, windowed)
