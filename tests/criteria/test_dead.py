"""`method="dead"` removes what computes a constant, all of it, and nothing changes."""

import pytest
import torch
import torch.nn.utils.prune as masks
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from tests.surgery.test_fold import chain, norm


class Attention(nn.Module):
    """Two heads of four; pairs that are zero in one head only stay, as both must lose equally many."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        with torch.no_grad():
            for rows, layer in (([1, 6], self.q), ([1, 2], self.k), ([0, 3, 5], self.v)):
                layer.weight[rows] = 0
                layer.bias[rows] = 0
            self.v.bias[3] = 2.0  # a constant that the next layer takes up, if attention lets it through

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def sizes(result: prunus.Result) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in result.model.named_parameters() if n.endswith("weight")}


def check(net: nn.Module, x: Tensor, **arguments: object) -> prunus.Result:
    """Compress; other inputs give what they gave before."""
    result = prunus.compress(net, x, method="dead", **arguments)  # type: ignore[arg-type]
    for scale in (1, 30):
        y = scale * torch.randn_like(x)
        torch.testing.assert_close(result.model(y), net(y), rtol=1e-4, atol=1e-4 * scale)
    return result


def test_filters_of_zeros_norms_of_zero_and_what_nobody_reads() -> None:
    torch.manual_seed(0)
    net = chain(nn.ReLU(), nn.Conv2d(8, 6, 3), nn.SiLU(), nn.Conv2d(6, 5, 3, bias=False), norm(5)).eval()
    with torch.no_grad():
        net[0].weight[2] = 0  # a constant behind the norm
        net[1].weight[4] = 0  # as well
        net[3].weight[:, 6] = 0  # nobody reads this one
        net[3].weight[1], net[3].bias[1] = 0, 3.0
    result = check(net, torch.randn(2, 3, 12, 12))
    assert result.plan.keep == {"0": (0, 1, 3, 5, 7), "3": (0, 2, 3, 4, 5)}
    assert result.report.form == "class"


def test_what_only_dead_units_read_is_dead() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
    ).eval()
    with torch.no_grad():
        net[3].weight[1] = 0  # so that the weights of unit 1 do not matter
        net[2].weight[:, 2] = 0
        net[2].weight[1, 2] = 1.0
    assert check(net, torch.randn(4, 5)).plan.keep == {"0": (0, 1, 3, 4, 5), "2": (0, 2, 3)}


def test_rectifiers_of_what_is_never_positive() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        net[2].weight[2], net[2].bias[2] = -net[2].weight[2].abs(), -0.1
    assert check(net, torch.randn(4, 5)).plan.keep == {"2": (0, 1, 3)}


def test_constants_that_meet_padding_stay_and_zeros_go() -> None:
    torch.manual_seed(0)
    net = chain(nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)).eval()
    with torch.no_grad():
        net[0].weight[[1, 5]] = 0
        net[1].weight[[1, 5]], net[1].bias[1], net[1].bias[5] = 0, 0.7, -0.7
    assert check(net, torch.randn(2, 3, 12, 12)).plan.keep == {"0": (0, 1, 2, 3, 4, 6, 7)}


def test_masks_that_are_not_removed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    masks.ln_structured(net[0], "weight", 3, 2, 0)
    result = check(net, torch.randn(2, 3, 9, 9))
    alive = net[0].weight_mask.sum((1, 2, 3)).nonzero().flatten()
    assert result.plan.keep == {"0": tuple(alive.tolist())}
    assert result.report.form == "class"


def test_rows_lose_equally_many() -> None:
    torch.manual_seed(0)
    result = check(Attention().eval(), torch.randn(2, 6, 8))
    assert sizes(result)["q.weight"] == sizes(result)["k.weight"] == (6, 8)
    assert sizes(result)["v.weight"] == (6, 8)


def test_norms_over_channels_and_multiples() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight[:3], layer.bias[:3] = 0, 0
    x = torch.randn(2, 5)
    assert check(net, x).plan.keep == {"2": (3, 4, 5, 6, 7)}
    assert check(net, x, multiple_of=2).plan.keep == {"2": (2, 3, 4, 5, 6, 7)}
    assert check(net, x, hold=["2"]).plan.keep == {}


def test_with_data_units_that_never_vary_leave_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        net[0].bias[3] = -50  # never positive on this data, which nothing else tells
    data = [torch.randn(64, 5) for _ in range(4)]
    assert prunus.compress(net, data[0], method="dead").plan.keep == {}
    result = prunus.compress(net, data[0], method="dead", data=data)
    assert result.plan.keep == {"0": (0, 1, 2, 4, 5, 6, 7)}
    torch.testing.assert_close(result.model(data[0]), net(data[0]), rtol=1e-3, atol=1e-3)


def test_it_takes_no_target() -> None:
    with pytest.raises(prunus.ConfigError, match="takes no target"):
        prunus.compress(nn.Linear(3, 2), torch.randn(2, 3), method="dead", ratio=0.5)
