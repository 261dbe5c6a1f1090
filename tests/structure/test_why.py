"""Why a layer's channels can or cannot go: the chain, with modules and lines of code."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import prunus
from prunus.cli.main import app
from prunus.structure import Structure

HERE = Path(__file__).name


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """A residual stream, a side of it that is sorted, a gate whose other side has no channels, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.first, self.second = nn.Linear(8, 6), nn.Linear(8, 6)
        self.gated, self.last = nn.Linear(8, 5), nn.Linear(11, 2)
        self.norm = nn.LayerNorm(8)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(ids)))
        sides = self.first(x) + self.second(x)
        sides = torch.cat([sides.sort(-1)[0], self.gated(x) * weights], -1)
        return self.last(sides)


def built() -> tuple[nn.Module, prunus.Inputs]:
    return Net().eval(), prunus.Inputs((torch.randint(9, (2, 4)), torch.randn(2, 4, 5)))


@pytest.fixture(scope="module")
def structure() -> Structure:
    return prunus.analyze(*built())


def line_of(code: str) -> str:
    """Where this file has that code, as an explanation says it."""
    lines = Path(__file__).read_text().splitlines()
    return f"{HERE}:{next(i for i, line in enumerate(lines, 1) if line.strip() == code)}: `{code}`"


def test_what_is_held_by_a_detour(structure: Structure) -> None:
    """`second` is not sorted itself: it is added to what is."""
    outputs, inputs = structure.why("second").channels
    assert outputs.what == "6 outputs" and inputs.what == "8 inputs"
    assert outputs.reason == "is ordered or counted by aten.sort.default"
    tied, held = outputs.chain
    assert tied.text == f"tied to the outputs of first by aten.add.Tensor ({tied.node})"
    assert tied.code.endswith(line_of("sides = self.first(x) + self.second(x)"))
    assert held.text == "held by aten.sort.default (sort)"
    assert held.code.endswith(line_of("sides = torch.cat([sides.sort(-1)[0], self.gated(x) * weights], -1)"))
    assert inputs.reason is None


def test_what_meets_something_solid(structure: Structure) -> None:
    """The other side of the product is an input of the model."""
    outputs = structure.why("gated").channels[0]
    assert outputs.reason is not None and outputs.reason.endswith("where nothing can be removed")
    assert [step.text for step in outputs.chain] == [
        "held by aten.mul.Tensor (mul)",
        "the other side comes from the model's input weights",
    ]


def test_what_can_be_removed(structure: Structure) -> None:
    """Who else is in the group, and how: not directly, but over the embedding."""
    outputs, inputs = structure.why("blocks.1.down").channels
    assert outputs.reason is None and outputs.group == structure.group("blocks.add").name
    makers = dict(outputs.makers)
    assert set(makers) == {"embed", "blocks.0.down"}
    assert [step.module for step in makers["embed"]] == ["blocks.1"]
    assert [step.module for step in makers["blocks.0.down"]] == ["blocks.1", "blocks.0"]
    assert makers["embed"][0].code.endswith(line_of("return x + self.down(torch.relu(self.up(x)))"))
    assert set(outputs.readers) == {"blocks.0.up", "blocks.1.up", "first", "second", "gated", "norm"}
    assert (inputs.what, inputs.group) == ("12 inputs", "blocks.1.up")


def test_the_text(structure: Structure) -> None:
    text = str(structure.why("blocks.1.down"))
    head, first, *rest = text.splitlines()
    assert head == "blocks.1.down"
    assert first == "  8 outputs: can be removed, as units of group 'blocks.add'"
    assert "    with embed:" in rest
    assert rest[-1] == "  12 inputs: can be removed, as units of group 'blocks.1.up', made by blocks.1.up"


def test_parameters_groups_norms_and_tables(structure: Structure) -> None:
    assert structure.why("norm").channels[0].what == "8 channels"
    assert [each.what for each in structure.why("second.bias").channels] == ["6 channels"]
    assert structure.why("blocks.add").channels[0].group == "blocks.add"
    rows = [each for each in structure.why("embed").channels if each.reason]
    assert not rows  # its rows are not channels


def test_rows_of_heads() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).flatten(2))

    explanation = prunus.analyze(Heads().eval(), torch.randn(2, 5, 8)).why("qkv")
    found = {each.what: each.constraints for each in explanation.channels if each.reason is None}
    assert found["2 rows of outputs"] == ("contains channels of other groups",)
    assert found["8 outputs"] == ("2 rows of 4 lose equally many",)


def test_an_unknown_layer(structure: Structure) -> None:
    with pytest.raises(prunus.PrunusError, match=r"'blocks.1.dwon' in this model; similar: blocks.1.down"):
        structure.why("blocks.1.dwon")


def test_on_the_command_line() -> None:
    source = "tests.structure.test_why:built_for_the_command_line"
    result = CliRunner().invoke(app, ["inspect", source, "--why", "a", "--why", "b"])
    assert result.exit_code == 0, result.output
    assert "\n\na\n  6 outputs: can be removed, as units of group 'a'\n    read by b\n" in result.stdout
    assert "\n\nb\n  2 outputs: held; each is part of the model's output\n" in result.stdout
    assert "groups of channels" not in result.stdout
    result = CliRunner().invoke(app, ["inspect", source, "--why", "c"])
    assert result.exit_code == 1


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def built_for_the_command_line() -> tuple[nn.Module, Tensor]:
    return Small().eval(), torch.randn(2, 4)
