"""Counts are compared with a second opinion (torch's flop counter) or with arithmetic done by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from prunus.capture import capture
from prunus.errors import PrunusError
from prunus.surgery.count import count_macs, count_params, count_size_bytes, macs_of


def counted_by_torch(model: nn.Module, *args: Tensor) -> int:
    """Half of the floating point operations that torch's counter sees."""
    with FlopCounterMode(display=False) as counter:  # with gradients: without, encoders are one fused call
        model.eval()(*args)
    flops = counter.get_total_flops()
    assert flops > 0 and flops % 2 == 0
    return flops // 2


class Convolutions(nn.Module):
    """Grouped, depthwise, dilated, strided and transposed, in one to three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, groups=2, padding="valid")
        self.depthwise = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=8)
        self.up = nn.ConvTranspose2d(16, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.line = nn.Conv1d(6, 5, 3, padding="same")
        self.line_up = nn.ConvTranspose1d(5, 4, 2, stride=2)
        self.volume = nn.Conv3d(1, 3, 2)
        self.volume_up = nn.ConvTranspose3d(3, 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line_up(self.line(self.up(self.depthwise(self.grouped(x))).flatten(2)))
        return self.volume_up(self.volume(x[:, None, :, :64].unflatten(-1, (8, 8))))


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6))
        self.c = nn.Parameter(torch.randn(3, 6, 7))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.a  # (b, 4, 6)
        z = torch.addmm(self.b, y[:, 0], self.a.T @ self.a)  # (b, 6)
        w = torch.matmul(y[:, None], self.c)  # (b, 3, 4, 7)
        v = torch.baddbmm(x[:, :1], y, self.a.T.expand(x.shape[0], 6, 5))
        return torch.bmm(w.flatten(1, 2), w.flatten(1, 2).mT).sum((1, 2)) + z.sum(1) + v.sum((1, 2))


class Attention(nn.Module):
    def __init__(self, kv_heads: int, value_width: int = 8) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.value_width = 4, kv_heads, value_width
        self.q, self.k = nn.Linear(16, 32), nn.Linear(16, 8 * kv_heads)
        self.v = nn.Linear(16, value_width * kv_heads)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, 8)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (self.kv_heads, 8)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (self.kv_heads, self.value_width)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kv_heads != self.heads)


class Einsum(nn.Module):
    def __init__(self, equation: str, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.equation = equation
        self.operands = nn.ParameterList([torch.randn(shape) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, *self.operands)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (Convolutions, (2, 4, 17, 17)),
    "products": (Products, (2, 4, 5)),
    "attention": (lambda: Attention(4), (2, 6, 16)),
    "attention with other values": (lambda: Attention(4, 5), (2, 6, 16)),
    "einsum product": (lambda: Einsum("bij,jk->bik", (4, 5)), (2, 3, 4)),
    "einsum chain": (lambda: Einsum("bi,ij,jk,kl->bl", (3, 4), (4, 5), (5, 6)), (2, 3)),
    "einsum attention": (lambda: Einsum("bhid,hjd->bhij", (3, 6, 5)), (2, 3, 4, 5)),
    "einsum ellipsis": (lambda: Einsum("b...i,ij->b...j", (3, 4)), (2, 7, 8, 3)),
    "einsum implicit": (lambda: Einsum("bij,ij", (3, 4)), (2, 3, 4)),
    "einsum summed before": (lambda: Einsum("bij,jk->bk", (4, 5)), (2, 3, 4)),
}


@pytest.mark.parametrize("name", NETS)
def test_macs_agree_with_the_flop_counter(name: str) -> None:
    build, shape = NETS[name]
    model, x = build(), torch.randn(shape)
    captured = capture(model, x)
    assert captured.batch == 2
    shared = counted_by_torch(model, x[:0]) if name == "products" else 0  # the product of two weights
    assert count_macs(captured) == (counted_by_torch(model, x) - shared) // 2 + shared


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 64), ("vit_b_32", 224), ("mobilenet_v3_small", 64), ("swin_t", 64)]
)
def test_macs_of_networks(name: str, size: int) -> None:
    models = pytest.importorskip("torchvision.models")
    model, x = getattr(models, name)(weights=None), torch.randn(1, 3, size, size)
    assert count_macs(capture(model, x, "batch")) == counted_by_torch(model, x)


def test_resnet18_has_the_published_numbers() -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18(weights=None)
    assert count_params(model) == 11_689_512
    assert count_macs(capture(model, torch.randn(1, 3, 224, 224), "batch")) == 1_814_073_344


def test_grouped_heads_count_as_many_products_as_queries_have_heads() -> None:
    grouped, full = (count_macs(capture(Attention(kv), torch.randn(2, 6, 16))) for kv in (2, 4))
    assert full - grouped == 6 * 16 * 2 * (
        2 * 8
    )  # the narrower projections of keys and values, and nothing else


def test_recurrent_and_bilinear_by_hand() -> None:
    lstm = nn.LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True)
    captured = capture(First(lstm), torch.randn(2, 7, 3))
    by_hand = 7 * 2 * (4 * 5 * (3 + 5) + 4 * 5 * (2 * 5 + 5))
    assert count_macs(captured) == by_hand * 2 // (captured.batch or 1)
    bilinear = capture(Pair(nn.Bilinear(3, 4, 5)), (torch.randn(2, 3), torch.randn(2, 4)))
    assert count_macs(bilinear) == 5 * (3 * 4 + 4)


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Pair(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x, y)


def test_what_contracts_nothing_counts_nothing() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.GELU(), Einsum("bij,ij->bij", (5, 4)))
    assert count_macs(capture(model, torch.randint(0, 10, (2, 5)))) == 0


class Positions(nn.Module):
    """A small network on constants, which runs once for any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Linear(2, 4)
        self.fc = nn.Linear(4, 4)
        self.register_buffer("grid", torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.positions(self.grid)


def test_what_runs_once_per_pass_is_not_divided_by_the_batch() -> None:
    model = Positions()
    for batch in (1, 2, 5):
        captured = capture(model, torch.randn(batch, 6, 4))
        assert count_macs(captured) == 6 * 4 * 4 + 6 * 2 * 4
    assert counted_by_torch(model, torch.randn(1, 6, 4)) == count_macs(captured)


class Flat(nn.Module):
    """A batch size that is written into the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(2, 8))


def test_a_static_batch_counts_in_full() -> None:
    captured = capture(Flat(), torch.randn(2, 2, 4))
    assert captured.batch is None
    assert count_macs(captured) == 2 * 8 * 3


def test_a_call_of_unknown_size_is_an_error() -> None:
    captured = capture(nn.Linear(4, 4), torch.randn(2, 4))
    (call,) = (node for node in captured.graph.nodes if node.op == "call_function" and macs_of(node))
    del call.meta["val"]
    with pytest.raises(PrunusError, match=call.name):
        count_macs(captured)


def test_parameters_and_bytes_count_tied_tensors_once() -> None:
    model: Any = nn.Module()
    model.a, model.b = nn.Linear(4, 3), nn.Linear(4, 3)
    model.b.weight = model.a.weight
    model.small = nn.Parameter(torch.zeros(10, dtype=torch.float16))
    model.register_buffer("kept", torch.zeros(5, dtype=torch.int64))
    model.register_buffer("derived", torch.zeros(1000), persistent=False)
    assert count_params(model) == 12 + 3 + 3 + 10
    assert count_size_bytes(model) == 4 * (12 + 3 + 3) + 2 * 10 + 8 * 5
