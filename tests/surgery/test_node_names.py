"""Nodes of the small graph are matched with the original's by name: nothing that surgery adds may take one."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus


class MergedHeads(nn.Module):
    """Heads merged with the batch, whose symbolic size has to be rescaled; products before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.first, self.last = 4, nn.Linear(5, 8), nn.Linear(8, 3)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def split(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        each = width // self.heads
        return x.view(n, length, self.heads, each).transpose(1, 2).reshape(n * self.heads, length, each)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * x.sigmoid() * 2
        scores = torch.bmm(self.split(self.q(x)) * 0.5, self.split(self.k(x)).transpose(1, 2)) * 3
        y = torch.bmm(scores.softmax(-1), self.split(self.v(x)))
        y = y.view(x.shape[0], self.heads, -1, y.shape[-1]).transpose(1, 2).flatten(2)
        return self.last(x + y * y.tanh() * 4)


class KernelsPerSample(nn.Module):
    """One convolution whose groups are the samples, with kernels that each sample scales."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.weight = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 12, 8, 3))
        self.stem, self.out, self.channels = nn.Conv1d(2, 8, 3), nn.Conv1d(12, 2, 1), 12

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, length = x.shape
        kernel = self.weight * self.scale(z).view(n, 1, c, 1)
        kernel = kernel * (kernel.pow(2).sum((2, 3)) + 1e-6).rsqrt().view(n, self.channels, 1, 1)
        x = F.conv1d(x.reshape(1, n * c, length), kernel.view(n * self.channels, c, 3), groups=n)
        x = x.view(n, self.channels, -1)
        return self.out(x * x.sigmoid() * 2)


class ScaledTokens(nn.Module):
    """Attention of torch, whose merged heads are rescaled, behind gates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.attention = nn.ModuleList(nn.MultiheadAttention(12, 3, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for attention in self.attention:
            x = x * x.sigmoid() * 2
            x = x + attention(x, x, x, need_weights=True)[0]
        return self.last(x * x.tanh())


HEADS = prunus.Options(reshape_channel_axis=0)


@pytest.mark.parametrize(
    ("make", "shapes", "options"),
    [
        (MergedHeads, [(2, 6, 5)], HEADS),
        (MergedHeads, [(2, 6, 5)], None),
        (KernelsPerSample, [(3, 2, 9), (3, 6)], None),
        (ScaledTokens, [(2, 4, 5)], HEADS),
    ],
)
def test_what_surgery_adds_takes_no_name_of_the_original(
    make: Callable[[], nn.Module], shapes: list[tuple[int, ...]], options: prunus.Options | None
) -> None:
    torch.manual_seed(0)
    x = tuple(torch.randn(shape) for shape in shapes)
    result = prunus.compress(make().eval(), x, target=prunus.Target(channels=0.5), options=options)
    assert result.structure is not None
    original = {node.name: node for node in result.structure.captured.graph.nodes}
    for node in result.captured.graph.nodes:
        assert (node.meta.get("origin") == node.name) is (node.name in original), node.name
    assert "Error" not in result.report.form_reason


class Ranked(nn.Module):
    """Channels taken in an order of the model's own: what stays of the indices is a constant that surgery adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.tensor([3, 1, 0, 2, 7, 5, 4, 6])
        return self.last(torch.relu(self.first(x)).index_select(-1, order))


def test_constants_of_two_cuts_stay_apart() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    once = prunus.compress(Ranked().eval(), x, target=prunus.Target(channels=0.75))
    assert once.report.form == "graph"
    twice = prunus.compress(once.model, x, target=prunus.Target(channels=0.5))
    names = list(twice.captured.names.values())
    assert len(names) == len(set(names))
    assert twice.report.after.params < once.report.after.params
    assert twice.model(x).shape == (4, 3)


def test_failure_of_write_back_gives_the_graph_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("what nobody foresaw")

    monkeypatch.setattr(importlib.import_module("prunus.surgery.write_back"), "solve_slots", fail)
    torch.manual_seed(0)
    result = prunus.compress(MergedHeads().eval(), torch.randn(2, 6, 5), target=prunus.Target(channels=0.5))
    assert result.report.form == "graph"
    assert "TypeError: what nobody foresaw" in result.report.form_reason
