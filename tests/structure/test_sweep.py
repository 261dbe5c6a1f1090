"""Operators that people put between two layers: which let channels go, and for what reason the others do not."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.structure.families import pruned
from tests.structure.sweep import outcome, side_by_side

POINTS = torch.linspace(-1, 2, 8)
SQUARES = [
    torch.linspace(-1, last, 64).view(8, 8) for last in (1, 2, 3)
]  # each is used once: what shares one is tied
CUBE, SLOPE, EDGES = torch.ones(3, 8, 8), torch.tensor([0.1]), torch.ones(8, 1, 3, 3)

FREE: Mapping[str, Any] = {
    "addmv": lambda v: torch.addmv(v[:, 0], v, POINTS)[:, None],
    "mv": lambda v: torch.mv(v, POINTS * 2)[:, None],
    "dot": lambda v: torch.dot(v[0], v[1]).view(1, 1),
    "vdot": lambda v: torch.vdot(v[0], v[1]).view(1, 1),
    "kron in front": lambda v: torch.kron(torch.ones(1, 2), v),
    "normalize": lambda v: F.normalize(v, dim=1),
    "normalize samples": lambda v: F.normalize(v, dim=0),
    "renorm of channels": lambda v: torch.renorm(v, 2, 1, 1.0),
    "diff of samples": lambda v: torch.diff(v, dim=0, prepend=v[:1]),
    "cumulative trapezoid": lambda v: torch.cumulative_trapezoid(v, dim=0),
    "cumsum of samples": lambda v: v.cumsum(0),
    "cumprod of samples": lambda v: v.cumprod(0),
    "cummax of samples": lambda v: v.cummax(0)[0],
    "logcumsumexp of samples": lambda v: v.logcumsumexp(0),
    "sort of samples": lambda v: v.sort(0)[0],
    "logsumexp": lambda v: v.logsumexp(1, keepdim=True),
    "softmax": lambda v: v.softmax(1),
    "log softmax": lambda v: v.log_softmax(1),
    "std": lambda v: v.std(1, keepdim=True),
    "var of samples": lambda v: v.var(0, keepdim=True),
    "norm": lambda v: v.norm(dim=1, keepdim=True),
    "nanmean": lambda v: v.nanmean(1, keepdim=True),
    "prod": lambda v: v.prod(1, keepdim=True),
    "distance": lambda v: torch.dist(v, v * 2).view(1, 1),
    "select scatter": lambda v: torch.select_scatter(v, v[0], 0, 1),
    "bilinear": lambda v: F.bilinear(v, v, CUBE),
    "multi dot": lambda v: torch.linalg.multi_dot([v, SQUARES[0], SQUARES[1]]),
    "addmm": lambda v: torch.addmm(v, v, SQUARES[2]),
    "outer by einsum": lambda v: torch.einsum("bi,bj->bij", v, v).sum(1),
    "lerp": lambda v: torch.lerp(v, v * 2, 0.3),
    "addcmul": lambda v: torch.addcmul(v, v, v),
    "where": lambda v: torch.where(v > 0, v, 0),
    "hypot": lambda v: torch.hypot(v, v),
    "logaddexp": lambda v: torch.logaddexp(v, v),
    "xlogy": lambda v: torch.xlogy(v.abs(), v.abs() + 1),
    "remainder": lambda v: torch.remainder(v, 1),
    "float power": lambda v: torch.float_power(v, 2).float(),
    "celu": F.celu,
    "glu": F.glu,
    "log sigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda v: F.threshold(v, 0.1, 0),
    "prelu": lambda v: F.prelu(v, SLOPE),
    "tile": lambda v: v.tile(2),
    "repeat interleave": lambda v: v.repeat_interleave(2, 1),
    "roll": lambda v: v.roll(2, 1),
    "flip": lambda v: v.flip(1),
    "stack": lambda v: torch.stack([v, v], 1).sum(1),
    "hstack": lambda v: torch.hstack([v, v]),
    "split": lambda v: torch.tensor_split(v, 3, 1)[0],
    "layer norm": lambda v: F.layer_norm(v, (8,)),
    "rms norm": lambda v: F.rms_norm(v, (8,)),
    "complex": lambda v: torch.complex(v, v).abs(),
}
HELD: Mapping[str, tuple[Any, str]] = {
    "diff": (lambda v: torch.diff(v, dim=1), "is all that is left of an axis somewhere"),
    "cumsum": (lambda v: v.cumsum(1), "is ordered or counted by aten.cumsum"),
    "topk": (lambda v: v.topk(3, 1)[0], "is ordered or counted by aten.topk"),
    "sort": (lambda v: v.sort(1)[0], "is ordered or counted by aten.sort"),
    "median": (lambda v: v.median(1, keepdim=True)[0], "is ordered or counted by aten.median"),
    "inverse": (lambda v: v @ torch.linalg.inv(v.T @ v + torch.eye(8)), "meets the operator aten.linalg_inv"),
    "rows": (lambda v: torch.outer(v[0], v[1]), "is part of the model's output"),
}
MAPS: Mapping[str, Any] = {
    "lp pool": lambda v: F.lp_pool2d(v, 2.0, 2),
    "adaptive max": lambda v: F.adaptive_max_pool2d(v, 2),
    "bilinear": lambda v: F.interpolate(v, size=8, mode="bilinear"),
    "bicubic": lambda v: F.interpolate(v, size=8, mode="bicubic", antialias=True),
    "area": lambda v: F.interpolate(v, size=2, mode="area"),
    "unfold and fold": lambda v: F.fold(F.unfold(v, 2), 4, 2),
    "circular": lambda v: F.pad(v, (1, 1, 1, 1), "circular"),
    "more channels": lambda v: F.pad(v, (0, 0, 0, 0, 0, 4)),
    "softmax": lambda v: v.softmax(1),
    "mean of channels": lambda v: v * v.mean(1, keepdim=True),
    "largest channel": lambda v: v * v.amax(1, keepdim=True),
    "similar to itself": lambda v: F.cosine_similarity(v, v.flip(0), dim=1)[:, None] * v,
    "soft argmax": lambda v: (v.flatten(2).softmax(-1) * torch.arange(16.0)).sum(-1),
    "windows": lambda v: v.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)),
    "cumsum in space": lambda v: v.cumsum(3),
    "diff in space": lambda v: torch.diff(v, dim=3),
    "edges": lambda v: F.conv2d(v, EDGES, groups=8),
    "turned": lambda v: torch.rot90(v, 1, (2, 3)),
    "maxima only": lambda v: v * (v == F.max_pool2d(v, 3, 1, 1)),
    "attention over space": lambda v: F.scaled_dot_product_attention(*[v.flatten(2).mT[:, None]] * 3)[:, 0],
    "spectrum": lambda v: torch.fft.ifft2(torch.fft.fft2(v) * 2).real,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("names", [tuple(FREE)[:27], tuple(FREE)[27:]], ids=["first", "second"])
def test_vectors_lose_channels(names: tuple[str, ...]) -> None:
    functions = {name: FREE[name] for name in names}
    made = side_by_side(functions, torch.linspace(-2, 2, 15).view(3, 5), lambda: nn.Linear(5, 8))
    assert outcome(pruned(made, range(1)), functions) == dict.fromkeys(functions, "")


@pytest.mark.slow
def test_maps_lose_channels() -> None:
    made = side_by_side(MAPS, torch.randn(2, 3, 4, 4), lambda: nn.Conv2d(3, 8, 1))
    assert outcome(pruned(made, range(1)), MAPS) == dict.fromkeys(MAPS, "")


def test_what_is_held_has_a_true_reason() -> None:
    functions = {name: function for name, (function, _) in HELD.items()}
    made = side_by_side(functions, torch.linspace(-2, 2, 15).view(3, 5), lambda: nn.Linear(5, 8))
    found = outcome(pruned(made, range(1)), functions)
    wrong = {name: found[name] for name, (_, reason) in HELD.items() if not found[name].startswith(reason)}
    assert not wrong
