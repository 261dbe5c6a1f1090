"""The masked original equals a small network that was built by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.capture import capture
from prunus.inputs import Inputs
from prunus.surgery.reference import masked_outputs
from prunus.surgery.verify import compare

from .hand_labels import Hand, assert_equal, give, kept, shake


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class ConvNet(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 1)
        self.head = nn.Linear(width * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn(self.stem(x)))
        x = x + self.conv2(F.relu(self.bn1(self.depthwise(self.conv1(x))), inplace=True))
        return self.head(torch.flatten(F.max_pool2d(x, 2), 1))


def conv_net(removed: set[int], inner: set[int]) -> tuple[Hand, nn.Module, Tensor]:
    model, x = shake(ConvNet(6, 8)), torch.randn(2, 3, 8, 8)
    hand = Hand(model, x)
    units, hidden = hand.labels(6, removed), hand.labels(8, inner)
    hand.put(units, "p_stem_weight p_conv2_weight p_conv2_bias", 0)
    hand.put(units, "p_bn_weight p_bn_bias b_bn_running_mean b_bn_running_var", 0)
    hand.put(units, "p_conv1_weight conv2d batch_norm relu_ conv2d_3 add max_pool2d", 1)
    hand.put(hidden, "p_conv1_weight p_conv1_bias p_depthwise_weight p_depthwise_bias", 0)
    hand.put(hidden, "p_bn1_weight p_bn1_bias b_bn1_running_mean b_bn1_running_var", 0)
    hand.put(hidden, "p_conv2_weight conv2d_1 conv2d_2 batch_norm_1 relu__1", 1)
    flat = units.repeat_interleave(16)
    hand.put(flat, "flatten p_head_weight", 1)
    index, within = kept(6, removed), kept(8, inner)
    small = ConvNet(len(index), len(within))
    give(small.stem, model.stem, out=index)
    give(small.bn, model.bn, out=index)
    give(small.conv1, model.conv1, within, index)
    give(small.depthwise, model.depthwise, within)
    give(small.bn1, model.bn1, within)
    give(small.conv2, model.conv2, index, within)
    give(small.head, model.head, into=torch.cat([torch.arange(16 * i, 16 * i + 16) for i in index]))
    return hand, small.eval(), x


def test_convolutions_with_residual_depthwise_and_flatten():
    hand, small, x = conv_net({0, 4}, {1, 2, 7})
    assert_equal(hand, small, x)


def assert_group_norm(groups: int, removed: set[int], small_groups: int) -> None:
    def net(width: int, number: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, width, 1), nn.GroupNorm(number, width, eps=0.1), nn.Conv2d(width, 2, 1)
        )

    model, x = shake(net(8, groups)), torch.randn(2, 3, 4, 4)
    hand = Hand(model, x)
    units = hand.labels(8, removed)
    hand.put(units, "p_0_weight p_0_bias p_1_weight p_1_bias", 0)
    hand.put(units, "p_2_weight conv2d group_norm", 1)
    index = kept(8, removed)
    small = net(len(index), small_groups)
    give(small[0], model[0], out=index)
    give(small[1], model[1], out=index)
    give(small[2], model[2], into=index)
    assert_equal(hand, small, x)


def test_group_norm_with_smaller_groups():
    assert_group_norm(2, {0, 6}, 2)


def test_group_norm_with_a_group_gone():
    assert_group_norm(4, {2, 3}, 3)


class Attention(nn.Module):
    """Queries and keys may have another head dimension than values."""

    def __init__(self, heads: int, inner: int, value: int, scale: float | None) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.q, self.k = nn.Linear(6, heads * inner), nn.Linear(6, heads * inner)
        self.v, self.o = nn.Linear(6, heads * value), nn.Linear(heads * value, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.o(y.transpose(1, 2).flatten(2))


def test_attention_keeps_the_scale_of_the_original_head():
    model, x = shake(Attention(2, 4, 4, None)), torch.randn(2, 5, 6)
    hand = Hand(model, x)
    gone = {1, 6}  # one of each head, another in each
    units = hand.labels(8, gone)
    hand.put(units, "p_q_weight p_q_bias p_k_weight p_k_bias", 0)
    hand.put(units, "linear linear_1", 2)
    hand.put(units, "unflatten unflatten_1", 2, 3)
    hand.put(units, "transpose transpose_1", 1, 3)
    small = Attention(2, 3, 4, 4**-0.5)
    give(small.q, model.q, kept(8, gone))
    give(small.k, model.k, kept(8, gone))
    give(small.v, model.v)
    give(small.o, model.o)
    assert_equal(hand, small, x)


def test_attention_with_a_whole_head_gone():
    model, x = shake(Attention(3, 2, 2, None)), torch.randn(2, 5, 6)
    hand = Hand(model, x)
    units = hand.labels(6, {2, 3})
    for letter, number in ("q", ""), ("k", "_1"), ("v", "_2"):
        hand.put(units, f"p_{letter}_weight p_{letter}_bias", 0)
        hand.put(units, f"linear{number}", 2)
        hand.put(units, f"unflatten{number}", 2, 3)
        hand.put(units, f"transpose{number}", 1, 3)
    hand.put(units, "scaled_dot_product_attention", 1, 3)
    hand.put(units, "transpose_3", 2, 3)
    hand.put(units, "flatten", 2)
    hand.put(units, "p_o_weight", 1)
    small, index = Attention(2, 2, 2, None), kept(6, {2, 3})
    for letter in "qkv":
        give(getattr(small, letter), getattr(model, letter), index)
    give(small.o, model.o, into=index)
    assert_equal(hand, small, x)


class Keys(nn.Module):
    """Attention over channels: the removed channels are keys, which no query may look at."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.k, self.v, self.causal = nn.Linear(6, width), nn.Linear(6, width), causal

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.k(x).transpose(1, 2), self.v(x).transpose(1, 2)
        return F.scaled_dot_product_attention(x.transpose(1, 2), k, v, is_causal=self.causal)


