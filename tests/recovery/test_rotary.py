"""Queries that turn with their position: the logits are repaired by what commutes with the turns."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import prunus
from prunus.capture import capture
from prunus.recovery import recover
from prunus.recovery.logits import fit_logits
from prunus.recovery.rotary import Turning
from prunus.structure import find_structure
from prunus.surgery import cut, lift
from tests.recovery.test_logits import products
from tests.recovery.test_recover import error

HEADS, WIDTH, DIM, TOKENS = 2, 8, 12, 6
WAYS = ["halves", "neighbours", "complex", "partial", "shared keys"]


class Rotary(nn.Module):
    """Attention with rotary embeddings in several spellings; all pairs turn alike, so that one can make up for another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        keys = 1 if way == "shared keys" else HEADS
        self.q, self.k, self.v = (nn.Linear(DIM, n * WIDTH) for n in (HEADS, keys, keys))
        self.out = nn.Linear(HEADS * WIDTH, DIM)

    def turn(self, x: Tensor) -> Tensor:
        """(batch, heads, tokens, width)."""
        angle = torch.arange(x.shape[2], dtype=torch.float32) * 0.7
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        if self.way == "complex":
            turns = torch.polar(torch.ones_like(angle), angle)[:, None]
            return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)
        if self.way == "neighbours":
            other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
            return x * cos + other * sin
        still = x[..., 4:] if self.way == "partial" else x[..., :0]
        x = x[..., :4] if self.way == "partial" else x
        one, two = x.chunk(2, -1)
        return torch.cat([x * cos + torch.cat((-two, one), -1) * sin, still], -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.way == "normalized":
            q = functional.rms_norm(q, (WIDTH,)) * torch.linspace(0.5, 2, WIDTH)
        q, k = self.turn(q), self.turn(k)
        k, v = (each.repeat_interleave(HEADS // each.shape[1], 1) for each in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(-2))


def rows(batches: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(16, TOKENS, DIM, generator=generator) for _ in range(batches)]


def pair_group(structure: Any) -> Any:
    """Pairs of queries and keys, of all heads."""
    for group in structure.groups:
        names = {member.parameter for member in group.members}
        if group.held is None and {"q.weight", "k.weight"} <= names and "v.weight" not in names:
            return group
    raise AssertionError("no group of pairs")


def repeating(model: Rotary, structure: Any, group: Any) -> list[int]:
    """Let one unit of each head, or the last of all, be another one turned and scaled; return those that stay."""
    places = {
        structure.captured.names[p.placeholder].partition(".")[0]: p.unit
        for p in structure.positions[group.name]
        if structure.captured.names[p.placeholder].endswith("weight")
    }
    heads = group.rows if group.rows is not None else [range(group.size)]
    gone = []
    with torch.no_grad():
        for units in heads:
            kept, lost = int(units[0]), int(units[-1])
            gone.append(lost)
            for name, turned in (("q", True), ("k", False)):
                layer = getattr(model, name)
                mine, theirs = ((places[name] == unit).nonzero()[0].tolist() for unit in (kept, lost))
                for tensor in (layer.weight, layer.bias):
                    source = tensor[mine].clone()
                    if turned and len(mine) >= 2:  # times 0.8 + 0.5 i, for each head's pair
                        for a in range(0, len(mine), 2):
                            one, two = source[a].clone(), source[a + 1].clone()
                            source[a], source[a + 1] = 0.8 * one - 0.5 * two, 0.5 * one + 0.8 * two
                    tensor[theirs] = source
    return [unit for unit in range(group.size) if unit not in gone]


@pytest.mark.parametrize("way", WAYS)
def test_a_pair_that_another_repeats_is_made_up_for_exactly(way: str) -> None:
    torch.manual_seed(0)
    model = Rotary(way).eval()
    data = rows()
    structure = find_structure(capture(model, data[0][:2]))
    group = pair_group(structure)
    kept = repeating(model, structure, group)
    structure = find_structure(capture(model, data[0][:2]))
    keep = structure.keep_labels({group.name: tuple(kept)})
    small = cut(structure, keep)
    before = error(model, lift(small).eval(), data)
    repaired, report = recover(structure, small, keep, data)
    assert [(r.layer, r.step) for r in report.repairs][:1] == [("q", "logits")], report.left
    assert before > 1e-5 and error(model, lift(repaired).eval(), data) < 1e-6 * before


def test_norms_in_between_forbid_it() -> None:
    torch.manual_seed(0)
    model = Rotary("halves").eval()
    model.way = "normalized"
    data = rows()
    structure = find_structure(capture(model, data[0][:2]))
    groups = [
        g for g in structure.groups if g.held is None and any(m.parameter == "q.weight" for m in g.members)
    ]
    for group in groups:
        keep = structure.keep_labels({group.name: tuple(range(group.size - 1))})
        _, report = recover(structure, cut(structure, keep), keep, data)
        assert not any(r.step == "logits" for r in report.repairs)


def test_the_fit_is_the_least_squares_solution_among_what_is_allowed() -> None:
    """Against one unknown for each number that may be chosen: two for a pair, all for what does not turn."""
    made, _ = products(False)
    turning = Turning(None, torch.tensor([0]), torch.tensor([2]), torch.tensor([1]))  # type: ignore[arg-type]
    start = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    found = fit_logits(made, start, ridge=0.0, nearest=turning.nearest)
    basis = torch.zeros(3, 3, 3, dtype=torch.float64)
    basis[0, 0, 0] = basis[0, 2, 2] = basis[1, 0, 2] = basis[2, 1, 1] = 1
    basis[1, 2, 0] = -1
    for head in range(2):
        gram = torch.zeros(3, 3, dtype=torch.float64)
        right = torch.zeros(3, dtype=torch.float64)
        for s in range(3):
            applied = made.qq[s, head] @ basis @ made.kk[s, head]
            gram += torch.einsum("aij,bij->ab", basis, applied)
            right += (basis * made.wanted[s, head]).sum((1, 2))
        expected = torch.einsum("a,aij->ij", torch.linalg.solve(gram, right), basis)
        torch.testing.assert_close(found[head], expected, rtol=1e-7, atol=1e-9)


def test_it_is_part_of_what_compress_does() -> None:
    torch.manual_seed(0)
    model, data = Rotary("halves").eval(), rows()
    result = prunus.compress(model, data[0][:2], method="l2", target=prunus.Target(channels=0.7), data=data)
    recovery = result.report.recovery or {}
    assert any(repair["step"] == "logits" for repair in recovery["repairs"])
