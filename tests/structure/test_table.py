"""How a structure reads."""

import torch
from torch import Tensor, nn

from prunus.capture import capture
from prunus.structure import Structure, find_structure
from prunus.structure.table import aligned, by_operator, prunable_share


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """A residual width, inner widths, and two outputs, one of them sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.side = nn.Linear(8, 6)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return self.head(x), torch.sort(self.side(x), dim=1)[0]


def structure() -> Structure:
    return find_structure(capture(Net().eval(), torch.randn(2, 3, 8, 8)))


GOLDEN = """\
5 groups of channels: 3 can be pruned, 2 held. 99.6% of the parameters are in tensors that can shrink.

group           units  constraint  made by -> used by
--------------  -----  ----------  ------------------
blocks.add          8              stem, blocks.0.conv2, blocks.1.conv2 -> blocks.{0.conv1, 0.bn2, 1.conv1} and 3 more
blocks.0.conv1     12              itself -> blocks.0.{bn1, conv2}
blocks.1.conv1     12              itself -> blocks.1.{bn1, conv2}

held group  units  why
----------  -----  ---
side            6  is ordered or counted by aten.sort.default (at sort)
head           10  is part of the model's output '0' (at output)"""


def test_the_whole_text() -> None:
    found = structure()
    share = prunable_share(found)
    # all but the two biases of what is held
    total = sum(p.numel() for p in Net().parameters())
    assert share == (total - 6 - 10) / total
    assert str(found) == GOLDEN.replace("99.6%", f"{share:.1%}")


def test_every_group_is_named_in_full() -> None:
    found = structure()
    for group in found.groups:
        assert any(line.split("  ")[0] == group.name for line in str(found).splitlines())


def test_operators_without_a_rule_are_named_once() -> None:
    found = structure()
    assert "No rule" not in str(found)
    found.labels.unknown.update({f"erfinv_{i}": "aten.erfinv.default" for i in range(5)})
    (line,) = [line for line in str(found).splitlines() if line.startswith("No rule")]
    assert line == (
        "No rule for aten.erfinv.default (at erfinv_0, erfinv_1, erfinv_2 and 2 more): "
        "what touches it is held."
    )
    assert by_operator({}) == []


def test_a_model_without_groups() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu()

    found = find_structure(capture(Plain(), torch.randn(2, 4)))
    assert str(found).startswith("0 groups of channels: 0 can be pruned, 0 held. 0.0%")


def test_columns_are_aligned() -> None:
    assert aligned(
        [("name", "size", "note"), ("a", "1,000", ""), ("long name", "5", "some text")], right=(1,)
    ) == [
        "name        size  note",
        "---------  -----  ----",
        "a          1,000",
        "long name      5  some text",
    ]
