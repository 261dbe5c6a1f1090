"""Optimal brain surgery on channels, against the closed form of what is lost."""

import pytest
import torch
from torch import nn

import prunus
from prunus.criteria import OBS
from prunus.criteria.base import GroupView
from prunus.criteria.moments import Sums, second_moments, shrunk
from prunus.criteria.obs import _Reader, greedy
from prunus.evidence import collect


def random_problem(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return mixing @ mixing.T / size + 0.1 * torch.eye(size, dtype=torch.float64), weight @ weight.T


def schur(covariance: torch.Tensor, power: torch.Tensor, gone: list[int]) -> float:
    """tr W_P (C_PP - C_PS C_SS^-1 C_SP) W_P^T."""
    kept = [i for i in range(len(covariance)) if i not in gone]
    left = covariance[gone][:, gone]
    if kept:
        left = left - covariance[gone][:, kept] @ torch.linalg.solve(
            covariance[kept][:, kept], covariance[kept][:, gone]
        )
    return float((left * power[gone][:, gone]).sum())


@pytest.mark.parametrize("seed", range(4))
def test_errors_along_the_way_add_up_to_the_schur_complement(seed: int) -> None:
    covariance, power = random_problem(9, seed)
    reader, gone, total = _Reader(covariance, power), [], 0.0
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed)).tolist()
    for index in order[:6]:
        total += float(reader.errors()[index])
        reader.remove(torch.tensor([index]))
        gone.append(index)
        assert total == pytest.approx(schur(covariance, power, gone), rel=2e-3)  # damping


def test_several_at_once_leave_what_one_after_the_other_leaves() -> None:
    covariance, power = random_problem(8, 0)
    together, apart = _Reader(covariance, power), _Reader(covariance, power)
    together.remove(torch.tensor([1, 4, 6]))
    for index in (4, 6, 1):
        apart.remove(torch.tensor([index]))
    kept = [0, 2, 3, 5, 7]
    assert torch.allclose(together.errors()[kept], apart.errors()[kept], rtol=1e-8)


def test_each_step_takes_the_least() -> None:
    covariance, power = random_problem(7, 1)
    scores = greedy([_Reader(covariance, power)], torch.zeros(7, dtype=torch.float64))
    single = [schur(covariance, power, [i]) for i in range(7)]
    first = int(scores.argmin())
    assert first == min(range(7), key=single.__getitem__)
    assert float(scores.min()) == pytest.approx(min(single), rel=2e-3)
    pairs = {i: schur(covariance, power, [first, i]) for i in range(7) if i != first}
    second = min(pairs, key=pairs.__getitem__)
    assert int(scores.argsort()[1]) == second


def test_what_the_others_can_replace_leaves_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).eval()
    with torch.no_grad():  # channel 5 is twice channel 2
        model[0].weight[5], model[0].bias[5] = 2 * model[0].weight[2], 2 * model[0].bias[2]
        model[0].weight[:5] += torch.eye(5, 6)
    data = [torch.randn(64, 6) for _ in range(4)]
    structure = prunus.analyze(model, data[0])
    made = prunus.plan(structure, method=OBS(), target=prunus.Target(channels=7 / 8), data=data)
    (kept,) = made.keep.values()
    assert len(kept) == 7


@pytest.mark.parametrize("sensitivity", [True, False])
def test_every_kind_of_group_has_scores(sensitivity: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(6, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))

    torch.manual_seed(0)
    model, data = Net().eval(), [torch.randn(8, 5, 6) for _ in range(4)]
    method = OBS(sensitivity=sensitivity)
    result = prunus.compress(model, data[0], method=method, target=prunus.Target(macs=0.6), data=data)
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert (result.report.verification or {})["passed"] and result.report.recovery is not None


@pytest.mark.parametrize("width", [2, 3])
def test_units_of_several_inputs_leave_together(width: int) -> None:
    units = 4
    covariance, power = random_problem(units * width, width)
    reader, gone, total = _Reader(covariance, power, width), [], 0.0
    for unit in (2, 0):
        total += float(reader.errors()[unit])
        reader.remove(torch.tensor([unit]))
        gone += range(unit * width, (unit + 1) * width)
        assert total == pytest.approx(schur(covariance, power, gone), rel=5e-3)  # damping
    assert reader.errors()[[2, 0]].tolist() == [0, 0]
    scores = greedy([_Reader(covariance, power, width)], torch.zeros(units, dtype=torch.float64))
    single = [schur(covariance, power, list(range(u * width, (u + 1) * width))) for u in range(units)]
    assert int(scores.argmin()) == min(range(units), key=single.__getitem__)


