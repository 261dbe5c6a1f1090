"""Blocks for feature maps (N, C, *size) in one, two and three dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.property.choices import Pick
from tests.property.form import (
    BATCH_NORMS,
    CONVS,
    INSTANCE_NORMS,
    TRANSPOSED,
    Do,
    Form,
    Made,
    divisors,
    width,
)


def conv(pick: Pick, form: Form) -> Made:
    out = width(pick)
    groups = pick.one_of((1, pick.one_of(divisors(form.channels, out))))
    kernel = pick.one_of((1, 3))
    made = CONVS[len(form.size)](
        form.channels, out, kernel, padding=kernel // 2, groups=groups, bias=pick.one_of((True, False))
    )
    return made, form.wide(out)


def depthwise(pick: Pick, form: Form) -> Made:
    out = form.channels * pick.one_of((1, 2)) if form.channels < 9 else form.channels
    return CONVS[len(form.size)](form.channels, out, 3, padding=1, groups=form.channels), form.wide(out)


def transposed(pick: Pick, form: Form) -> Made:
    out = width(pick)
    groups = pick.one_of((1, pick.one_of(divisors(form.channels, out))))
    return TRANSPOSED[len(form.size)](form.channels, out, 3, padding=1, groups=groups), form.wide(out)


def standardized(pick: Pick, form: Form) -> Made:
    """Weight standardization by batch_norm over the weight, or written out."""
    out = width(pick)
    layer = CONVS[len(form.size)](form.channels, out, 3, padding=1)
    fused = pick.one_of((True, False))

    def run(self: Do, x: Tensor) -> Tensor:
        weight = self.layer.weight
        if fused:
            flat = F.batch_norm(weight.reshape(1, out, -1), None, None, training=True, momentum=0.0, eps=1e-6)
        else:
            flat = weight.flatten(1)
            flat = (flat - flat.mean(1, keepdim=True)) * (
                flat.var(1, keepdim=True, unbiased=False) + 1e-6
            ).rsqrt()
        return self.layer._conv_forward(x, flat.reshape_as(weight), self.layer.bias)

    return Do(f"standardized, fused={fused}", run, layer=layer), form.wide(out)


def tied(pick: Pick, form: Form) -> Made:
    """One convolution used twice."""
    layer = CONVS[len(form.size)](form.channels, form.channels, 3, padding=1)
    return Do("tied", lambda self, x: self.layer(F.relu(self.layer(x))), layer=layer), form


def scaled(pick: Pick, form: Form) -> Made:
    shape = (form.channels, *(1,) * len(form.size))
    parts = {"gamma": torch.ones(shape), "beta": torch.zeros(shape)}
    return Do("scaled", lambda self, x: x * self.gamma + self.beta, **parts), form


def norm(pick: Pick, form: Form) -> Made:
    n, c = len(form.size), form.channels
    kinds = ("batch", "group", "channels last", "layer", "instance")
    kind = pick.one_of(kinds if max(form.size) > 1 else kinds[:-1])
    if kind == "group":
        return nn.GroupNorm(pick.one_of(divisors(c)), c), form
    if kind == "instance":
        return INSTANCE_NORMS[n](c, affine=pick.one_of((True, False))), form
    if kind == "layer":
        return nn.GroupNorm(1, c), form
    if kind == "channels last":
        return Do(
            kind, lambda self, x: self.norm(x.movedim(1, -1)).movedim(-1, 1), norm=nn.LayerNorm(c)
        ), form
    return BATCH_NORMS[n](c), form


def activation(pick: Pick, form: Form) -> Made:
    kinds = [nn.ReLU(), nn.GELU(), nn.ReLU(inplace=True), nn.PReLU(), nn.PReLU(form.channels), nn.SiLU()]
    return pick.one_of(kinds), form


def glu(pick: Pick, form: Form) -> Made:
    if form.channels % 2:
        return nn.Hardswish(), form
    return nn.GLU(1), form.wide(form.channels // 2)


def shuffle(pick: Pick, form: Form) -> Made:
    groups = pick.one_of(divisors(form.channels))
    if pick.one_of((True, False)):
        return nn.ChannelShuffle(groups), form

    def run(self: Do, x: Tensor) -> Tensor:
        n = x.shape[0]
        return x.view(n, groups, -1, *x.shape[2:]).transpose(1, 2).reshape(n, -1, *x.shape[2:])

    return Do(f"shuffle {groups}", run), form


def reordered(pick: Pick, form: Form) -> Made:
    kind = pick.one_of(("flip", "roll", "index", "contiguous", "clone", "twice"))
    order = torch.from_numpy(pick.subset(form.channels, form.channels)).flip(0)
    functions = {
        "flip": lambda self, x: x.flip(1),
        "roll": lambda self, x: x.roll(1, 1),
        "index": lambda self, x: x[:, order],
        "contiguous": lambda self, x: x.contiguous().add_(1),
        "clone": lambda self, x: x.clone().mul_(2),
        "twice": lambda self, x: x.repeat(1, 2, *(1,) * len(form.size)),
    }
    wide = form.wide(form.channels * 2) if kind == "twice" else form
    return Do(kind, functions[kind]), wide


def split_width(pick: Pick, form: Form) -> Made:
    """A linear layer that acts on each part of the channels (reshape, permute, back)."""
    groups = pick.one_of(divisors(form.channels))
    per = form.channels // groups
    out = pick.one_of((per, per + 1, 2))

    def run(self: Do, x: Tensor) -> Tensor:
        n = x.shape[0]
        parts = x.reshape(n, groups, per, -1).transpose(2, 3)  # (n, groups, positions, per)
        return self.linear(parts).transpose(2, 3).reshape(n, groups * out, *x.shape[2:])

    return Do(f"split width {groups}", run, linear=nn.Linear(per, out)), form.wide(groups * out)


def excite(pick: Pick, form: Form) -> Made:
    n, c = len(form.size), form.channels
    inner = width(pick)
    layers = {"down": CONVS[n](c, inner, 1), "up": CONVS[n](inner, c, 1)}

    def run(self: Do, x: Tensor) -> Tensor:
        pooled = x.mean(tuple(range(2, 2 + n)), keepdim=True)
        return x * torch.sigmoid(self.up(F.relu(self.down(pooled))))

    return Do("excite", run, **layers), form


def partial(pick: Pick, form: Form) -> Made:
    """A convolution on some channels only, written back through a view."""
    some = pick.integer(1, form.channels - 1)
    layer = CONVS[len(form.size)](some, some, 3, padding=1)
    if pick.one_of((True, False)):

        def run(self: Do, x: Tensor) -> Tensor:
            x = x.clone()
            x[:, :some] = self.layer(x[:, :some])
            return x

    else:

        def run(self: Do, x: Tensor) -> Tensor:
            return torch.cat((self.layer(x[:, :some]), x[:, some:]), 1)

    return Do(f"partial {some}", run, layer=layer), form


def wider_by_zeros(pick: Pick, form: Form) -> Made:
    """The shortcut without parameters: zeros for the channels that the body adds."""
    n, c = len(form.size), form.channels
    before, after = pick.integer(0, 2), pick.integer(1, 3)
    body = CONVS[n](c, c + before + after, 3, padding=1)
    if pick.one_of((True, False)):
        widths = (*(0, 0) * n, before, after)
        made = Do("zeros by pad", lambda self, x: F.pad(x, widths) + self.body(x), body=body)
    else:

        def run(self: Do, x: Tensor) -> Tensor:
            low = x.new_zeros(x.shape[0], before + 1, *x.shape[2:])
            high = torch.zeros(x.shape[0], after, *x.shape[2:])
            return torch.cat((low[:, 1:], x, high), 1) + self.body(x)

        made = Do("zeros by cat", run, body=body)
    return made, form.wide(c + before + after)


def shifted(pick: Pick, form: Form) -> Made:
    """Some channels are moved by one position (temporal shift)."""
    some = pick.integer(1, form.channels - 1)

    def run(self: Do, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, :some, :-1] = x[:, :some, 1:]
        out[:, some:] = x[:, some:]
        return out

    return Do(f"shifted {some}", run), form


def non_local(pick: Pick, form: Form) -> Made:
    """Attention between positions, on flattened maps."""
    n, c = len(form.size), form.channels
    inner = width(pick)
    layers = {key: CONVS[n](c, inner if key != "v" else c, 1) for key in "qkv"}
    einsum = pick.one_of((True, False))

    def run(self: Do, x: Tensor) -> Tensor:
        q, k, v = (getattr(self, key)(x).flatten(2) for key in "qkv")
        scores = torch.einsum("ncp,ncq->npq", q, k) if einsum else q.transpose(1, 2) @ k
        out = v @ scores.softmax(-1).transpose(1, 2)
        return out.view(x.shape[0], -1, *x.shape[2:]) + x

    return Do(f"non local, einsum={einsum}", run, **layers), form


def pooled(pick: Pick, form: Form) -> Made:
    n = len(form.size)
    if min(form.size) < 2:
        return nn.Identity(), form
    kinds = [(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)]
    return pick.one_of(kinds)[n - 1](2), Form("map", form.channels, tuple(s // 2 for s in form.size))


def resampled(pick: Pick, form: Form) -> Made:
    """Between channels and space."""
    size = form.size
    if len(size) != 2:
        return nn.Upsample(scale_factor=2), Form("map", form.channels, tuple(2 * s for s in size))
    if form.channels % 4 == 0 and pick.one_of((True, False)):
        return nn.PixelShuffle(2), Form("map", form.channels // 4, tuple(2 * s for s in size))
    if form.channels <= 6 and all(s % 2 == 0 for s in size):
        small = tuple(s // 2 for s in size)
        if pick.one_of((True, False)):
            return nn.PixelUnshuffle(2), Form("map", form.channels * 4, small)

        def focus(self: Do, x: Tensor) -> Tensor:
            return torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)

        return Do("focus", focus), Form("map", form.channels * 4, small)
    return nn.Upsample(scale_factor=2, mode="bilinear"), Form(
        "map", form.channels, tuple(2 * s for s in size)
    )


KEEP_SIZE = (
    conv, conv, conv, depthwise, transposed, standardized, tied, scaled, norm, norm, activation, activation, glu, shuffle,
    reordered, split_width, excite, partial, wider_by_zeros, shifted, non_local,
)  # fmt: skip
CHANGE_SIZE = (pooled, resampled)
