"""The table of layers: what it lists, how it is written, read and edited, and what a plan makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError
from prunus.structure import LayerRow
from tests.allocation.nets import network


@pytest.fixture(scope="module")
def structure() -> prunus.Structure:
    torch.manual_seed(0)
    return prunus.analyze(*network("residual"))


def cells(table: prunus.LayerTable) -> list[tuple[Any, ...]]:
    return [(row.name, row.channels, row.kept, row.group) for row in table]


def test_a_row_is_named_by_the_layer_or_where_several_meet(structure: prunus.Structure) -> None:
    assert cells(structure.layers()) == [("add", 8, None, "add"), ("conv1", 12, None, "conv1")]
    attention = prunus.analyze(*network("packed attention")).layers()
    assert [row.name for row in attention] == [
        "add",
        "qkv@scaled_dot_product_attention",
        "qkv[rows]",
        "qkv@linear_1",
    ]
    grouped = prunus.analyze(*network("grouped")).layers()
    assert [(row.name, row.channels) for row in grouped] == [("0", 3), ("2.conv2d_1[rows]", 4), ("2", 16)]


def test_names_are_told_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 9) for _ in range(4))
            self.head = nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x) + self.b(x)) + self.head((self.c(x) * self.d(x)).relu())

    table = prunus.analyze(Twice().eval(), torch.randn(2, 4)).layers()
    assert len({row.name for row in table}) == len(table) >= 1


def test_csv_there_and_back(structure: prunus.Structure, tmp_path: Path) -> None:
    table = structure.layers()
    table["conv1"].kept = 7
    text = table.to_csv(tmp_path / "layers.csv")
    assert text == "name,channels,kept,group\nadd,8,,add\nconv1,12,7,conv1\n"
    assert (tmp_path / "layers.csv").read_text() == text
    assert cells(prunus.LayerTable.from_csv(tmp_path / "layers.csv")) == cells(table)


def test_names_with_commas_and_quotes_survive(tmp_path: Path) -> None:
    table = prunus.LayerTable([LayerRow('a,"b"', 4, 2, "a\nb")])
    table.to_csv(tmp_path / "t.csv")
    assert cells(prunus.LayerTable.from_csv(tmp_path / "t.csv")) == cells(table)


def test_what_a_spreadsheet_saves_is_read(tmp_path: Path) -> None:
    """Another order of columns, a further one, a mark at the start, other ends of lines, spaces."""
    text = "group,kept,note,channels,name\r\nadd, 4 ,mine,8,add\r\nconv1,,,12,conv1\r\n"
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    table = prunus.LayerTable.from_csv(tmp_path / "t.csv")
    assert cells(table) == [("add", 8, 4, "add"), ("conv1", 12, None, "conv1")]


def test_a_table_without_rows_is_one(tmp_path: Path) -> None:
    prunus.LayerTable([]).to_csv(tmp_path / "t.csv")
    assert len(prunus.LayerTable.from_csv(tmp_path / "t.csv")) == 0


def test_json_lists_the_rows(structure: prunus.Structure, tmp_path: Path) -> None:
    text = structure.layers().to_json(tmp_path / "layers.json")
    assert (tmp_path / "layers.json").read_text() == text
    assert json.loads(text)[0] == {"name": "add", "channels": 8, "kept": None, "group": "add"}


def test_it_prints_as_a_table(structure: prunus.Structure) -> None:
    table = structure.layers()
    table["add"].kept = 3
    assert [line.split() for line in str(table).splitlines()] == [
        ["name", "channels", "kept", "group"],
        ["-----", "--------", "----", "-----"],
        ["add", "8", "3", "add"],
        ["conv1", "12", "conv1"],
    ]


def test_scores_decide_which_and_the_table_how_many(structure: prunus.Structure) -> None:
    table = structure.layers()
    table["conv1"].kept = 5
    made = prunus.plan(structure, method="l1", table=table)
    assert {name: len(keep) for name, keep in made.keep.items()} == {"conv1": 5} and made.method == "l1"
    assert made.keep == prunus.plan(structure, method="l1", ratio={"conv1": 7 / 12}).keep
    table["add"].kept = 8
    assert prunus.plan(structure, method="l1", table=table).keep == made.keep
    table["add"].kept = 2
    model, x = network("residual")
    result = prunus.compress(model, x, table=table)
    assert result.model.get_parameter("conv1.weight").shape == (5, 2, 3, 3)


def test_a_table_that_says_nothing_is_refused(structure: prunus.Structure) -> None:
    with pytest.raises(ConfigError, match="the table says nothing: fill in `kept`"):
        prunus.plan(structure, table=structure.layers())
    table = structure.layers()
    table["conv1"].kept = 12
    assert prunus.plan(structure, table=table).keep == {}


def test_groups_that_are_tied_follow() -> None:
    structure = prunus.analyze(*network("packed attention"), keep_class=True)
    table = structure.layers()
    rows = [row for row in table if row.name.startswith("qkv@")]
    rows[0].kept = 8
    made = prunus.plan(structure, table=table)
    assert {name: len(keep) for name, keep in made.keep.items()} == {row.group: 8 for row in rows}
    rows[1].kept = 12
    with pytest.raises(ConfigError, match=r"these must keep equally many per row: 2 in qkv.*, 3 in qkv"):
        prunus.plan(structure, table=table)


def test_rows_have_to_be_filled_evenly() -> None:
    structure = prunus.analyze(*network("grouped"))
    table = structure.layers()
    table["2"].kept = 7
    with pytest.raises(ConfigError, match="2: 7 channels cannot be spread over 4 rows; keep 4 or 8"):
        prunus.plan(structure, table=table)
    table["2"].kept = 8
    assert len(prunus.plan(structure, table=table).keep["2"]) == 8


def refusal(structure: prunus.Structure, *rows: LayerRow) -> str:
    with pytest.raises(ConfigError) as caught:
        prunus.plan(structure, table=prunus.LayerTable(rows))
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, -1, 13, 2.0, "5", True])
def test_a_number_that_does_not_fit_names_its_row(structure: prunus.Structure, kept: Any) -> None:
    said = refusal(structure, LayerRow("conv1", 12, kept, "conv1"))
    assert said == f"the table does not fit: row 'conv1': kept={kept!r}; say a whole number, 1 to 12"


def test_a_table_of_another_model_is_refused(structure: prunus.Structure) -> None:
    assert refusal(
        structure,
        LayerRow("conv9", 4, 2, "conv9"),
        LayerRow("head", 5, 2, "head"),
        LayerRow("conv1", 16, 2, "conv1"),
        LayerRow("add", 8, 2, "add"),
        LayerRow("stem", 8, 3, "add"),
    ) == (
        "the table does not fit: row 'conv9': this model has no group 'conv9' that can be pruned; "
        "row 'head': this model has no group 'head' that can be pruned; "
        "row 'conv1': it has 12 channels, not 16; row 'stem': group 'add' has two rows"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no table of layers: it has no column name, channels, kept, group"),
        ("name;channels\nconv1;12\n", "is no table of layers: it has no column"),
        ("name,channels,kept,group\nconv1,12,half,conv1\n", r"line 2 \(conv1\): kept is 'half', not a whole number"),
        ("name,channels,kept,group\nadd,,3,add\n", r"line 2 \(add\): channels is empty"),
        ("name,channels,kept,group\nadd,8,2.5,add\n", r"line 2 \(add\): kept is '2\.5', not a whole number"),
        ("name,channels,kept,group\nadd,8\n", None),
    ],
)  # fmt: skip
def test_what_is_no_table(tmp_path: Path, text: str, said: str | None) -> None:
    (tmp_path / "t.csv").write_text(text)
    if said is None:  # a line that was cut off leaves its cells empty
        assert prunus.LayerTable.from_csv(tmp_path / "t.csv")["add"].kept is None
        return
    with pytest.raises(ConfigError, match=said):
        prunus.LayerTable.from_csv(tmp_path / "t.csv")


def test_files_that_are_not_there(tmp_path: Path, structure: prunus.Structure) -> None:
    with pytest.raises(ConfigError, match="no table at"):
        prunus.LayerTable.from_csv(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="cannot be written"):
        structure.layers().to_csv(tmp_path / "none" / "t.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"b\.csv is no table: it is not text$"):
        prunus.LayerTable.from_csv(tmp_path / "b.csv")


def test_an_unknown_row_is_named(structure: prunus.Structure) -> None:
    with pytest.raises(ConfigError, match="no row 'conv7'; there are add, conv1"):
        structure.layers()["conv7"]
