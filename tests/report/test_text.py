"""What a person reads: the whole text of a small report, and the rules for rows."""

import dataclasses
import io

import pytest
from rich.console import Console

from prunus.report import LayerReport, Report, Totals, print_report
from prunus.report.rows import layer_rows


def layer(path: str, before: tuple[int, ...], after: tuple[int, ...] | None, reason: str | None = None):
    def count(shape):
        total = 1
        for size in shape:
            total *= size
        return total

    kind = {4: "conv2d", 2: "linear", 1: "batch_norm"}[len(before)]
    return LayerReport(path, kind, before, after, count(before), count(after) if after else 0, reason)


@pytest.fixture
def report() -> Report:
    layers = (
        layer("stem", (16, 3, 3, 3), (8, 3, 3, 3)),
        layer("blocks.0.conv", (16, 16, 3, 3), (10, 8, 3, 3)),
        layer("blocks.0.norm", (16,), (10,)),
        layer("blocks.1.conv", (16, 16, 3, 3), (10, 8, 3, 3)),
        layer("blocks.1.norm", (16,), (10,)),
        layer("branch", (16, 16, 1, 1), None),
        layer("head", (10, 16), (10, 16), "is part of the model's output (at output)"),
    )
    return Report(
        form="graph",
        form_reason="net.py, line 7, in forward: y = x.view(4, 16)",
        method="l2",
        target={"macs": 0.5},
        before=Totals(5_456, 1_000_000, 21_824, 2.5),
        after=Totals(1_836, 400_000, 7_344, 1.25),
        groups=(),
        layers=layers,
        verification={
            "max_relative_error": 3.2e-16,
            "tolerance": 1e-9,
            "dtype": "float64",
            "inputs_checked": 2,
            "passed": True,
            "remarks": ["outputs are large"],
        },
        unknown_operators={"topk_1": "aten.topk.default", "topk_2": "aten.topk.default"},
        latency_threads=1,
        versions={"prunus": "0.1.0", "torch": "2.15.0", "python": "3.11.7"},
        seed=3,
    )


GOLDEN = """\
Pruned by l2 to macs=0.5.

                           before    after  kept
----------------------  ---------  -------  ----
parameters                  5,456    1,836  33.7%
MACs                    1,000,000  400,000  40.0%
bytes                      21,824    7,344  33.7%
latency (ms), 1 thread       2.50     1.25  50.0%

Model: a graph module with layers under their original names, because net.py, line 7, in forward: y = x.view(4, 16)
Verified: differs from the masked original by 3.2e-16 of the outputs' scale at most (allowed 1e-09; float64, 2 inputs).
Note: outputs are large

No rule for aten.topk.default (at topk_1, topk_2): what touches it is held.

layer              kind        weight before    weight after    parameters   kept  note
-----------------  ----------  ---------------  --------------  ----------  -----  ----
stem               conv2d      16 x 3 x 3 x 3   8 x 3 x 3 x 3          216  50.0%
blocks.{0-1}.conv  conv2d      16 x 16 x 3 x 3  10 x 8 x 3 x 3         720  31.2%  each of 2
blocks.{0-1}.norm  batch_norm  16               10                      10  62.5%  each of 2
branch             conv2d      16 x 16 x 1 x 1  gone                     0   0.0%
head               linear      10 x 16          same                   160         left alone: is part of the model's output (at output)

7 layers: 5 smaller, 1 gone, 1 left alone.
prunus 0.1.0, torch 2.15.0, Python 3.11.7, seed 3"""


def test_the_whole_text(report: Report) -> None:
    assert str(report) == GOLDEN


def test_own_class_and_no_verification_are_said(report: Report) -> None:
    text = str(dataclasses.replace(report, form="class", form_reason="", verification=None))
    assert "Model: your own class with smaller parameters." in text
    assert "Not verified: verification was turned off." in text
    assert "Verified" not in text


def test_what_was_not_measured_has_no_row(report: Report) -> None:
    slim = dataclasses.replace(
        report,
        before=dataclasses.replace(report.before, latency_ms=None),
        after=dataclasses.replace(report.after, latency_ms=None),
    )
    assert "latency" not in str(slim)
    after_only = dataclasses.replace(report, before=dataclasses.replace(report.before, latency_ms=None))
    (row,) = [line.split() for line in str(after_only).splitlines() if line.startswith("latency")]
    assert row[-2:] == ["-", "1.25"]