class Heads(nn.Module):
    """An attention without queries: four heads of three values, which one layer mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(6, 12), nn.Linear(12, 5)
        self.scale = nn.Parameter(torch.rand(4, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.value(x).unflatten(-1, (4, 3)) * self.scale
        return self.out(value.flatten(-2))


def test_heads_are_seen_input_by_input_and_the_one_that_another_repeats_leaves() -> None:
    torch.manual_seed(0)
    net = Heads().eval()
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    with torch.no_grad():  # head 3 is head 1, turned: only together are its values sums of that head's
        net.value.weight[9:] = turn @ net.value.weight[3:6] * 4
        net.value.bias[9:] = turn @ net.value.bias[3:6] * 4
        net.value.weight[[0, 7]] += 1
    x = torch.randn(512, 6)
    structure = prunus.analyze(net, x[:2])
    heads = next(group for group in structure.prunable if group.size == 4)
    moments, *_ = OBS().needs
    seen = collect(structure, [moments], [x], groups=[heads])
    (sums,) = seen.per_sample(moments.key, heads.name).values()
    inputs: list[torch.Tensor] = []
    net.out.register_forward_hook(lambda m, args, out: inputs.append(args[0].detach().double()))
    net(x)
    expected = inputs[0].T @ inputs[0] / len(x)
    assert sums.shape == (4, 3, 15)
    torch.testing.assert_close(sums[..., :12].reshape(12, 12), expected, rtol=1e-4, atol=1e-4)
    made = prunus.plan(structure, method=OBS(), ratio={heads.name: 0.25}, data=[x])
    assert set(made.keep[heads.name]) in ({0, 1, 2}, {0, 2, 3})


def test_little_variance_about_a_large_mean_is_not_lost() -> None:
    x = 6 + 1e-3 * torch.randn(5, 4096, generator=torch.Generator().manual_seed(0))
    sums = Sums(sum(second_moments(part) for part in x.split(1024, 1)))  # type: ignore[arg-type]
    expected = torch.cov(x.double(), correction=0)
    torch.testing.assert_close(sums.covariance(10**9), expected, rtol=1e-3, atol=1e-10)


def test_some_pixels_of_a_large_map_stand_for_all() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, 128, 128, generator=random) + torch.arange(6.0)[:, None, None, None]
    x[0] += 0.5 * x[1]
    found, flat = Sums(second_moments(x)), x.flatten(1).double()
    assert float(found.count[0]) == flat.shape[1]  # errors count by the size of the map
    torch.testing.assert_close(found.total / found.count, flat.mean(1), rtol=0, atol=0.05)
    torch.testing.assert_close(found.covariance(10**9), torch.cov(flat), rtol=0, atol=0.06)
    small = x[:, :, :32, :32]  # all of it counts
    torch.testing.assert_close(
        Sums(second_moments(small)).gram, small.flatten(1).double() @ small.flatten(1).double().T, rtol=1e-5, atol=0.1
    )  # fmt: skip


def evidence_of(x: torch.Tensor, gradient: torch.Tensor) -> GroupView:
    """A group of which one layer reads (channels, samples, *map) activations, with gradients there."""
    samples = x.shape[1]
    sums = {need.key: {"reader": second_moments(v) / samples} for need, v in zip(OBS().needs[:2], (x, gradient), strict=True)}  # fmt: skip
    return GroupView("group", len(x), (), evidence=sums, samples=samples)


def test_the_same_error_on_a_larger_map_counts_more() -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(6, 500, 1, 1), torch.randn(6, 500, 1, 1)
    one = OBS().score(evidence_of(x, gradient))
    many = OBS().score(evidence_of(x.expand(-1, -1, 5, 5), gradient.expand(-1, -1, 5, 5)))
    torch.testing.assert_close(
        many, 5 * one, rtol=0.15, atol=0
    )  # the root of 25 pixels; hardly less is shrunk


def test_with_fewer_samples_than_channels_none_seems_to_be_a_sum_of_the_others() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(80, 5000)
    few, many = (OBS().score(evidence_of(torch.randn(80, count), gradient)) for count in (60, 5000))
    assert 0.5 < float(few.mean() / many.mean()) < 2  # independent channels: each is lost as a whole
    mixed = torch.randn(80, 8) @ torch.randn(8, 5000) + 0.1 * torch.randn(80, 5000)
    few, many = (OBS().score(evidence_of(mixed[:, :count], gradient)) for count in (60, 5000))
    assert float(few.sort().values[40]) > 0.3 * float(many.sort().values[40])


def test_a_shrunk_covariance_is_nearer_to_the_true_one() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(40, 40, generator=generator, dtype=torch.float64) / 40**0.5
    true = mixing @ mixing.T + 0.2 * torch.eye(40)
    draws = torch.linalg.cholesky(true) @ torch.randn(40, 30, generator=generator, dtype=torch.float64)
    seen = draws @ draws.T / 30
    nearer = shrunk(seen, 30)
    assert float((nearer - true).norm()) < 0.8 * float((seen - true).norm())
    torch.testing.assert_close(nearer.trace(), seen.trace())
    torch.testing.assert_close(shrunk(true, 10**9), true, rtol=1e-6, atol=1e-6)
