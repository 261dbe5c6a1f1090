"""What leaves and is constant goes into the biases of the layers that read it: nothing changes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import prunus

DEAD = [1, 2, 5]


def norm(width: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(width)
    for tensor in (layer.weight, layer.bias, layer.running_mean):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
    return layer


class Residual(nn.Module):
    """Two convolutions make the same channels; a depthwise one without padding and a grouped one read them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3, bias=False), norm(8)
        self.each, self.grouped = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.gelu(self.a(x) + self.norm(self.b(x)))
        return self.grouped(torch.sigmoid(self.each(y)))


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm(8), *layers)


EXACT: dict[str, Callable[[], nn.Module]] = {
    "a convolution with a bias": lambda: chain(nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2)),
    "a norm behind": lambda: chain(nn.SiLU(), nn.Conv2d(8, 6, 3, bias=False), norm(6)),
    "a pooled map": lambda: chain(nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 25, 4)),
    "a mean": lambda: chain(nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    "a grouped reader": lambda: chain(nn.Conv2d(8, 8, 3, groups=8), nn.Tanh(), nn.Conv2d(8, 4, 1)),
}


def with_dead(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = make().eval()
    for layer in (net.a, net.b) if isinstance(net, Residual) else (net[0],):  # type: ignore[index]
        layer.weight.data[DEAD] = 0
    return net


@pytest.mark.parametrize("name", EXACT)
def test_constants_are_taken_up_exactly(name: str) -> None:
    net, x = with_dead(EXACT[name]), torch.randn(3, 3, 12, 12)
    result = prunus.compress(net, x, method=prunus.ByIndex(remove={"0": DEAD}))
    assert result.report.form == "class"
    assert any("taken up exactly" in note for note in result.report.notes)
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-4, atol=1e-5)


def test_rows_of_a_grouped_convolution_take_up_their_own() -> None:
    net, x = with_dead(Residual), torch.randn(3, 3, 12, 12)
    net.a.weight.data[6], net.b.weight.data[6] = 0, 0  # type: ignore[union-attr]
    structure = prunus.analyze(net, x)
    group = next(g for g in structure.prunable if "a" in g.producers and not g.outer)
    columns = {2} if group.size == 4 else {2, 6}  # of two groups with four inputs each
    keep = {"keep": {group.name: sorted(set(range(group.size)) - columns)}}
    result = prunus.apply(net, prunus.plan(structure, method=prunus.ByIndex(**keep)))
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reader", [nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 3, bias=False)])
def test_what_cannot_be_taken_up_is_said(reader: nn.Conv2d) -> None:
    net, x = with_dead(lambda: chain(nn.Softplus(), reader)), torch.randn(3, 3, 12, 12)
    result = prunus.compress(net, x, method=prunus.ByIndex(remove={"0": DEAD}))
    assert any("3 at 3" in note and "are lost" in note for note in result.report.notes)
    assert float((result.model(x) - net(x)).detach().abs().max()) > 1e-3


def test_a_bias_is_added_where_that_is_allowed() -> None:
    net, x = with_dead(lambda: chain(nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False))), torch.randn(3, 3, 12, 12)
    plan = prunus.plan(prunus.analyze(net, x), method=prunus.ByIndex(remove={"0": DEAD}))
    result = prunus.apply(net, plan, example_inputs=x, allow_bias=True)
    assert result.plan.biases == ("3",)
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-4, atol=1e-5)
    again = prunus.apply(net, result.plan, example_inputs=x)
    torch.testing.assert_close(again.model(x), net(x), rtol=1e-4, atol=1e-5)


def test_channels_that_vary_are_not_folded() -> None:
    net, x = with_dead(EXACT["a convolution with a bias"]), torch.randn(3, 3, 12, 12)
    result = prunus.compress(net, x, method=prunus.ByIndex(remove={"0": [0, 3]}))
    assert not any("constants" in note for note in result.report.notes)
    assert torch.equal(result.model[3].bias, net[3].bias)  # type: ignore[index]