def rows_of(report: Report, *layers: LayerReport) -> list[tuple[str, int]]:
    return [(row.path, row.layers) for row in layer_rows(dataclasses.replace(report, layers=layers))]


def test_blocks_that_differ_keep_their_rows(report: Report) -> None:
    shrunk, other = ((8, 8), (4, 8)), ((8, 8), (5, 8))
    assert rows_of(report, layer("b.0.fc", *shrunk), layer("b.1.fc", *other), layer("b.2.fc", *other)) == [
        ("b.0.fc", 1),
        ("b.{1-2}.fc", 2),
    ]
    # another layer inside, a gap in the numbers, another reason, another parent
    assert rows_of(report, layer("b.0.fc", *shrunk), layer("b.1.fc", *shrunk), layer("b.1.in", *shrunk)) == [
        ("b.0.fc", 1),
        ("b.1.fc", 1),
        ("b.1.in", 1),
    ]
    assert rows_of(report, layer("b.0.fc", *shrunk), layer("b.2.fc", *shrunk)) == [
        ("b.0.fc", 1),
        ("b.2.fc", 1),
    ]
    same = (8, 8), (8, 8)
    assert rows_of(report, layer("b.0.fc", *same, "held here"), layer("b.1.fc", *same, "held there")) == [
        ("b.0.fc", 1),
        ("b.1.fc", 1),
    ]
    assert rows_of(report, layer("a.0.fc", *shrunk), layer("b.1.fc", *shrunk)) == [
        ("a.0.fc", 1),
        ("b.1.fc", 1),
    ]


def test_nested_blocks_are_taken_together_from_the_inside(report: Report) -> None:
    shape = (8, 8), (4, 8)
    layers = [layer(f"stages.{i}.blocks.{j}.fc", *shape) for i in range(3) for j in range(4)]
    assert rows_of(report, *layers) == [("stages.{0-2}.blocks.{0-3}.fc", 12)]
    assert rows_of(report, *layers, layer("stages.2.blocks.4.fc", *shape)) == [
        ("stages.{0-1}.blocks.{0-3}.fc", 8),
        ("stages.2.blocks.{0-4}.fc", 5),
    ]


def test_numbers_alone_and_names_that_end_in_digits(report: Report) -> None:
    shape = (8, 8), (4, 8)
    assert rows_of(report, layer("0", *shape), layer("1", *shape), layer("3", *shape)) == [
        ("{0-1}", 2),
        ("3", 1),
    ]
    assert rows_of(report, layer("fc1", *shape), layer("fc2", *shape)) == [("fc1", 1), ("fc2", 1)]
    named = [layer(f"enc.layer_{i}.mlp.{j}", *shape) for i in range(9, 12) for j in (0, 3)]
    assert rows_of(report, *named) == [("enc.layer_{9-11}.mlp.0", 3), ("enc.layer_{9-11}.mlp.3", 3)]
    padded = [layer(f"b.{i:02}.fc", *shape) for i in (8, 9, 10)]
    assert rows_of(report, *padded) == [("b.0{8-9}.fc", 2), ("b.10.fc", 1)]


@pytest.mark.parametrize("width", [60, 90, 160])
def test_the_terminal_shows_what_matters_at_any_width(report: Report, width: int) -> None:
    out = io.StringIO()
    print_report(report, Console(file=out, width=width))
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    for said in (
        "40.0%",
        "blocks.{0-1}.conv",
        "10 x 8 x 3 x 3",
        "each of 2",
        "3.2e-16",
        "gone",
        "left alone",
    ):
        assert said in " ".join(text.split()), said
    assert ("batch_norm" in text) == (width == 160) and ("16 x 16 x 3 x 3" in text) == (width > 60)


def test_square_brackets_are_no_markup(report: Report) -> None:
    out = io.StringIO()
    print_report(dataclasses.replace(report, form_reason="net.py: x[red]"), Console(file=out, width=120))
    assert "x[red]" in out.getvalue()
