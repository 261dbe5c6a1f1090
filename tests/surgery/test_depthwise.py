"""The fast depthwise convolution is the convolution."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from prunus.surgery import precision
from prunus.surgery.precision import OnePrecision

CASES = [
    (F.conv1d, (9,), (3,), {}),
    (F.conv2d, (9, 8), (3, 3), {"padding": 1}),
    (F.conv2d, (9, 8), (3, 5), {"padding": (1, 2), "stride": 2}),
    (F.conv2d, (12, 9), (2, 3), {"padding": (0, 2), "stride": (1, 3), "dilation": (3, 2)}),
    (F.conv2d, (9, 8), (3, 5), {"padding": "same"}),
    (F.conv2d, (9, 8), (1, 1), {"stride": 3}),
    (F.conv3d, (5, 6, 7), (3, 1, 2), {"padding": (1, 0, 1), "stride": (1, 2, 2)}),
]


@pytest.mark.parametrize(("convolution", "space", "kernel", "options"), CASES)
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_torch(monkeypatch, convolution, space, kernel, options: dict[str, Any], multiplier, bias):
    calls = []
    fast = precision.shifted_sum
    monkeypatch.setattr(precision, "shifted_sum", lambda *args: calls.append(1) or fast(*args))
    torch.manual_seed(0)
    x = torch.randn(2, 4, *space, dtype=torch.float64)
    weight = torch.randn(4 * multiplier, 1, *kernel, dtype=torch.float64)
    shift = torch.randn(4 * multiplier, dtype=torch.float64) if bias else None
    wanted = convolution(x, weight, shift, groups=4, **options)
    with torch.no_grad(), OnePrecision(torch.float64):
        got = convolution(x, weight, shift, groups=4, **options)
    assert calls == [1]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


def test_other_convolutions_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(precision, "shifted_sum", None)
    x, two, one = (torch.randn(*s, dtype=torch.float64) for s in ((2, 4, 6, 6), (4, 2, 3, 3), (4, 1, 3, 3)))

    def others() -> list[torch.Tensor]:
        return [F.conv2d(x, two, groups=2), F.conv2d(x[:, :1], one), F.conv_transpose2d(x, one, groups=4)]

    with torch.no_grad(), OnePrecision(torch.float64):
        found = others()
    with torch.no_grad(), OnePrecision(torch.float32):
        single = F.conv2d(x, one, groups=4)
    for got, wanted in zip(found, others(), strict=True):
        torch.testing.assert_close(got, wanted)
    assert single.dtype == torch.float32
