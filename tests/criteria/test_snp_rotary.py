"""Scores of pairs where heads share units: the definition, head by head, whatever rotary tables tie together."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.criteria import SNP
from prunus.evidence import collect

WIDTH, HEAD, QUERIES = 16, 8, 4


def rotated(x: Tensor, width: int) -> Tensor:
    """(..., tokens, channels) with the first `width` channels turned by their position."""
    angles = torch.arange(x.shape[-2])[:, None] * 10 ** -(torch.arange(0, width, 2) / width)
    angles = torch.cat([angles, angles], -1)
    turned, rest = x[..., :width], x[..., width:]
    half = torch.cat([-turned[..., width // 2 :], turned[..., : width // 2]], -1)
    return torch.cat([turned * angles.cos() + half * angles.sin(), rest], -1)


class Attention(nn.Module):
    """Rotary attention: `keys` heads of keys for four of queries, the first `turned` channels of each head turned."""

    def __init__(self, keys: int, turned: int, product: str) -> None:
        super().__init__()
        self.keys, self.turned, self.product = keys, turned, product
        self.q, self.k, self.v = (nn.Linear(WIDTH, n * HEAD) for n in (QUERIES, keys, keys))
        self.out = nn.Linear(QUERIES * HEAD, WIDTH)

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, heads, tokens, HEAD) queries and keys, turned."""
        q = self.q(x).unflatten(-1, (QUERIES, HEAD)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (self.keys, HEAD)).transpose(1, 2)
        return rotated(q, self.turned), rotated(k, self.turned)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        (q, k), v = self.pairs(x), self.v(x).unflatten(-1, (self.keys, HEAD)).transpose(1, 2)
        if self.product == "gqa":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            return x + self.out(y.transpose(1, 2).flatten(2))
        k, v = (y.repeat_interleave(QUERIES // self.keys, 1) for y in (k, v))
        if self.product == "bmm":  # batch and heads in one axis
            q, k, v = (y.reshape(n * QUERIES, tokens, HEAD) for y in (q, k, v))
            y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).view(n, QUERIES, tokens, HEAD)
        elif self.product == "einsum":
            y = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))


def expected_of(layers: list[tuple[Tensor, Tensor]], units: np.ndarray) -> Tensor:
    """(units,) by whole maps, of each layer's queries (N, heads, tokens, d) and the keys that each of these heads meets."""
    total = torch.zeros(units.max() + 1, dtype=torch.float64)
    for q, k in layers:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        for sample in range(len(q)):
            for head, mine in enumerate(units):
                one = {u: np.flatnonzero(mine == u) for u in set(mine[mine >= 0].tolist())}
                for unit, at in one.items():
                    total[unit] += joined(q[sample, head], k[sample, head], at)
    return total / len(layers[0][0])


def joined(q: Tensor, k: Tensor, at: np.ndarray) -> Tensor:
    """The score of some columns that leave together, by the singular values of the whole map."""
    u, s, vh = torch.linalg.svd(q @ k.T)
    energy = s.square()
    count = int((energy.cumsum(0) - energy < 0.9 * energy.sum()).sum())
    pair = q[:, at] @ k[:, at].T
    return sum((u[:, j] @ pair @ vh[j]).abs() for j in range(min(count, q.shape[1]))) / pair.norm()  # type: ignore[return-value]


def check(
    net: nn.Module, data: Tensor, seen: list[tuple[Tensor, Tensor]], rows: dict[str, np.ndarray]
) -> int:
    """Compare all groups of pairs with the definition; how many there are.

    Args:
        net: the network.
        data: all samples.
        seen: queries and keys of each layer.
        rows: for each layer, the name of the weight that makes the queries, and its rows as (heads, HEAD).
    """
    structure = prunus.analyze(net, data[:2])
    evidence = collect(structure, SNP().needs, [data[:2], data[2:]])
    found = evidence.sums.get("snp:cosine:0.9", {})
    for name in found:
        at = {
            structure.captured.names[p.placeholder]: p.unit for p in structure.positions[name] if p.axis == 0
        }
        made = [(i, at[weight][index]) for i, (weight, index) in enumerate(rows.items()) if weight in at]
        assert all((units == made[0][1]).all() for _, units in made)
        expected = expected_of([(seen[i][0].double(), seen[i][1].double()) for i, _ in made], made[0][1])
        total = torch.stack(list(evidence.per_sample("snp:cosine:0.9", name).values())).sum(0)
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
    return len(found)


@pytest.mark.parametrize(
    ("keys", "turned", "product"),
    [(4, 8, "bmm"), (4, 8, "einsum"), (2, 8, "gqa"), (1, 4, "gqa"), (2, 4, "sdpa"), (4, 4, "bmm")],
)
def test_each_head_of_queries_is_scored_against_its_own_keys(keys: int, turned: int, product: str) -> None:
    torch.manual_seed(0)
    net = Attention(keys, turned, product).eval()
    data = torch.randn(3, 7, WIDTH)
    with torch.no_grad():
        seen = [net.pairs(data)]
    count = check(net, data, seen, {"q.weight": np.arange(QUERIES * HEAD).reshape(QUERIES, HEAD)})
    assert count == (1 if turned == HEAD else 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX"])
def test_networks_of_published_form(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with fewer heads of keys, and one that turns a half of each head and has one layer for all three."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    own = {"num_key_value_heads": 2} if kind == "Llama" else {"rotary_pct": 0.5}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, num_attention_heads=QUERIES, use_cache=False, **own
    )
    net = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    ids, seen, real = torch.randint(0, 64, (3, 7)), [], F.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.append((q, k))
        return real(q, k, v, **options)

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(F, "scaled_dot_product_attention", noted)
        net(ids)
    rows = np.arange(QUERIES * HEAD).reshape(QUERIES, HEAD)
    if kind == "GPTNeoX":
        rows = np.arange(3 * QUERIES * HEAD).reshape(QUERIES, 3, HEAD)[:, 0]
    weight = "model.layers.{}.self_attn.q_proj.weight"
    if kind == "GPTNeoX":
        weight = "gpt_neox.layers.{}.attention.query_key_value.weight"
    assert check(net, ids, seen, {weight.format(i): rows for i in range(2)})
