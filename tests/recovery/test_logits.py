"""Queries and keys that lost width: the logits that are nearest to the original's."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import prunus
from prunus.capture import capture
from prunus.recovery import recover
from prunus.recovery.logits import Products, fit_logits
from prunus.structure import find_structure
from prunus.surgery import cut, lift
from tests.recovery.test_recover import error

HEADS, WIDTH, DIM = 2, 6, 12
PRUNED = [[0, 1, 2, 3], [1, 2, 3, 5]]  # what each head keeps of its queries and keys


@pytest.fixture(autouse=True)
def chosen_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels of heads that are not mixed first, see test_heads.py."""
    monkeypatch.setattr(sys.modules["prunus.recovery.recover"], "mix_heads", lambda *_: [])


def products(bias: bool, samples: int = 3, heads: int = 2) -> tuple[Products, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q_was, k_was = random(samples, heads, 7, 5), random(samples, heads, 9, 5) + 1
    q, k = q_was[..., :3] + 0.1 * random(samples, heads, 7, 3), k_was[..., :3]
    weights = torch.rand(samples, 9, generator=generator, dtype=torch.float64) + 0.1
    return Products.of(q, k, q_was, k_was, weights, bias), [q, k, q_was, k_was, weights]


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_least_squares_solution_on_the_logits(bias: bool) -> None:
    """Written out: one equation for each sample, query and key, one unknown for each entry of M."""
    made, (q, k, q_was, k_was, weights) = products(bias)
    d = 4 if bias else 3
    found = fit_logits(made, torch.eye(d, 3, dtype=torch.float64).expand(2, d, 3), ridge=0.0)
    q = torch.cat([q, torch.ones_like(q[..., :1])], -1) if bias else q
    total = 0.0
    for head in range(2):
        rows, targets = [], []
        for s in range(3):
            w = weights[s]
            mean = (w[:, None] * k[s, head]).sum(0) / w.sum(), (w[:, None] * k_was[s, head]).sum(0) / w.sum()
            for i in range(7):
                for j in range(9):
                    rows.append(w[j].sqrt() * torch.outer(q[s, head, i], k[s, head, j] - mean[0]).flatten())
                    targets.append(w[j].sqrt() * q_was[s, head, i] @ (k_was[s, head, j] - mean[1]))
        a, b = torch.stack(rows), torch.stack(targets)
        direct = torch.linalg.lstsq(a, b[:, None]).solution[:, 0]
        assert torch.allclose(found[head].flatten(), direct, atol=1e-8)
        total += float((a @ direct - b).square().sum())
    assert made.error(found) == pytest.approx(total, rel=1e-9)


def test_for_one_sample_there_is_a_formula() -> None:
    made, _ = products(False, samples=1)
    found = fit_logits(made, torch.zeros(2, 3, 3, dtype=torch.float64), ridge=0.0)
    direct = torch.linalg.inv(made.qq[0]) @ made.wanted[0] @ torch.linalg.inv(made.kk[0])
    assert torch.allclose(found, direct, atol=1e-8)


def test_what_all_logits_of_a_query_have_in_common_does_not_count() -> None:
    _, (q, k, q_was, k_was, weights) = products(False)
    made = Products.of(q, k, q_was, k_was, weights, False)
    moved = Products.of(q, k + 3, q_was, k_was - 2, weights, False)
    assert torch.allclose(made.kk, moved.kk) and torch.allclose(made.wanted, moved.wanted)


class Attending(nn.Module):
    """Attention in several spellings."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.qkv = nn.Linear(DIM, 3 * HEADS * WIDTH, bias=way != "no bias")
        self.q, self.k, self.v = (nn.Linear(DIM, HEADS * WIDTH) for _ in range(3))
        self.out = nn.Linear(HEADS * WIDTH, DIM)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.way in ("separate", "matmul", "normalized"):
            q, k, v = (each(x).view(n, t, HEADS, WIDTH).transpose(1, 2) for each in (self.q, self.k, self.v))
        else:
            q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        if self.way == "matmul":
            weights = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1)
            y = weights @ v
        else:
            q = functional.rms_norm(q, (WIDTH,)) if self.way == "normalized" else q
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.way == "causal")
        return x + self.out(y.transpose(1, 2).reshape(n, t, HEADS * WIDTH))


def dependent(model: Attending) -> None:
    """Make what is pruned of queries and keys depend on what is kept, so that it can be made up for."""
    packed = model.way not in ("separate", "matmul", "normalized")
    layers = [(model.qkv, 0), (model.qkv, 1)] if packed else [(model.q, 0), (model.k, 0)]
    with torch.no_grad():
        for layer, part in layers:
            layer.weight.mul_(3)
            for head, kept in enumerate(PRUNED):
                start = (part * HEADS + head) * WIDTH
                gone = [i for i in range(WIDTH) if i not in kept]
                mixing = torch.randn(len(gone), len(kept))
                for tensor in (layer.weight, layer.bias):
                    if tensor is not None:
                        tensor[[start + i for i in gone]] = mixing @ tensor[[start + i for i in kept]]


def rows(batches: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(16, 8, DIM, generator=generator) for _ in range(batches)]


def narrowed(model: nn.Module, data: list[Tensor], kept: list[list[int]], values: bool = False) -> tuple:
    """Cut dimensions of the heads: of queries and keys, or of values."""
    structure = find_structure(capture(model, data[0][:2]))

    def is_value(group: Any) -> bool:
        return any("out" in member.parameter for member in group.members)

    (group,) = (
        g
        for g in structure.groups
        if g.rows is not None and g.held is None and g.size == HEADS * WIDTH and is_value(g) == values
    )
    chosen = [head * WIDTH + i for head, each in enumerate(kept) for i in each]
    keep = structure.keep_labels({group.name: tuple(chosen)})
    return structure, cut(structure, keep), keep


@pytest.mark.parametrize("way", ["packed", "no bias", "separate", "matmul", "causal"])
def test_dependent_queries_and_keys_are_made_up_for_exactly(way: str) -> None:
    torch.manual_seed(0)
    model = Attending(way).eval()
    dependent(model)
    data = rows()
    structure, small, keep = narrowed(model, data, PRUNED)
    assert error(model, lift(small).eval(), data) > 1e-3
    repaired, report = recover(structure, small, keep, data)
    assert [(r.layer, r.step) for r in report.repairs][:1] == [
        ("q" if way in ("separate", "matmul") else "qkv", "logits")
    ]
    assert error(model, lift(repaired).eval(), data) < 1e-7
    stored, again = recover(structure, small, keep, data, budget_bytes=0)
    assert again.repairs == report.repairs
    assert all(torch.equal(stored.tensors[name], repaired.tensors[name]) for name in stored.tensors)


def test_any_queries_and_keys_come_nearer() -> None:
    torch.manual_seed(1)
    model = Attending("packed").eval()
    with torch.no_grad():
        model.qkv.weight[: 2 * HEADS * WIDTH].mul_(3)
    data = rows()
    structure, small, keep = narrowed(model, data, PRUNED)
    repaired, report = recover(structure, small, keep, data)
    first = report.repairs[0]
    assert first.step == "logits" and first.after < first.before
    fresh = [torch.randn(32, 8, DIM)]
    assert error(model, lift(repaired).eval(), fresh) < 0.95 * error(model, lift(small).eval(), fresh)


def test_what_lies_between_is_respected() -> None:
    torch.manual_seed(0)
    model = Attending("normalized").eval()
    structure = find_structure(capture(model, rows()[0][:2]))
    if not any(g.rows is not None and g.held is None and g.size == HEADS * WIDTH for g in structure.groups):
        pytest.skip("normalized queries keep their width")
    structure, small, keep = narrowed(model, rows(), PRUNED)
    _, report = recover(structure, small, keep, rows())
    assert not any(r.step == "logits" for r in report.repairs)
    assert any("queries and keys" in said for said in report.left)


def test_lost_values_are_made_up_for_by_the_projection_behind() -> None:
    torch.manual_seed(0)
    model = Attending("separate").eval()
    with torch.no_grad():  # a value that depends on others of its head
        for head, kept in enumerate(PRUNED):
            gone = [i for i in range(WIDTH) if i not in kept]
            mixing = torch.randn(len(gone), len(kept))
            for tensor in (model.v.weight, model.v.bias):
                tensor[[head * WIDTH + i for i in gone]] = mixing @ tensor[[head * WIDTH + i for i in kept]]
    data = rows()
    structure, small, keep = narrowed(model, data, PRUNED, values=True)
    assert error(model, lift(small).eval(), data) > 1e-3
    repaired, report = recover(structure, small, keep, data)
    assert {r.layer for r in report.repairs} == {"out"}
    assert error(model, lift(repaired).eval(), data) < 1e-8


def test_a_whole_transformer_layer_in_one_call() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    with torch.no_grad():
        model.self_attn.in_proj_weight.mul_(3)
    data = [torch.randn(16, 6, 16) for _ in range(4)]
    target = prunus.Target(macs=0.6)
    repaired, plain = (
        prunus.compress(model, data[0][:2], target=target, data=data, method="l2", recover=recover)
        for recover in (True, False)
    )
    assert error(model, repaired.model, data) < error(model, plain.model, data)
