"""Numbers out of tensors: those of constants are known, those of inputs are not."""

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.capture import capture
from prunus.errors import CaptureError


class Strided(nn.Module):
    """A head that keeps its strides in a tensor and makes its grid when sizes change, as detectors do."""

    def __init__(self, buffer: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Conv2d(8, 4, 1)
        self.sizes, self.grid = None, torch.empty(0)
        if buffer:
            self.register_buffer("stride", torch.tensor([8.0, 16.0]))
        else:
            self.stride = torch.tensor([8.0, 16.0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.stem(x))
        if self.sizes != y.shape[-2:]:
            self.sizes = y.shape[-2:]
            self.grid = torch.full((1, 1, *self.sizes), self.stride[1].item() * 2 - 1)
        return y * self.grid + self.stride[0].item()


class Counting(Strided):
    """Writes to the tensor that the number is from."""

    def __init__(self) -> None:
        super().__init__(buffer=True)

    def forward(self, x: Tensor) -> Tensor:
        self.stride.add_(1)
        return self.head(self.stem(x)) * self.stride[0].item()


class Choosing(nn.Module):
    """How many results there are depends on the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).flatten(1)
        return y[y > 0].sqrt()


@pytest.mark.parametrize("buffer", [False, True])
def test_numbers_of_constants_are_known(buffer: bool) -> None:
    torch.manual_seed(0)
    net, x = Strided(buffer).eval(), torch.randn(2, 3, 8, 8)
    wanted = net(x)
    captured = capture(net, x)
    assert captured.partial is None
    assert not any("item" in str(node.target) for node in captured.graph.nodes)
    result = prunus.compress(net, x, target=prunus.Target(channels=0.5))
    assert result.report.form == "class" and result.model.stem[0].out_channels == 4  # type: ignore[index, union-attr]
    assert (result.report.verification or {})["passed"]
    torch.testing.assert_close(net(x), wanted)


def test_numbers_that_the_forward_changes_are_not() -> None:
    net, x = Counting().eval(), torch.randn(2, 3, 8, 8)
    captured = capture(net, x)
    assert captured.partial is not None and set(captured.partial.parts) == {"stem", "head"}
    assert net.stride[0] == 8


def test_where_sizes_depend_on_the_inputs_the_parts_before_are_pruned() -> None:
    torch.manual_seed(0)
    net, x = Choosing().eval(), torch.randn(2, 3, 8, 8)
    result = prunus.compress(net, x, target=prunus.Target(channels=0.5))
    assert isinstance(result.model, Choosing) and result.model.body[0].out_channels == 4
    assert result.model(x).dim() == 1


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight)[x > 0]


def test_what_has_no_such_parts_says_where_the_size_is_from() -> None:
    with pytest.raises(CaptureError, match="depends on the data"):
        capture(Nothing(), torch.randn(2, 4))
