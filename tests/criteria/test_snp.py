"""Pairs of queries and keys, redundant filters, and the widths of published networks."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.allocation import CostModel
from prunus.criteria import SNP, GroupView, MemberView, Options
from prunus.criteria.snp import dissimilarity, pair_scores
from prunus.errors import ConfigError
from prunus.evidence import collect
from tests.allocation.nets import network


def by_definition(q: Tensor, k: Tensor, gamma: float, mode: str) -> Tensor:
    """From the singular values of the whole (n, m) map of one head."""
    u, s, vh = torch.linalg.svd(q @ k.T)
    energy = s.square()
    count = gamma if isinstance(gamma, int) else int((energy.cumsum(0) - energy < gamma * energy.sum()).sum())
    scores = torch.zeros(q.shape[1], dtype=q.dtype)
    for i in range(q.shape[1]):
        pair = torch.outer(q[:, i], k[:, i])
        norm = pair.norm()
        for j in range(min(count, q.shape[1], len(s))):
            component = s[j] * torch.outer(u[:, j], vh[j])
            if mode == "cosine" and norm > 0:
                scores[i] += ((component * pair).sum() / (component.norm() * norm)).abs()
            elif mode == "energy":
                scores[i] += (component * pair).sum()
    return scores.abs()


@pytest.mark.parametrize("mode", ["cosine", "energy"])
@pytest.mark.parametrize("gamma", [1, 3, 0.5, 0.9])
@pytest.mark.parametrize("tokens", [(40, 40), (23, 31), (5, 9)])
def test_the_short_form_is_that_of_whole_maps(mode: str, gamma: float, tokens: tuple[int, int]) -> None:
    n, m = tokens
    q = torch.randn(2, 3, n, 8, dtype=torch.float64)
    k = torch.randn(2, 3, m, 8, dtype=torch.float64)
    units = torch.arange(24).reshape(3, 8)
    found = pair_scores(q, k, units, mode=mode, gamma=gamma)
    expected = [sum(by_definition(q[b, h], k[b, h], gamma, mode) for b in range(2)) for h in range(3)]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-10, atol=1e-10)  # type: ignore[arg-type]


def test_pairs_of_zeros_score_zero() -> None:
    q, k = torch.randn(4, 2, 9, 6), torch.randn(4, 2, 9, 6)
    q[:, 0, :, 2] = 0
    k[:, 1, :, 5] = 0
    for mode in ("cosine", "energy"):
        found = pair_scores(q, k, torch.arange(12).reshape(2, 6), mode=mode, gamma=0.9)
        assert bool(torch.isfinite(found).all())
        assert found[2].abs() < 1e-6 and found[11].abs() < 1e-6 and int((found.abs() < 1e-6).sum()) == 2
    assert (
        pair_scores(q * 0, k, torch.arange(12).reshape(2, 6), mode="cosine", gamma=0.9).tolist() == [0.0] * 12
    )


def test_what_leaves_together_is_one_pair() -> None:
    """Halves of a rotary pair: the sum of two products is compared with the components."""
    q, k = torch.randn(1, 1, 9, 4, dtype=torch.float64), torch.randn(1, 1, 9, 4, dtype=torch.float64)
    found = pair_scores(q, k, torch.tensor([[0, 1, 0, 1]]), mode="cosine", gamma=2)
    u, _, vh = torch.linalg.svd(q[0, 0] @ k[0, 0].T)
    for unit in (0, 1):
        pair = sum(torch.outer(q[0, 0, :, i], k[0, 0, :, i]) for i in (unit, unit + 2))
        expected = sum((torch.outer(u[:, j], vh[j]) * pair).sum().abs() / pair.norm() for j in range(2))  # type: ignore[union-attr]
        assert float(found[unit]) == pytest.approx(float(expected), rel=1e-10)


def test_keys_of_several_heads_of_queries_add_up() -> None:
    q, k = torch.randn(2, 4, 9, 3), torch.randn(2, 2, 9, 3).repeat_interleave(2, 1)
    units = torch.arange(6).reshape(2, 3).repeat_interleave(2, 0)
    found = pair_scores(q, k, units, mode="cosine", gamma=2)
    alone = pair_scores(q, k, torch.arange(12).reshape(4, 3), mode="cosine", gamma=2).reshape(2, 2, 3)
    torch.testing.assert_close(found, alone.sum(1).reshape(-1))


class Attention(nn.Module):
    """Of either form: one operator, or products written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 3)

    def heads(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (3, 4)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        y = (
            F.scaled_dot_product_attention(q, k, v)
            if self.fused
            else (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        )
        return self.head(self.out(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("fused", [True, False])
def test_pairs_are_found_in_networks(fused: bool) -> None:
    net = Attention(fused).eval()
    structure = prunus.analyze(net, torch.randn(2, 6, 12))
    data = torch.randn(5, 6, 12)
    evidence = collect(structure, SNP().needs, [data[:2], data[2:]])
    pairs = next(g for g in structure.prunable if g.rows is not None and "q" in g.producers)
    (found,) = evidence.per_sample("snp:cosine:0.9", pairs.name).values()
    assert list(evidence.sums["snp:cosine:0.9"]) == [pairs.name]
    q, k = net.heads(net.q(data)).double().detach(), net.heads(net.k(data)).double().detach()
    expected = pair_scores(q, k, torch.arange(12).reshape(3, 4), mode="cosine", gamma=0.9) / 5
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_all_groups_of_a_network_are_scored() -> None:
    net, x = network("packed attention")
    options = Options(policy="average", layer_norm="tss_norm", group_policy="none")
    with pytest.raises(ConfigError, match="snp needs data to score 1 of 3 groups"):
        prunus.compress(net, x, method="snp", ratio=0.5, options=options)
    result = prunus.compress(net, x, method="snp", ratio=0.5, options=options, data=[torch.randn(8, 5, 6)])
    assert {len(keep) for keep in result.plan.keep.values()} == {8}
    assert result.plan.options == {"policy": "average", "layer_norm": "tss_norm"}
    made = prunus.plan(prunus.analyze(*network("residual")), method=SNP(mode="energy"), ratio=0.5)
    assert made.keep, "without products of activations no data is needed"


def test_logits_do_not_change_when_an_empty_pair_leaves() -> None:
    net, x = network("packed attention")
    with torch.no_grad():
        for part in (0, 16):  # queries and keys of unit 1 of every head
            for head in range(4):
                net.qkv.weight[part + 4 * head + 1] = 0  # type: ignore[union-attr]
                net.qkv.bias[part + 4 * head + 1] = 0  # type: ignore[union-attr]
    structure = prunus.analyze(net, x)
    name = next(g.name for g in structure.prunable if "scaled_dot" in g.name)
    made = prunus.plan(structure, method="snp", ratio={name: 0.25}, data=[torch.randn(8, 5, 6)])
    assert set(range(16)) - set(made.keep[name]) == {1, 5, 9, 13}
    torch.testing.assert_close(prunus.apply(net, made).model(x), net(x), rtol=1e-5, atol=1e-6)


def test_redundancy_by_loops() -> None:
    weight = torch.randn(10, 6)
    weight[7] = -2 * weight[3]
    found = dissimilarity(weight)
    cosine = F.cosine_similarity(weight[:, None], weight[None], dim=-1)
    for i in range(10):
        assert float(found[i]) == pytest.approx(
            sum(1 - abs(float(cosine[i, j])) for j in range(10)), abs=1e-5
        )
    assert dissimilarity(torch.zeros(3, 4)).tolist() == [3.0, 3.0, 3.0]


def test_duplicates_across_heads_go_first() -> None:
    weight = torch.randn(12, 64)
    weight[9] = weight[8] = weight[1]
    view = GroupView("values", 12, (MemberView("v.weight", 0, True, weight),))
    assert set(SNP().score(view).argsort()[:3].tolist()) == {1, 8, 9}


def test_layers_along_a_residual_stream_are_averaged() -> None:
    a, b = torch.randn(6, 5), 100 * torch.randn(6, 9)
    view = GroupView("add", 6, (MemberView("a.weight", 0, True, a), MemberView("b.weight", 0, True, b)))
    mine, theirs = dissimilarity(a), dissimilarity(b)
    torch.testing.assert_close(SNP().score(view), (mine / mine.sum() + theirs / theirs.sum()) / 2)


@pytest.mark.parametrize(
    "arguments", [{"mode": "sine"}, {"gamma": 0}, {"gamma": 1.5}, {"gamma": True}, {"gamma": "all"}]
)
def test_options_that_are_none(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"is none of|gamma must be"):
        SNP(**arguments)  # type: ignore[arg-type]


# What the published experiments keep: channels of a head for queries and keys, of values, of the residual stream, and the
# share of the feed-forward layers that leaves, block by block; and giga multiply-accumulates
PUBLISHED = {
    "tiny": (
        192, 3, [39, 39, 39, 32, 26, 32, 26, 20, 20, 20, 20, 20], [51, 51, 38, 31, 38, 19, 38, 38, 31, 25, 19, 19],
        [0.2, 0.2, 0.2, 0.2, 0.2, 0.4, 0.3, 0.3, 0.2, 0.3, 0.4, 0.5], 153, "0.638",
    ),
    "small, 2 G": (
        384, 6, [25] * 7 + [13] * 5, [51, 38, 38, 38, 31, 31, 31, 25, 19, 19, 12, 12],
        [0.2] * 5 + [0.3, 0.2, 0.4, 0.4, 0.4, 0.8, 0.8], 307, "2.037",
    ),
    "small, 1.3 G": (384, 6, [26, 20, 20] + [13] * 9, [12, 19, 19] + [12] * 9, [0.1, 0.3, 0.3] + [0.8] * 9, 345, "1.265"),
    "base": (
        768, 12, [19] * 5 + [26] + [19] * 4 + [26, 19], [19] * 5 + [26, 19, 26, 19, 19, 38, 32],
        [0.3, 0.6, 0.3, 0.3, 0.3, 0.5, 0.3, 0.4, 0.3, 0.4, 0.4, 0.7], 538, "6.322",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_widths_cost_what_is_published(name: str) -> None:
    """Set row by row in the table of layers. For the largest, 6.326 G is published, of fractions of channels: see below."""
    timm = pytest.importorskip("timm")
    width, heads, pairs, values, shares, residual, expected = PUBLISHED[name]
    size = {192: "tiny", 384: "small", 768: "base"}[width]
    structure = prunus.analyze(
        timm.create_model(f"deit_{size}_patch16_224").eval(), torch.randn(2, 3, 224, 224)
    )
    table = structure.layers()
    inner = [row for row in table if row.channels == width and row.name != "cat"]
    hidden = [row for row in table if row.channels == 4 * width]
    by_product = [row for row in inner if "attention" in row.group]
    by_layer = [row for row in inner if "attention" not in row.group]
    assert len(by_product) == len(by_layer) == len(hidden) == 12
    for block in range(12):
        by_product[block].kept = heads * pairs[block]
        by_layer[block].kept = heads * values[block]
        hidden[block].kept = math.floor(4 * width * (1 - shares[block]) + 1e-9)
    table["cat"].kept = residual
    made = prunus.plan(structure, method="l2", table=table)
    macs = CostModel(structure)(structure.keep_labels(made.keep)).macs
    assert f"{macs / 1e9:.3f}" == expected


def test_the_largest_published_number_is_of_fractions_of_channels() -> None:
    """With 19.2 of 64 channels in a head, as 70 % say, it is 6.326; with the whole numbers that can be kept, 6.322."""
    _, heads, pairs, values, shares, residual, _ = PUBLISHED["base"]

    def macs(pairs: list[float], values: list[float], hidden: list[float], width: float) -> float:
        total = 196 * 768 * width + 1000 * width
        for q, v, f in zip(pairs, values, hidden, strict=True):
            total += 197 * width * heads * (2 * q + v) + 197 * 197 * heads * (q + v)
            total += 197 * heads * v * width + 2 * 197 * width * f
        return total / 1e9

    gone_pairs = [0.6 if block in (5, 10) else 0.7 for block in range(12)]
    gone_values = [{5: 0.6, 7: 0.6, 10: 0.4, 11: 0.5}.get(block, 0.7) for block in range(12)]
    exact = macs(
        [64 * (1 - p) for p in gone_pairs],
        [64 * (1 - p) for p in gone_values],
        [3072 * (1 - p) for p in shares],
        537.6,
    )
    whole = macs(pairs, values, [math.floor(3072 * (1 - p) + 1e-9) for p in shares], residual)  # type: ignore[arg-type]
    assert f"{exact:.3f}" == "6.326" and f"{whole:.3f}" == "6.322"
