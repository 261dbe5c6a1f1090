"""Fluctuations, worked with plain variances."""

import pytest
import torch
from torch import Tensor

import prunus
from prunus.criteria import FLAP
from prunus.criteria.scoring import score_groups
from prunus.evidence import collect
from tests.allocation.nets import layers, network

PLAIN = prunus.Options(layer_norm="none")


def scores(structure: prunus.Structure, data: list[Tensor]) -> dict[str, Tensor]:
    evidence = collect(structure, FLAP().needs, data)
    found = score_groups(structure, FLAP(), structure.prunable, PLAIN, evidence)
    return {name: torch.from_numpy(values) for name, values in found.items()}


def test_variance_times_the_weights_that_read() -> None:
    net = layers(6, 9, 3).eval()
    structure = prunus.analyze(net, torch.randn(2, 6))
    data = torch.randn(50, 6)
    hidden = net[:2](data).detach().double()  # type: ignore[index]
    expected = hidden.var(0, unbiased=False) * net[2].weight.double().square().sum(0).detach()  # type: ignore[index]
    torch.testing.assert_close(scores(structure, [data[:20], data[20:]])["0"], expected, rtol=1e-5, atol=1e-9)


def test_maps_and_several_readers() -> None:
    net, x = network("residual")
    structure = prunus.analyze(net, x)
    data = torch.randn(10, 3, 8, 8)
    seen: dict[str, Tensor] = {}
    for name in ("conv1", "head"):
        getattr(net, name).register_forward_pre_hook(
            lambda m, a, name=name: seen.__setitem__(name, a[0].detach())
        )
    net(data)
    found = scores(structure, [data])["add"]
    expected = torch.zeros(8, dtype=torch.float64)
    gain = (net.bn1.weight / (net.bn1.running_var + net.bn1.eps).sqrt()).detach().double()  # type: ignore[union-attr, operator]
    for name, values in seen.items():
        weight = getattr(net, name).weight.detach().double()
        weight = (
            weight * gain[:, None, None, None] if name == "conv1" else weight
        )  # what conv1 writes is scaled
        axes = (0, *range(2, values.dim()))
        expected += values.double().var(axes, unbiased=False) * weight.square().sum(
            (0, *range(2, weight.dim()))
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_pairs_weigh_each_other() -> None:
    net, x = network("packed attention")
    structure = prunus.analyze(net, x)
    data = torch.randn(7, 5, 6)
    with torch.no_grad():
        q, k, _ = net.qkv(net.inner(data)).double().chunk(3, -1)  # type: ignore[operator]
    name = next(g.name for g in structure.prunable if "scaled_dot" in g.name)
    flat = [x.flatten(0, 1) for x in (q, k)]
    var, second = [x.var(0, unbiased=False) for x in flat], [x.square().mean(0) for x in flat]
    expected = var[0] * second[1] + var[1] * second[0]
    torch.testing.assert_close(scores(structure, [data])[name], expected, rtol=1e-5, atol=1e-9)


def test_what_never_changes_goes_first() -> None:
    net = layers(6, 9, 3).eval()
    with torch.no_grad():
        net[0].weight[4] = 0  # type: ignore[index]
        net[0].bias[4] = 1000.0  # type: ignore[index]
    data = [torch.randn(64, 6) for _ in range(3)]
    made = prunus.plan(prunus.analyze(net, torch.randn(2, 6)), method="flap", ratio={"0": 1 / 9}, data=data)
    assert 4 not in made.keep["0"] and len(made.keep["0"]) == 8


@pytest.mark.parametrize(
    "name", ["concatenated", "grouped", "separable", "transposed", "shuffled", "attention"]
)
def test_other_networks(name: str) -> None:
    net, x = network(name)
    for group, values in scores(prunus.analyze(net, x), [torch.randn(6, *x.shape[1:])]).items():
        assert bool((values >= 0).all()) and bool(values.any()), group
