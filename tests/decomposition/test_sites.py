"""Which layers are replaced, and which are left alone for which reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus.capture import capture
from prunus.decomposition.sites import find_sites
from prunus.surgery import count_macs
from tests.decomposition.layers import grid, input_for, layer_of


class Odd(nn.Module):
    """Layers that are used in every other way than being called."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.twice, self.unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.functional, self.normed, self.tied = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.tied.weight
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hooked, self.own, self.biased = nn.Linear(8, 8), Shifted(8, 8), nn.Linear(8, 8)
        self.hooked.register_forward_hook(lambda module, args, output: output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.plain(x))) + F.linear(x, self.functional.weight)
        x = x + self.normed(x) * self.normed.weight.norm() + self.tied(x) + self.other(x)
        x = self.parametrized(self.hooked(self.own(x))) + self.biased(x) + self.biased.bias
        return x + self.attention(x, x, x, need_weights=False)[0]


class Shifted(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def test_only_layers_that_are_called_can_be_replaced() -> None:
    captured = capture(Odd().eval(), torch.randn(3, 5, 8))
    sites, reasons = find_sites(captured)
    assert set(sites) == {"plain", "twice"}
    assert len(sites["twice"].calls) == 2
    said = {
        "unused": "not used",
        "functional": "without calling",
        "normed": "in another way",
        "tied": "shares its weight with other.weight",
        "other": "shares its weight with tied.weight",
        "parametrized": "computed from",
        "attention.out_proj": "",
        "hooked": "hooks",
        "own": "Shifted",
        "biased": "bias that is also used",
    }
    assert set(reasons) == set(said)
    for path, words in said.items():
        assert words in reasons[path], (path, reasons[path])


def test_work_is_counted_as_in_the_graph() -> None:
    cases = [case for case in grid() if case["axes"] == 2]
    for case in cases:
        layer = layer_of(case)
        captured = capture(nn.Sequential(layer).eval(), input_for(layer), "none")
        sites, reasons = find_sites(captured)
        assert not reasons, (case, reasons)
        site = sites["0"]
        assert site.macs([site.geometry]) == count_macs(captured), case


@pytest.mark.parametrize("size", [(3, 8), (3, 5, 8)])
def test_rows_of_linear_layers(size: tuple[int, ...]) -> None:
    captured = capture(nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(size))
    site = find_sites(captured)[0]["0"]
    assert site.macs([site.geometry]) == count_macs(captured) == 32 * (5 if len(size) == 3 else 1)
