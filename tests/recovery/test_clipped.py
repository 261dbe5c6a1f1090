"""In front of a ReLU only what it lets through has to be right."""

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.capture import capture
from prunus.recovery import clipped, recover
from prunus.recovery.layers import affine_of, find_layers
from prunus.surgery import lift

from .test_recover import error, norm, removed, smooth


class Halves(nn.Module):
    """relu(h1 - h2 + h3 / 2), with h1 and h3 the positive, h2 the negative half of the input: 1.5 h1, whatever h2 is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(1, 3), nn.Linear(3, 1), nn.Linear(1, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [-1.0], [1.0]]))
            self.second.weight.copy_(torch.tensor([[1.0, -1.0, 0.5]]))
            for layer in (self.first, self.second):
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def test_what_is_clipped_in_both_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, data = Halves().eval(), [torch.randn(256, 1) for _ in range(8)]
    structure, small, keep = removed(model, data[0], {"first": [1, 2]})
    fixed, report = recover(structure, small, keep, data, steps=("compensate",))
    monkeypatch.setattr(clipped, "_ROUNDS", 0)
    linear, _ = recover(structure, small, keep, data, steps=("compensate",))
    errors = [error(model, lift(each).eval(), data) for each in (small, linear, fixed)]
    assert errors[2] < 0.1 * errors[1] < 0.1 * errors[0]
    (repair,) = [each for each in report.repairs if each.layer == "second"]
    assert repair.after < 0.1 * repair.before


def test_cut_weights_that_already_let_through_what_they_should_stay() -> None:
    torch.manual_seed(0)
    model, data = Halves().eval(), [torch.randn(256, 1) for _ in range(8)]
    structure, small, keep = removed(model, data[0], {"first": [1]})  # -h2 is seen only where nothing passes
    fixed, report = recover(structure, small, keep, data, steps=("compensate",))
    assert "second" in report.left
    assert error(model, lift(fixed).eval(), data) < 1e-10


class Blocks(nn.Module):
    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 12, 3, padding=1, bias=False), norm(12)
        self.inner, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), norm(12)
        self.back, self.norm3 = nn.Conv2d(12, 12, 3, padding=1, bias=False), norm(12)
        self.act, self.head = activation(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.first(x)))
        x = self.act(x + self.norm3(self.back(self.act(self.norm2(self.inner(x))))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardtanh])
def test_errors_behind_the_activation_get_smaller(
    activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, data = Blocks(activation).eval(), smooth(64)
    structure, small, keep = removed(model, data[0][:2], {"inner": [0, 2, 3, 5, 7, 8, 10]})
    _, report = recover(structure, small, keep, data, steps=("compensate",))
    monkeypatch.setattr(clipped, "_ROUNDS", 0)
    _, linear = recover(structure, small, keep, data, steps=("compensate",))
    after = [next(r.after for r in each.repairs if r.layer == "back") for each in (report, linear)]
    assert after[0] < after[1]


def test_where_an_output_goes() -> None:
    model = Blocks(nn.ReLU6).eval()
    captured = capture(model, torch.randn(2, 3, 8, 8))
    layers = {captured.names[layer.weight]: layer for layer in find_layers(captured).values()}
    inner, back, head = (layers[f"{name}.weight"] for name in ("inner", "back", "head"))
    assert inner.clip is not None and (inner.clip.low, inner.clip.high) == (0, 6) and inner.clip.other is None
    assert back.clip is not None and back.clip.other is not None and len(back.clip.norms) == 1
    assert head.clip is None
    gain, shift = affine_of(back.clip.norms, captured.tensors, 12)
    y = torch.randn(5, 12, 1, 1)
    expected = model.norm3(y)[:, :, 0, 0].double()
    torch.testing.assert_close(y[:, :, 0, 0].double() * gain + shift, expected, atol=1e-6, rtol=0)
    smooth_net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    assert all(layer.clip is None for layer in find_layers(capture(smooth_net, torch.randn(2, 3))).values())


def test_nothing_is_done_at_full_width() -> None:
    torch.manual_seed(0)
    model, data = Blocks(nn.ReLU).eval(), smooth(16)
    result = prunus.compress(model, data[0], target=prunus.Target(macs=1.0), data=data)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in result.model.state_dict().items())
