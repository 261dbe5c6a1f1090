"""The user's own class first: what is held for it, at what price, and what the report says of it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus

HALF = prunus.Target(channels=0.5)


class Waves(nn.Module):
    """A table of sines and cosines without parameters, whose halves a number in the code exchanges."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, t: Tensor) -> Tensor:
        half = self.size // 2
        angles = t[:, None].float() * torch.exp(-torch.arange(half) / half * 5)[None]
        waves = torch.cat([angles.sin(), angles.cos()], -1)
        return torch.cat([waves[:, half:], waves[:, :half]], -1)


class Timed(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.waves, self.first, self.second = Waves(size), nn.Linear(size, width), nn.Linear(width, width)
        self.stem, self.last = nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.second(F.silu(self.first(self.waves(t))))
        return self.last((self.stem(x) + time[:, :, None, None]).relu())


class Grid(nn.Module):
    """A square that the code writes out: 16 channels are 4 times 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.small, self.big, self.wide = nn.Linear(5, 16), nn.Linear(5, width), nn.Linear(width, width)
        self.mixed, self.last = nn.Linear(16, 4), nn.Linear(width + 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        square = self.small(x).view(-1, 4, 4).transpose(1, 2).flatten(1)
        return self.last(torch.cat([self.wide(self.big(x).relu()).relu(), self.mixed(square)], -1))


TIMED = (torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 20]))
ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
CASES = [
    (lambda: Timed(8, 64), TIMED, True),
    (lambda: Timed(48, 16), TIMED, False),
    (lambda: Grid(96), ROWS, True),
    (lambda: Grid(8), ROWS, False),
]


@pytest.mark.parametrize(("make", "x", "cheap"), CASES, ids=["timed", "timed, dear", "grid", "grid, dear"])
def test_what_the_class_needs_is_held_where_that_costs_little(make, x, cheap: bool) -> None:
    torch.manual_seed(0)
    model = make().eval()
    free = prunus.compress(model, x, target=HALF, keep_class=False)
    assert free.report.form == "graph"
    first = prunus.compress(model, x, target=HALF)
    assert (first.report.form == "class") is cheap, first.report.notes
    (said,) = [note for note in first.report.notes if "your own class" in note]
    assert "parameters" in said and "held: " in said
    assert ("keep_class=True" in said) is not cheap
    kept = prunus.compress(model, x, target=HALF, keep_class=True)
    assert type(kept.model) is type(model)
    assert free.report.after.params < kept.report.after.params < kept.report.before.params
    held = [group for group in kept.report.groups if group.held and "own class" in group.held]
    assert held and all(group.kept == group.size for group in held)
    assert all("node" in group.held or ".py:" in group.held for group in held if group.held)


def test_nothing_is_held_where_the_class_comes_back_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    results = [prunus.compress(model, ROWS, target=HALF, keep_class=keep) for keep in (False, None, True)]
    assert [result.report.form for result in results] == ["class"] * 3
    assert results[0].plan == results[1].plan == results[2].plan
    assert not any(result.report.notes for result in results)


def test_plan_of_a_class_that_came_back_makes_it_again() -> None:
    torch.manual_seed(0)
    model = Timed(8, 64).eval()
    result = prunus.compress(model, TIMED, target=HALF, keep_class=True)
    again = prunus.apply(Timed(8, 64).eval(), prunus.Plan.from_json(result.plan.to_json()))
    assert again.report.form == "class"
    assert again.report.after == result.report.after


class Decoder(nn.Module):
    """Cross-attention of torch, whose packed projections are taken apart before they are used."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 6)
        layer = nn.TransformerDecoderLayer(16, 2, 24, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.decoder(x[:, :3], x))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 6)
        self.transformer = nn.Transformer(16, 4, 1, 1, 24, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.transformer(x, x[:, :3]))


@pytest.mark.parametrize("make", [lambda: Decoder(1), Whole], ids=["decoder", "whole"])
def test_temperature_of_cross_attention_is_made_up_for(make) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(2, 7, 6)
    result = prunus.compress(model, x, target=HALF, keep_class=False)
    assert type(result.model) is type(model), result.report.form_reason
    other = torch.randn(3, 5, 6)
    assert result.model(other).shape == model(other).shape
