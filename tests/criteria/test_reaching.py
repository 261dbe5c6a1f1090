"""Criteria see the weight that reaches an operator, whatever makes it: the scores are those of the network with that weight stored."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune as masks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import prunus
from prunus.criteria import CRITERIA, Options, Views, score_groups


class Standardized(nn.Conv2d):
    """Each filter with mean zero and variance one."""

    def made(self) -> Tensor:
        w = self.weight
        mean, spread = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
        return (w - mean) / (spread + 1e-5).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.made(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class WithUpdate(nn.Conv2d):
    """A weight and an update of low rank."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.down = nn.Parameter(torch.randn(2, self.in_channels))
        self.up = nn.Parameter(torch.randn(self.out_channels, 2))

    def made(self) -> Tensor:
        return self.weight + 0.5 * (self.up @ self.down)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.made(), self.bias)


class Doubled(nn.Module):
    """A parametrization that is far from the identity."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs() * torch.linspace(3, 0.1, len(weight))[:, None, None, None]


def masked(conv: nn.Conv2d) -> None:
    masks.random_unstructured(conv, "weight", 0.6)


def masked_filters(conv: nn.Conv2d) -> None:
    masks.ln_structured(conv, "weight", 0.5, 2, 0)


def normed(conv: nn.Conv2d) -> None:
    parametrizations.weight_norm(conv)
    conv.parametrizations.weight.original0.data.mul_(
        torch.linspace(0.1, 4, conv.out_channels)[:, None, None, None]
    )


def normed_by_hook(conv: nn.Conv2d) -> None:
    torch.nn.utils.weight_norm(conv)
    conv.weight_g.data.mul_(torch.linspace(0.1, 4, conv.out_channels)[:, None, None, None])


def spectral(conv: nn.Conv2d) -> None:
    parametrizations.spectral_norm(conv)


def doubled(conv: nn.Conv2d) -> None:
    parametrize.register_parametrization(conv, "weight", Doubled())


def network(conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        conv(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 4),
    )
    net = nn.Sequential(*layers).eval()
    nn.init.normal_(net[1].weight), net[1].running_var.uniform_(0.5, 2)
    return net


def stored(net: nn.Sequential) -> nn.Sequential:
    """The same network with the weights that reach its operators as plain parameters."""
    plain = network()
    with torch.no_grad():
        for mine, layer in zip(net, plain, strict=True):
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(mine.made() if hasattr(mine, "made") else mine.weight)
                layer.bias.copy_(mine.bias)
            else:
                layer.load_state_dict(mine.state_dict())
    return plain


METHODS = ("l1", "l2", "geometric_median", "snp")


def scores(net: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    structure = prunus.analyze(net, x)
    groups = [g for g in structure.prunable if g.size in (8, 6)]
    found = {m: score_groups(structure, CRITERIA[m](), groups, Options(layer_norm="none")) for m in METHODS}
    return {m: [torch.from_numpy(each[g.name]) for g in groups] for m, each in found.items()}


@pytest.mark.parametrize(
    "make", [masked, masked_filters, normed, normed_by_hook, spectral, doubled, Standardized, WithUpdate]
)
def test_scores_are_those_of_the_weight_that_is_used(make: Callable[..., object]) -> None:
    net = network(make) if isinstance(make, type) else network()
    if not isinstance(make, type):
        make(net[0]), make(net[3])
    x = torch.randn(2, 3, 8, 8)
    expected_outputs, plain = net(x), stored(net)
    torch.testing.assert_close(plain(x), expected_outputs, rtol=1e-4, atol=1e-4)
    found, expected = scores(net, x), scores(plain, x)
    for method, values in found.items():
        assert len(values) == len(expected[method]) == 2
        for mine, wanted in zip(values, expected[method], strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["l1", "l2", "geometric_median"])
def test_filters_that_a_mask_makes_zero_go_first_and_the_class_stays(method: str) -> None:
    net = network()
    net[0].weight.data.mul_(99), net[3].weight.data.mul_(9)
    masks.ln_structured(net[0], "weight", 0.5, 1, 0), masks.random_structured(net[3], "weight", 0.5, 0)
    with torch.no_grad():
        net[3].bias[net[3].weight_mask.sum((1, 2, 3)) == 0] = 0
        net[1].bias.zero_(), net[0].bias.zero_(), net[1].running_mean.zero_()
    result = prunus.compress(net, torch.randn(2, 3, 8, 8), method=method, target=prunus.Target(channels=0.5))
    assert result.report.form == "class"
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-5, atol=1e-5)
    assert net[0].weight.grad_fn is not None, "the model is left as found"


def test_plain_weights_are_not_computed() -> None:
    net = network()
    structure = prunus.analyze(net, torch.randn(2, 3, 8, 8))
    views = Views(structure)
    assert not views.reaching.made
    group = next(g for g in structure.prunable if "0" in g.producers)
    member = next(m for m in views.group(group).members if m.produces)
    assert member._tensor.data_ptr() == net[0].weight.data_ptr()  # type: ignore[attr-defined]