def test_attention_over_fewer_keys():
    for causal, removed in (False, {1, 5}), (True, {6, 7}):  # those at the end, as causality counts positions
        model, x = shake(Keys(8, causal)), torch.randn(2, 5, 6)
        hand = Hand(model, x)
        units = hand.labels(8, removed)
        hand.put(units, "p_k_weight p_k_bias p_v_weight p_v_bias", 0)
        hand.put(units, "linear linear_1", 2)
        hand.put(units, "transpose transpose_1", 1)
        small, index = Keys(6, causal), kept(8, removed)
        give(small.k, model.k, index)
        give(small.v, model.v, index)
        if causal:
            assert masked_outputs(hand.captured, hand.tracks, hand.keep, Inputs((x,), {}), torch.float64)
        else:
            assert_equal(hand, small, x)


class Standardized(nn.Module):
    """Convolutions whose weights are normalised over their inputs by a batch norm in training mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(width, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.first, self.last):
            flat = conv.weight.reshape(1, conv.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=0.1).reshape_as(
                conv.weight
            )
            x = F.conv2d(x, weight, conv.bias)
        return x


def test_weight_standardization_over_what_is_kept():
    model, x = shake(Standardized(6)), torch.randn(2, 3, 5, 5)
    hand = Hand(model, x)
    units = hand.labels(6, {0, 5})
    hand.put(units, "p_first_weight p_first_bias reshape_as", 0)
    hand.put(units, "reshape batch_norm conv2d p_last_weight reshape_as_1", 1)
    hand.put(units.repeat_interleave(9), "reshape_1 batch_norm_1", 2)
    small, index = Standardized(4), kept(6, {0, 5})
    give(small.first, model.first, index)
    give(small.last, model.last, into=index)
    assert_equal(hand, small, x)


class Instance(nn.Module):
    """Tokens are mixed by a hidden width, which instance norm then runs over."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 4)
        self.norm = nn.InstanceNorm1d(3, eps=0.1, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


def test_instance_norm_over_pruned_positions():
    model, x = shake(Instance(8)), torch.randn(2, 3, 5)
    hand = Hand(model, x)
    units = hand.labels(8, {3, 4})
    hand.put(units, "p_first_weight p_first_bias", 0)
    hand.put(units, "linear instance_norm", 2)
    hand.put(units, "p_last_weight", 1)
    small, index = Instance(6), kept(8, {3, 4})
    give(small.first, model.first, index)
    give(small.norm, model.norm)
    give(small.last, model.last, into=index)
    assert_equal(hand, small, x)


class Writes(nn.Module):
    """Two halves written into one buffer through views."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.half = half
        self.a, self.b, self.last = nn.Linear(5, half), nn.Linear(5, half), nn.Linear(2 * half, 4)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.zeros(x.shape[0], 2 * self.half, dtype=x.dtype)
        both[:, : self.half] = self.a(x)
        both[:, self.half :].copy_(self.b(x))
        return self.last(both.mul_(2))


def test_writes_through_views():
    model, x = shake(Writes(4)), torch.randn(3, 5)
    hand = Hand(model, x)
    first, second = hand.labels(4, {0}), hand.labels(4, {2})
    hand.put(first, "p_a_weight p_a_bias", 0)
    hand.put(second, "p_b_weight p_b_bias", 0)
    hand.put(first, "linear", 1)
    hand.put(second, "linear_1", 1)
    hand.put(torch.cat([first, second]), "zeros mul_ p_last_weight", 1)
    small = Writes(3)
    give(small.a, model.a, kept(4, {0}))
    give(small.b, model.b, kept(4, {2}))
    give(small.last, model.last, into=kept(8, {0, 6}))
    assert_equal(hand, small, x)


def test_what_is_removed_may_be_nan():
    class Root(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, width), nn.Linear(width, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).sqrt())

    model, x = shake(Root(4)), torch.randn(3, 5)
    model.first.weight.data.zero_()
    model.first.bias.data = torch.tensor([1.0, -1.0, 2.0, 3.0])
    hand = Hand(model, x)
    units = hand.labels(4, {1})
    hand.put(units, "p_first_weight p_first_bias", 0)
    hand.put(units, "linear sqrt p_last_weight", 1)
    got = masked_outputs(hand.captured, hand.tracks, hand.keep, Inputs((x,), {}), torch.float64)[0]
    wanted = torch.tensor([1.0, 2.0, 3.0]).double().sqrt() @ model.last.weight.double()[:, [0, 2, 3]].T
    torch.testing.assert_close(got, (wanted + model.last.bias.double()).expand(3, 4), rtol=1e-12, atol=0)


def test_nothing_of_the_user_is_written_to():
    class Rude(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))
            self.register_buffer("calls", torch.zeros(4))
            self.bn = nn.BatchNorm1d(4, momentum=0.5)

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            x.view(-1).mul_(2)
            y = F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=True)
            return self.weight.detach().view(2, 2).mul_(3).view(-1) * y + self.calls

    model, x = Rude().eval(), torch.randn(3, 4)
    captured = capture(model, x.clone())
    inputs = Inputs((x,), {})
    before = [t.clone() for t in (x, *captured.tensors.values())]
    for dtype in torch.float32, torch.float64:
        masked_outputs(captured, {}, torch.tensor([True]), inputs, dtype)
        compare(captured, {}, torch.tensor([True]), model, dtype=dtype)
        for was, now in zip(before, (x, *captured.tensors.values()), strict=True):
            assert torch.equal(was, now)
