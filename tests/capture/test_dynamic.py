"""Which sizes of the inputs are free: every axis that exports, and for the others the reason."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import Inputs
from prunus.capture import architecture_hash, capture
from prunus.errors import CaptureError, ConfigError


class Pyramid(nn.Module):
    """A map, and a smaller one that is enlarged again and added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        large = self.first(x)
        return large + F.interpolate(self.second(large), scale_factor=2.0)


class Joined(nn.Module):
    """A sequence twice as long as another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, long: Tensor, short: Tensor) -> Tensor:
        return self.layer(long) + short.repeat_interleave(2, 1)


class Branch(nn.Module):
    """A forward that looks at the length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.shape[1] > 3 else x


class Counted(nn.Module):
    """A forward that takes as many steps as the sequence is long."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        total = x[:, 0] * 0
        for i in range(x.shape[1]):
            total = self.layer(total + x[:, i])
        return total


def sizes(model: nn.Module, *inputs: Tensor, dynamic: Any = "auto") -> tuple[tuple[int | None, ...], ...]:
    return capture(model.eval(), inputs, dynamic).shapes.sizes


def test_every_axis_that_exports_is_free() -> None:
    assert sizes(Pyramid(), torch.randn(2, 3, 8, 12)) == ((None, 3, None, None),)
    assert sizes(Branch(), torch.randn(2, 5, 4)) == ((None, None, 4),)


def test_the_batch_is_free_where_one_sample_is_given() -> None:
    captured = capture(Pyramid().eval(), torch.randn(1, 3, 8, 8))
    assert captured.shapes.sizes == ((None, 3, None, None),) and captured.batch == 2


def test_axes_that_are_not_asked_for_are_fixed() -> None:
    x = torch.randn(2, 3, 8, 12)
    assert sizes(Pyramid(), x, dynamic="batch") == ((None, 3, 8, 12),)
    assert sizes(Pyramid(), x, dynamic="none") == sizes(Pyramid(), x, dynamic=False) == ((2, 3, 8, 12),)
    assert sizes(Pyramid(), x, dynamic={"x": [0, -1]}) == ((None, 3, 8, None),)
    assert sizes(Pyramid(), x, dynamic={"x": {2: torch.export.Dim.AUTO}}) == ((2, 3, None, 12),)
    assert sizes(Joined(), torch.randn(2, 6, 4), torch.randn(2, 3, 4), dynamic=([0], {0})) == (
        (None, 6, 4),
        (None, 3, 4),
    )


def test_what_fixes_an_axis_is_named() -> None:
    captured = capture(Counted().eval(), torch.randn(2, 5, 4))
    assert captured.shapes.sizes == ((None, 5, 4),)
    assert f"needs 5 there, at {__file__}" in captured.shapes.reasons["x.1"]


def test_what_holds_between_free_sizes_is_known() -> None:
    shapes = capture(Joined().eval(), (torch.randn(2, 6, 4), torch.randn(2, 3, 4))).shapes
    assert shapes.problem([torch.randn(5, 8, 4), torch.randn(5, 4, 4)]) is None
    wrong = shapes.problem([torch.randn(5, 8, 4), torch.randn(5, 3, 4)])
    assert wrong is not None and "axis 1 of the input long is 8, axis 1 of the input short is 3" in wrong
    assert shapes.problem([torch.randn(5, 8, 4), torch.randn(4, 4, 4)]) is not None


def test_a_branch_on_a_size_is_a_condition() -> None:
    shapes = capture(Branch().eval(), torch.randn(2, 5, 4)).shapes
    assert shapes.problem([torch.randn(1, 4, 4)]) is None
    assert "x.size(1) > 3" in str(shapes.problem([torch.randn(1, 3, 4)]))


def test_a_size_of_one_that_the_forward_asks_about_is_a_condition() -> None:
    class Single(Branch):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.shape[0] == 1 else self.layer(x)

    shapes = capture(Single().eval(), torch.randn(2, 5, 4)).shapes
    assert shapes.problem([torch.randn(3, 1, 4)]) is None
    assert shapes.problem([torch.randn(1, 5, 4)]) is not None


@pytest.mark.parametrize(
    ("dynamic", "error", "said"),
    [
        ("all", ConfigError, 'expected "auto"'),
        (3.5, ConfigError, "dynamic is a float"),
        ({"y": [0]}, ConfigError, "the inputs are x"),
        ({"x": [7]}, ConfigError, "axis 7 of x, which has 3 axes"),
        ({"x": ["0"]}, ConfigError, "axes are whole numbers"),
        ({"x": [1]}, CaptureError, "Axis 1 of the input x cannot be free"),
    ],
)
def test_a_request_that_cannot_be_met_is_an_error(dynamic: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        capture(Counted().eval(), torch.randn(2, 5, 4), dynamic)


def test_axes_of_keywords_and_nested_inputs_are_found() -> None:
    class Nested(nn.Module):
        def forward(self, maps: dict[str, list[Tensor]], *, mask: Tensor) -> Tensor:
            return maps["a"][0] * mask

    inputs = Inputs(({"a": [torch.randn(2, 5)]},), {"mask": torch.ones(2, 5)})
    assert capture(Nested(), inputs).shapes.sizes == ((None, None), (None, None))
    one = capture(Nested(), inputs, {"maps": {"a": [[0]]}, "mask": [0]})
    assert one.shapes.sizes == ((None, 5), (None, 5))


def test_the_architecture_does_not_depend_on_the_example_s_free_sizes() -> None:
    model = Pyramid().eval()
    hashes = {
        architecture_hash(capture(model, torch.randn(n, 3, s, s))) for n, s in ((1, 8), (2, 12), (3, 16))
    }
    assert len(hashes) == 1


class Filed(nn.Module):
    """Takes what has twelve entries, under names that Python has for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, input: Tensor, *, filter: Tensor) -> Tensor:
        return self.layer(input.view(2, 6)) * filter


def test_a_batch_that_a_condition_settles_is_fixed_and_says_why() -> None:
    captured = capture(Filed().eval(), Inputs((torch.randn(2, 6),), {"filter": torch.ones(3)}))
    assert captured.batch is None
    assert captured.static_reason is not None and "input.size(0) * input.size(1)" in captured.static_reason
    assert captured.shapes.problem([torch.randn(3, 4), torch.ones(3)]) is None


def test_inputs_are_called_as_the_forward_calls_them() -> None:
    shapes = capture(Filed().eval(), Inputs((torch.randn(2, 6),), {"filter": torch.ones(3)})).shapes
    assert shapes.names == ("input", "filter")
    said = shapes.problem([torch.randn(3, 6), torch.ones(3)])
    assert said is not None and "the input input is 3" in said
