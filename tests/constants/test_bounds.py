"""Bounds hold on whatever inputs, and what they call constant is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.constants import bounds_of
from prunus.evidence.interpret import Pass


class Branches(nn.Module):
    """Most rules: convolutions of all kinds, norms, pools, joins, functions of single elements."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.up = nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.group, self.out = nn.GroupNorm(2, 6), nn.Linear(12, 5)
        self.layer = nn.LayerNorm(5)
        with torch.no_grad():
            self.a.weight[:3] = 0
            self.depthwise.weight[4:6] = 0
            self.up.weight[:, 2] = 0
            nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)
            self.norm.weight[3:5] = 0
            nn.init.normal_(self.norm.running_mean), nn.init.uniform_(self.norm.running_var)
            self.group.weight[:2] = 0
            nn.init.normal_(self.group.bias)
            self.layer.weight[1], self.layer.bias[1] = 0, -0.5

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.a(x)), inplace=True)
        y = F.avg_pool2d(F.silu(self.depthwise(y)) * 1.5 - 0.25, 2)
        y = self.group(self.up(F.leaky_relu(y, 0.1) / 2))
        y = torch.cat([y.mean((2, 3)), F.max_pool2d(-y, 4).flatten(1)[:, :6]], 1)
        return (
            self.layer(self.out(y)).clamp(-1, 1).unsqueeze(1) + torch.tanh(x.mean((1, 2, 3)))[:, None, None]
        )


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Linear(4, 4)
        self.v.weight.data[[0, 2]] = 0
        self.table, self.a, self.b = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 4)
        with torch.no_grad():
            self.table.weight[:, 1] = 0.5
            self.a.weight[2:4] = 0
            self.b.weight.copy_(-self.b.weight.abs())
            self.b.bias.fill_(-0.1)

    def forward(self, ids: Tensor) -> Tensor:
        y = F.relu(self.a(self.table(ids)))  # at least zero, so that what follows is below zero
        v = self.v(y[..., :4]).unflatten(-1, (2, 2)).transpose(1, 2)
        v = (
            F.scaled_dot_product_attention(v, v, v).transpose(1, 2).flatten(2)
            + (v @ v.mT @ (v * 0)).sum((1, 3))[..., None]
        )
        return F.relu(self.b(y)) + v + torch.where(y.sum(-1, keepdim=True) > 0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("net", "inputs", "constants"),
    [
        (Branches, [torch.randn(2, 3, 12, 12) * s for s in (1, 100, 0)], {"relu_": 5, "group_norm": 2}),
        (
            Tokens,
            [torch.randint(0, 9, (2, 7)) for _ in range(3)],
            {"embedding": 1, "relu": 2, "relu_1": 4, "flatten": 2},
        ),
    ],
)
def test_values_lie_within_their_bounds(net: Any, inputs: list[Tensor], constants: dict[str, int]) -> None:
    torch.manual_seed(0)
    captured = prunus.analyze(
        net().double().eval(), inputs[0].double() if inputs[0].is_floating_point() else inputs[0]
    ).captured
    bounds = bounds_of(captured)
    axis = 1 if net is Branches else -1
    for x in inputs:
        seen: dict[str, Tensor] = {}

        def look(node: Any, value: Any, seen: dict[str, Tensor] = seen) -> None:
            if isinstance(value, Tensor):
                seen[node.name] = value.clone()

        with torch.no_grad():
            Pass(captured, set(captured.graph.nodes)).run(
                {captured.inputs[0]: x.double() if x.is_floating_point() else x}, look
            )
        assert len(bounds) >= 6
        for name, found in bounds.items():
            assert bool((seen[name] >= found.low - 1e-9).all() and (seen[name] <= found.high + 1e-9).all()), (
                name
            )
    for name, count in constants.items():
        line = bounds[name].line(axis)
        assert line is not None and int(line.known.sum()) == count, (name, line)
