"""Heads that have lost channels: what stays are mixtures of all."""

import sys

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.capture import capture
from prunus.criteria import OBS
from prunus.criteria.mixtures import mixture_errors, weighed_moments
from prunus.criteria.moments import second_moments
from prunus.evidence.mixable import mixable
from prunus.evidence.probe import row_weights
from prunus.recovery import recover
from prunus.recovery.mixtures import mixed
from prunus.structure import find_structure
from prunus.surgery import lift
from tests.recovery.test_logits import DIM, HEADS, PRUNED, WIDTH, Attending, dependent, narrowed, rows
from tests.recovery.test_recover import error


def positive(*shape: int, rank: int) -> Tensor:
    root = torch.randn(*shape, rank, dtype=torch.float64)
    return root @ root.mT


def lost(power: Tensor, moments: Tensor, through: Tensor) -> Tensor:
    """Loss of reading x as `through @ x`."""
    rest = torch.eye(len(moments), dtype=torch.float64) - through
    return (power @ rest @ moments @ rest.T).trace()


# ------------------------------------------------------------------ the formula
def test_mixtures_lose_what_they_say_and_less_than_any_channels_with_the_best_readers() -> None:
    torch.manual_seed(0)
    moments, power = positive(2, 5, rank=7), positive(2, 5, rank=4)
    kept = torch.tensor([[0, 1, 3], [1, 2, 4]])
    found = mixed(moments, power, kept)
    said = [lost(power[h], moments[h], found.read[h] @ found.made[h]) for h in range(2)]
    assert found.after == pytest.approx(float(sum(said)), rel=1e-9)
    assert found.scale == pytest.approx(
        float(sum((power[h] @ moments[h]).trace() for h in range(2))), rel=1e-9
    )
    for head in range(2):
        for chosen in torch.combinations(torch.arange(5), 3):
            best = moments[head][:, chosen] @ torch.linalg.inv(moments[head][chosen][:, chosen])
            through = torch.zeros(5, 5, dtype=torch.float64)
            through[:, chosen] = best  # the channels that are read from those that stay, by least squares
            assert lost(power[head], moments[head], through) > said[head] * (1 + 1e-9)


def test_no_other_mixtures_are_better() -> None:
    torch.manual_seed(1)
    moments, power = positive(1, 4, rank=6), positive(1, 4, rank=5)
    found = mixed(moments, power, torch.tensor([[0, 1]]))
    made, read = (x[0].clone().requires_grad_() for x in (found.made, found.read))
    lost(power[0], moments[0], read @ made).backward()
    assert made.grad is not None and read.grad is not None
    assert float(made.grad.abs().max()) < 1e-9 and float(read.grad.abs().max()) < 1e-9


def test_the_criterion_predicts_what_the_repair_loses() -> None:
    torch.manual_seed(2)
    x, gradient = (torch.randn(6, 500, 3) for _ in range(2))
    x = x * torch.tensor([3.0, 2, 1, 1, 0.1, 0.5])[:, None, None]
    groups = torch.tensor([[0, 1, 2], [3, 4, 5]])
    sums = {"layer:0": weighed_moments(x, gradient)}
    felt = {"layer:0": second_moments(gradient)}
    errors = mixture_errors(groups, sums, felt, samples=10**6)
    assert errors is not None and bool((errors.diff(dim=1) >= 0).all())
    moments = sums["layer:0"][:, :-3] / sums["layer:0"][0, -2]
    power = felt["layer:0"][:, :-3] / felt["layer:0"][0, -1]
    for row, found in zip(groups, errors, strict=True):
        block = moments[row][:, row][None], power[row][:, row][None]
        for gone in (1, 2):
            one = mixed(*block, torch.arange(3 - gone)[None])
            assert float(found[:gone].sum()) == pytest.approx(one.after, rel=1e-3)


def test_rows_count_as_much_as_the_outputs_depend_on_them() -> None:
    torch.manual_seed(3)
    x, gradient = torch.randn(4, 50, 2), torch.randn(4, 50, 2)
    found = weighed_moments(x, gradient)
    weights = gradient.square().sum(0)
    weights = (weights + 0.1 * weights.mean()).flatten()
    assert torch.allclose(row_weights(gradient.flatten(1).T), weights)
    direct = torch.einsum("in,jn,n->ij", x.flatten(1), x.flatten(1), weights)
    assert torch.allclose(found[:, :4].float(), direct, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[:, 4].float(), (x.flatten(1) * weights).sum(1), rtol=1e-4, atol=1e-4)
    assert float(found[0, 5]) == pytest.approx(float(weights.sum()), rel=1e-5)
    assert float(found[0, 6]) == pytest.approx(float(weights.square().sum()), rel=1e-5)


