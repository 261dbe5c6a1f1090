"""Normalisations and reductions of the masked original equal those of a small network built by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.capture import size_of

from .hand_labels import Hand, assert_equal, give, kept, shake


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Between(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, width: int, middle: nn.Module, after: int | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(5, width)
        self.middle = middle
        self.last = nn.Linear(after or width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def assert_between(
    middle: nn.Module, small_middle: nn.Module, nodes: str, removed: set[int], width: int = 8
) -> None:
    """Remove units of the first layer, with `nodes` (of the middle) carrying them along their last axis."""
    model, x = shake(Between(width, middle)), torch.randn(3, 5)
    hand = Hand(model, x)
    units = hand.labels(width, removed)
    hand.put(units, "p_first_weight p_first_bias", 0)
    hand.put(units, "p_last_weight", 1)
    hand.put(units, f"linear {nodes}", -1)
    index = kept(width, removed)
    small = Between(len(index), small_middle)
    give(small.first, model.first, out=index)
    give(small.middle, model.middle, out=index)
    give(small.last, model.last, into=index)
    assert_equal(hand, small, x)


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_linear_relu_linear():
    assert_between(nn.ReLU(), nn.ReLU(), "relu", {0, 3, 7})


def test_in_place_activation():
    assert_between(nn.Hardswish(inplace=True), nn.Hardswish(), "hardswish_", {1, 2})


def test_layer_norm_over_pruned_width():
    nodes = "layer_norm p_middle_weight p_middle_bias"
    assert_between(nn.LayerNorm(8, eps=0.1), nn.LayerNorm(6, eps=0.1), nodes, {2, 5})


def test_rms_norm_over_pruned_width():
    assert_between(nn.RMSNorm(8, eps=0.1), nn.RMSNorm(5, eps=0.1), "rms_norm p_middle_weight", {0, 2, 5})


def test_rms_norm_without_eps():
    assert_between(nn.RMSNorm(8), nn.RMSNorm(5), "rms_norm p_middle_weight", {0, 2, 5})


def test_softmax_over_pruned_width():
    assert_between(nn.Softmax(-1), nn.Softmax(-1), "softmax", {4, 5})


def test_log_softmax_over_pruned_width():
    assert_between(nn.LogSoftmax(-1), nn.LogSoftmax(-1), "log_softmax", {4})


def assert_statistic(function, one_precision: bool = False) -> None:
    """A scalar per row, computed over the pruned width and put to the values."""
    model, x = shake(Between(8, Call(lambda v: v * function(v)))), torch.randn(3, 5)
    hand = Hand(model, x)
    units = hand.labels(8, {1, 6})
    hand.put(units, "p_first_weight p_first_bias", 0)
    hand.put(units, "p_last_weight", 1)
    calls = [n for n in hand.captured.graph.nodes if n.op == "call_function"]
    wide = [n for n in calls if isinstance(n.meta["val"], Tensor) and size_of(n) == (3, 8)]
    hand.put(units, " ".join(n.name for n in wide), -1)
    index = kept(8, {1, 6})
    small = Between(6, model.middle)
    give(small.first, model.first, out=index)
    give(small.last, model.last, into=index)
    assert_equal(hand, small, x, one_precision=one_precision)


def test_mean():
    assert_statistic(lambda v: v.mean(1, keepdim=True))
    assert_statistic(lambda v: v.mean(-1).unsqueeze(1))


def test_variance():
    assert_statistic(lambda v: v.var(1, keepdim=True))
    assert_statistic(lambda v: v.var(dim=(1,), unbiased=False, keepdim=True))
    assert_statistic(lambda v: v.std(1, correction=2).unsqueeze(1))
    assert_statistic(lambda v: torch.var_mean(v, 1, keepdim=True)[0])
    assert_statistic(lambda v: torch.std_mean(v, -1, keepdim=True)[1])


def test_mean_and_variance_of_everything():
    assert_statistic(lambda v: v.var())
    assert_statistic(lambda v: v.mean())


def test_extremes():
    # beyond zero on the other side, so that zeros in place of what is removed would win
    assert_statistic(lambda v: (v - 100).amax(1, keepdim=True))
    assert_statistic(lambda v: (v - 100).max(1, keepdim=True)[0])
    assert_statistic(lambda v: (v + 100).amin((1,), keepdim=True))
    assert_statistic(lambda v: (v + 100).min())


def test_sums_and_norms():
    assert_statistic(lambda v: v.sum(1, keepdim=True))
    assert_statistic(lambda v: v.logsumexp(1, keepdim=True))
    assert_statistic(lambda v: torch.linalg.vector_norm(v, dim=1, keepdim=True))
    assert_statistic(lambda v: torch.linalg.vector_norm(v, ord=-1, dim=1, keepdim=True))
    assert_statistic(lambda v: v.norm(dim=1, keepdim=True))
    assert_statistic(lambda v: v.prod(1, keepdim=True))
    assert_statistic(lambda v: (v > 0).sum(1, keepdim=True))
    assert_statistic(lambda v: F.normalize(v, dim=1).sum(1, keepdim=True))


def test_types_named_inside_follow_the_verification():
    assert_statistic(
        lambda v: v.to(torch.float32).pow(2).mean(1, keepdim=True).to(v.dtype), one_precision=True
    )
    assert_statistic(
        lambda v: v.softmax(1, dtype=torch.float32).square().sum(1, keepdim=True), one_precision=True
    )
    tenth = lambda: torch.full((1,), 0.1, dtype=torch.float32)  # noqa: E731
    assert_statistic(lambda v: tenth() + v.half().float().sum(1, keepdim=True), one_precision=True)
