"""First-order changes of the loss, against gradients taken module by module and against real removal."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.criteria import Taylor
from prunus.errors import ConfigError
from prunus.evidence import collect
from tests.allocation.nets import layers, network


def mean_square(outputs: Tensor, batch: Tensor) -> Tensor:
    return outputs.square().flatten(1).mean(1).mean()


@pytest.mark.parametrize("power", [1, 2])
def test_changes_of_single_samples(power: int) -> None:
    """Weights that read a unit times their gradients, sample by sample."""
    net = layers(6, 9, 7, 3).eval()
    structure = prunus.analyze(net, torch.randn(2, 6))
    data, labels = torch.randn(5, 6), torch.randint(0, 3, (5,))
    method = Taylor(power=power)
    evidence = collect(structure, method.needs, [(data[:2], labels[:2]), (data[2:], labels[2:])])
    for group, reader in (("0", net[2]), ("2", net[4])):  # type: ignore[index]
        expected = torch.zeros(reader.in_features, dtype=torch.float64)
        for x, y in zip(data, labels, strict=True):
            loss = F.cross_entropy(net(x[None]), y[None])
            (gradient,) = torch.autograd.grad(loss, [reader.weight])
            expected += (gradient * reader.weight).sum(0).double().abs().pow(power).detach()
        found = evidence.per_sample(f"taylor:{power}", group)["*"]
        torch.testing.assert_close(found, expected / 5, rtol=1e-4, atol=1e-8)


def test_all_layers_that_read_a_stream_count_within_the_absolute_value() -> None:
    net, x = network("residual")
    structure = prunus.analyze(net, x)
    data = torch.randn(3, 3, 8, 8)
    seen = collect(structure, Taylor().needs, [data], loss=mean_square).per_sample("taylor:1", "add")["*"]
    expected = torch.zeros(8, dtype=torch.float64)
    for sample in data:
        loss = mean_square(net(sample[None]), sample)
        first, last = torch.autograd.grad(loss, [net.conv1.weight, net.head.weight])  # type: ignore[union-attr]
        effect = (first * net.conv1.weight).sum((0, 2, 3)) + (last * net.head.weight).sum(0)  # type: ignore[union-attr, operator]
        expected += effect.abs().double().detach()
    torch.testing.assert_close(seen, expected / 3, rtol=1e-4, atol=1e-8)


def test_a_linear_loss_changes_by_exactly_that() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    structure = prunus.analyze(net, torch.randn(2, 5))
    data = torch.randn(1, 5)
    weights = torch.randn(4)
    loss = lambda out, batch: (out @ weights).mean()  # noqa: E731
    seen = collect(structure, Taylor().needs, [data], loss=loss).per_sample("taylor:1", "0")["*"]
    with torch.no_grad():
        for unit in range(8):
            hidden = net[:2](data)
            hidden[:, unit] = 0
            change = ((net[2](hidden) - net(data)) @ weights).abs()
            assert float(seen[unit]) == pytest.approx(float(change), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["packed attention", "attention", "separable", "grouped"])
def test_every_group_that_is_read_has_a_score(name: str) -> None:
    net, x = network(name)
    result = prunus.compress(
        net, x, method="taylor", ratio=0.5, data=[torch.randn(4, *x.shape[1:])], loss=mean_square
    )
    assert result.plan.keep and result.plan.method == "taylor"


def test_the_size_of_batches_does_not_matter() -> None:
    net, x = network("packed attention")
    structure = prunus.analyze(net, x)
    data = torch.randn(6, 5, 6)
    at_once = collect(structure, Taylor().needs, [data], loss=mean_square)
    apart = collect(structure, Taylor().needs, list(data.split(2)), loss=mean_square)
    for group in structure.prunable:
        one, two = (e.per_sample("taylor:1", group.name)["*"] for e in (at_once, apart))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-9)


def test_other_powers_are_refused() -> None:
    with pytest.raises(ConfigError, match="power=3 is none of 1, 2"):
        Taylor(power=3)