# ------------------------------------------------------------------ networks
@pytest.mark.parametrize("way", ["packed", "no bias", "separate", "matmul"])
def test_heads_of_low_rank_lose_nothing(way: str) -> None:
    """Values, whose rank is that of what stays of each head, in channels that no choice of them would span as well."""
    torch.manual_seed(0)
    model = Attending(way).eval()
    packed = way in ("packed", "no bias")
    with torch.no_grad():
        layer, start = (model.qkv, 2 * HEADS * WIDTH) if packed else (model.v, 0)
        for head in range(HEADS):
            at = slice(start + head * WIDTH, start + (head + 1) * WIDTH)
            basis = torch.linalg.qr(torch.randn(WIDTH, 4)).Q
            layer.weight[at] = basis @ (basis.T @ layer.weight[at])
            if layer.bias is not None:
                layer.bias[at] = basis @ (basis.T @ layer.bias[at])
    data = rows()
    structure, small, keep = narrowed(model, data, PRUNED, values=True)
    repaired, report = recover(structure, small, keep, data)
    (repair,) = [r for r in report.repairs if r.step == "heads"]
    assert repair.layer.endswith("(values)") and repair.after < 0.05 * repair.before
    assert error(model, lift(repaired).eval(), data) < 1e-6


@pytest.mark.parametrize("way", ["packed", "no bias", "separate", "matmul", "causal"])
def test_queries_and_keys_are_mixed_together(way: str) -> None:
    torch.manual_seed(0)
    model = Attending(way).eval()
    dependent(model)
    data = rows()
    structure, small, keep = narrowed(model, data, PRUNED)
    repaired, report = recover(structure, small, keep, data)
    (repair,) = [r for r in report.repairs if r.step == "heads"]
    assert repair.layer.endswith("(queries and keys)") and repair.after < 1e-6 < repair.before
    assert error(model, lift(repaired).eval(), data) < 1e-7


@pytest.mark.parametrize("values", [False, True])
def test_mixtures_beat_the_repair_of_chosen_channels(values: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    model = Attending("separate").eval()
    with torch.no_grad():
        model.q.weight.mul_(3)
        model.k.weight.mul_(3)
    data = rows(16)
    few = [[0, 1], [2, 5]]
    structure, small, keep = narrowed(model, data, few, values=values)
    repaired, _ = recover(structure, small, keep, data)
    monkeypatch.setattr(sys.modules["prunus.recovery.recover"], "mix_heads", lambda *_: [])
    chosen, _ = recover(structure, small, keep, data)
    fresh = [torch.randn(64, 8, DIM)]
    assert error(model, lift(repaired).eval(), fresh) < 0.8 * error(model, lift(chosen).eval(), fresh)


def test_the_original_stays_as_it_is_and_nothing_is_mixed_at_full_width() -> None:
    torch.manual_seed(0)
    model = Attending("packed").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = rows()
    structure, small, keep = narrowed(model, data, PRUNED)
    tensors = {name: tensor.clone() for name, tensor in small.tensors.items()}
    recover(structure, small, keep, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in small.tensors.items())
    whole = structure.keep_labels({})
    _, report = recover(structure, structure.captured, whole, data)
    assert not report.repairs


# ------------------------------------------------------------------ where it may be done
@pytest.mark.parametrize("way", ["packed", "separate", "matmul", "causal"])
def test_heads_may_be_mixed_where_only_their_products_are_seen(way: str) -> None:
    structure = find_structure(capture(Attending(way).eval(), rows()[0][:2]))
    found = mixable(structure, structure.prunable)
    assert {group.size for group in structure.prunable if group.rows is not None} == {HEADS * WIDTH}
    assert set(found) == {group.name for group in structure.prunable if group.rows is not None}


def test_what_is_normalized_on_the_way_is_not_mixed() -> None:
    structure = find_structure(capture(Attending("normalized").eval(), rows()[0][:2]))
    (found,) = mixable(structure, structure.prunable)
    (values,) = [g.name for g in structure.prunable if g.rows is not None and any("out" in m.parameter for m in g.members)]  # fmt: skip
    assert found == values


def test_rows_of_a_grouped_convolution_are_not_mixed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()  # fmt: skip
    structure = prunus.analyze(net, torch.randn(2, 3, 8, 8))
    assert not mixable(structure, structure.prunable)


def test_obs_removes_more_of_what_mixtures_can_replace() -> None:
    """Heads of rank 4 in 6 channels, in a basis of their own: two can leave for nothing, though none alone can."""
    torch.manual_seed(0)
    model = Attending("separate").eval()
    with torch.no_grad():
        for layer in (model.q, model.k):
            layer.weight.mul_(3)
            for head in range(HEADS):
                at = slice(head * WIDTH, (head + 1) * WIDTH)
                basis = torch.linalg.qr(torch.randn(WIDTH, 4)).Q
                for tensor in (layer.weight, layer.bias):
                    tensor[at] = basis @ (basis.T @ tensor[at])
    data = rows()
    structure = prunus.analyze(model, data[0][:2])
    plan = prunus.plan(structure, method=OBS(), target=prunus.Target(macs=0.9), data=data)
    (pairs,) = [
        g for g in structure.prunable if g.rows is not None and "q.weight" in {m.parameter for m in g.members}
    ]
    assert len(plan.keep[pairs.name]) <= 4 * HEADS
