"""Heads, query/key width and value width are groups of their own, however the attention is written."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.structure.groups import Group


class Attention(nn.Module):
    """Separate projections; fewer heads for keys and values than for queries where asked."""

    def __init__(self, heads: int, key_heads: int, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.key_heads, self.fused = heads, key_heads, fused
        self.embed = nn.Linear(5, 32)
        self.q, self.out = nn.Linear(32, heads * 8), nn.Linear(heads * 8, 32)
        self.k, self.v = nn.Linear(32, key_heads * 8), nn.Linear(32, key_heads * 8)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, length, _ = x.shape
        q = self.q(x).view(n, length, self.heads, -1).transpose(1, 2)
        k = self.k(x).view(n, length, self.key_heads, -1).transpose(1, 2)
        v = self.v(x).view(n, length, self.key_heads, -1).transpose(1, 2)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads != self.key_heads)
        else:
            y = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v
        return self.head(self.out(y.transpose(1, 2).reshape(n, length, -1)))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 32), nn.Linear(32, 3)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def groups(model: nn.Module) -> dict[str, list[Group]]:
    """Groups that can be pruned, by the kind of axis that they are."""
    structure = prunus.analyze(model.eval(), torch.randn(2, 6, 5))
    found: dict[str, list[Group]] = {"heads": [], "inner": [], "width": []}
    for group in structure.prunable:
        kind = "heads" if group.outer else "inner" if group.rows is not None else "width"
        found[kind].append(group)
    assert [g.name for g in structure.groups if g.held] == ["head"]
    return found


@pytest.mark.parametrize("fused", [True, False])
def test_separate_projections(fused: bool) -> None:
    found = groups(Attention(4, 4, fused))
    (heads,) = found["heads"]
    assert heads.size == 4
    assert {m.parameter for m in heads.members} >= {"q.weight", "k.weight", "v.weight", "out.weight"}
    made = {group.producers: group for group in found["inner"]}
    assert set(made) == {("q", "k"), ("v",)}
    for group in made.values():
        assert group.rows is not None and group.rows.shape == (4, 8)
    assert {group.size for group in found["width"]} == {32}


def test_grouped_queries_lose_channels_with_the_keys_that_they_meet() -> None:
    found = groups(Attention(4, 2))
    made = {group.producers: group for group in found["inner"]}
    assert set(made) == {("q", "k"), ("v",)}
    for group in made.values():
        assert group.rows is not None and group.rows.shape == (2, 8)
    assert {group.size for group in found["heads"]} == {2, 4}


def test_packed_projections_have_values_of_their_own() -> None:
    found = groups(Packed())
    assert [heads.size for heads in found["heads"]] == [4]
    reads = [{m.parameter for m in group.members} for group in found["inner"]]
    assert len(reads) == 2
    assert sorted("attention.out_proj.weight" in members for members in reads) == [False, True]


@pytest.mark.parametrize(
    "model", [Attention(4, 4), Attention(4, 2), Packed()], ids=["plain", "grouped", "packed"]
)
@pytest.mark.parametrize("unit", ["channels", "macs", "params"])
def test_each_is_pruned_and_verified(model: nn.Module, unit: str) -> None:
    torch.manual_seed(0)
    result = prunus.compress(model.eval(), torch.randn(2, 6, 5), target=prunus.Target(**{unit: 0.5}))
    assert result.report.verification is not None
    assert result.report.verification["max_relative_error"] < 1e-9
    assert result.report.after.params < 0.75 * result.report.before.params
