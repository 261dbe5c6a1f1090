"""Several example inputs: what each of them reaches is captured, and all of them are verified."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.capture import capture
from prunus.errors import CaptureError, ConfigError
from prunus.inputs import Inputs, as_examples

HALF = prunus.Target(channels=0.5)


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 8))


class Experts(nn.Module):
    """Each row goes to the expert of its largest channel; experts without rows are not called, or called in vain."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.embed = nn.Linear(4, 8)
        self.experts = nn.ModuleList(mlp(16) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen, y = x.argmax(1), self.embed(x)
        out = torch.zeros_like(y)
        for number, expert in enumerate(self.experts):
            rows = torch.nonzero(chosen == number).flatten()
            if len(rows) or not self.skip:
                out[rows] = expert(y[rows])
        return self.head(out)


class Early(nn.Module):
    """Goes on only with what is not clear yet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.more, self.head = mlp(12), nn.ModuleList([mlp(12), mlp(12)]), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for number, block in enumerate(self.more):
            if bool(x.abs().mean() > number + 1):
                y = block(y) + self.bias
        return self.head(y)


def parts(modules: Any) -> list[Any]:
    return list(modules)


def rows_for(*experts: int) -> Tensor:
    return torch.eye(4)[list(experts)]


@pytest.mark.parametrize("skip", [True, False])
def test_what_several_examples_reach_is_united(skip: bool) -> None:
    torch.manual_seed(0)
    model = Experts(skip).eval()
    one = prunus.compress(model, rows_for(0, 2, 2), target=HALF)
    both = prunus.compress(model, [rows_for(0, 2, 2), (rows_for(1, 1),), {"x": rows_for(3, 0)}], target=HALF)
    assert [each[0].out_features for each in parts(one.model.experts)][1] == 16
    assert [each[0].out_features for each in parts(both.model.experts)] == [8, 8, 8, 8]
    assert any("experts.1, experts.3" in note for note in one.report.notes) == skip
    assert not any("not used" in note for note in both.report.notes)
    everywhere = torch.randn(20, 4)
    mask = {  # the same, with the channels that left as zeros
        name: index
        for group in both.plan.groups
        for name, index in [(group.name, torch.tensor(group.keep))]
        if name.startswith("experts")
    }
    masked = Experts(skip).eval()
    masked.load_state_dict(model.state_dict())
    with torch.no_grad():
        for number, expert in enumerate(parts(masked.experts)):
            gone = torch.ones(16, dtype=torch.bool)
            gone[mask[f"experts.{number}.0"]] = False
            expert[2].weight[:, gone] = 0
        torch.testing.assert_close(both.model(everywhere), masked(everywhere))


def test_blocks_that_only_some_inputs_run() -> None:
    torch.manual_seed(0)
    model, x = Early().eval(), torch.rand(3, 8)
    one = prunus.compress(model, x, target=HALF)
    assert any("more, bias" in note for note in one.report.notes)
    both = prunus.compress(model, [x, x * 3, x * 9], target=HALF)
    assert [block[0].out_features for block in parts(both.model.more)] == [6, 6]
    assert not any("not used" in note for note in both.report.notes)


def test_a_part_that_gets_different_tensors_keeps_its_inputs() -> None:
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = mlp(12), mlp(12), mlp(12)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(self.b(y) if bool(x.mean() > 0) else y)

    torch.manual_seed(0)
    x = torch.rand(3, 8)
    result = prunus.compress(Detour().eval(), [x, -x], target=HALF)
    small: Any = result.model
    assert [part[0].out_features for part in (small.a, small.b, small.c)] == [6, 6, 6]
    assert small.c[0].in_features == 8


def test_parameters_that_a_forward_does_not_use_are_named() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pooler = mlp(16), mlp(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    result = prunus.compress(Spare().eval(), torch.rand(2, 8), target=HALF)
    assert [note for note in result.report.notes if "not used" in note and "left whole: pooler;" in note]


def test_all_examples_are_verified() -> None:
    model, x = mlp(16).eval(), torch.rand(3, 8)
    captured = capture(model, [x, x * 2, x[:1], torch.rand(5, 2, 8)])
    assert [tuple(other.args[0].shape) for other in captured.others] == [(3, 8), (3, 8)]
    result = prunus.compress(model, [x, x * 2], target=HALF)
    assert result.report.verification is not None
    assert result.report.verification["inputs_checked"] == 3


def test_a_list_is_several_examples() -> None:
    x, y = torch.zeros(2, 3), torch.ones(2)
    assert as_examples([x, (x, y), {"x": x}]) == (Inputs((x,)), Inputs((x, y)), Inputs((), {"x": x}))
    assert as_examples((x, y)) == (Inputs((x, y)),)
    with pytest.raises(ConfigError, match="empty list"):
        as_examples([])


def test_examples_that_do_not_fit_are_named() -> None:
    x = torch.rand(2, 8)
    with pytest.raises(CaptureError, match=r"Example 2 .*(?s:.)*A list is several"):
        prunus.analyze(mlp(4), [x, x[:, :5]])
    with pytest.raises(CaptureError, match="A list is several"):
        prunus.analyze(nn.Bilinear(8, 8, 3), [x, x])
