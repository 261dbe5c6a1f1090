"""Rotary embeddings: the two channels that are turned together leave together, in queries, keys and tables."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.surgery.replay import cut
from tests.property.form import randomize
from tests.property.networks import Network
from tests.structure.families import pruned, structure_of

LENGTH, HEADS, WIDTH = 5, 2, 8


def spread(angles: Tensor, halves: bool) -> Tensor:
    return torch.cat([angles, angles], -1) if halves else angles.repeat_interleave(2, -1)


def quarter_turn(x: Tensor, halves: bool) -> Tensor:
    if halves:
        a, b = x.chunk(2, -1)
        return torch.cat([-b, a], -1)
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


class Rotary(nn.Module):
    """One layer of attention; the tables are buffers, or computed from frequencies that are, or counted out."""

    def __init__(self, halves: bool, source: str) -> None:
        super().__init__()
        self.halves, self.source = halves, source
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.q, self.k, self.v = (nn.Linear(6, HEADS * WIDTH) for _ in range(3))
        self.out = nn.Linear(HEADS * WIDTH, 6)
        if source == "tables":
            self.register_buffer("cos", spread(self.angles(self.counted()), halves).cos())
            self.register_buffer("sin", spread(self.angles(self.counted()), halves).sin())
        elif source == "frequencies":
            self.register_buffer("frequencies", self.counted())

    def counted(self) -> Tensor:
        return 1 / 100 ** (torch.arange(0, WIDTH, 2).float() / WIDTH)

    def angles(self, frequencies: Tensor) -> Tensor:
        return torch.arange(LENGTH).float()[:, None] * frequencies

    def turned(self, x: Tensor) -> Tensor:
        if self.source == "tables":
            return x * self.cos + quarter_turn(x, self.halves) * self.sin
        frequencies = self.frequencies if self.source == "frequencies" else self.counted()
        angles = self.angles(frequencies)
        if self.source == "complex":
            numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
            return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
        angles = spread(angles, self.halves)
        return x * angles.cos() + quarter_turn(x, self.halves) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = (m(x).unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.last(x + self.out(y.transpose(1, 2).flatten(2)))


def rotary(halves: bool, source: str) -> Network:
    return Network(randomize(Rotary(halves, source), 1).eval(), (torch.randn(2, LENGTH, 3),))


FORMS = [(halves, source) for halves in (True, False) for source in ("tables", "frequencies", "counted")]


@pytest.mark.parametrize(("halves", "source"), [*FORMS, (False, "complex")])
def test_pairs_leave_together(halves: bool, source: str) -> None:
    """One table for all heads: the same pairs of each."""
    structure = pruned(rotary(halves, source), range(2))
    (pairs,) = [
        group for group in structure.prunable if set(group.producers) == {"q", "k"} and not group.outer
    ]
    assert pairs.size == WIDTH // 2
    for name in ("q", "k"):
        lines = [
            p for p in structure.positions[pairs.name] if p.placeholder == f"p_{name}_weight" and p.axis == 0
        ]
        unit = torch.from_numpy(lines[0].unit).view(HEADS, WIDTH)
        expected = spread(torch.arange(WIDTH // 2), halves).expand(HEADS, -1)
        assert torch.equal(unit, expected)


def test_what_is_counted_out_keeps_its_numbers() -> None:
    """Without the second pair, the others keep their frequencies."""
    made = rotary(True, "counted")
    structure = structure_of(made)
    (pairs,) = [group for group in structure.prunable if group.size == WIDTH // 2]
    small = cut(structure, structure.keep_labels({pairs.name: [0, 2, 3]}))
    assert [tuple(c.shape) for n, c in small.tensors.items() if small.kinds[n] == "constant"].count((3,)) >= 1
    assert small.tensors["p_q_weight"].shape == (HEADS * 6, 6)
