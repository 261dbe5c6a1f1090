"""Models by a word: zoos, the user's own code, files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer
from torch import nn
from torch.export import ExportedProgram

from prunus.cli import sources
from prunus.cli.shapes import inputs_of
from prunus.cli.sources import note_random_weights, open_source
from prunus.errors import SourceError
from tests.cli.nets import IMAGE, Net

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def shape_of(opened: sources.Opened) -> tuple[int, ...]:
    (image,) = opened.example_inputs.args
    return tuple(image.shape)


# --- model zoos


def test_timm_says_its_input_size() -> None:
    pytest.importorskip("timm")
    opened = open_source("timm:test_vit")
    assert isinstance(opened.model, nn.Module) and not opened.model.training
    assert shape_of(opened) == (1, 3, 160, 160) and opened.random_weights


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("squeezenet1_1", (1, 3, 224, 224)),
        ("efficientnet_b1", (1, 3, 240, 240)),
        ("r3d_18", (1, 3, 16, 112, 112)),
    ],
)
def test_torchvision_says_its_input_size(name: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip("torchvision")
    assert shape_of(open_source(f"torchvision:{name}")) == shape


@pytest.mark.parametrize("source", ["timm:resnet18x", "torchvision:resnet18x"])
def test_a_misspelt_name_gets_a_hint(source: str) -> None:
    pytest.importorskip(source.partition(":")[0])
    with pytest.raises(SourceError, match=r"has no model 'resnet18x'\. Did you mean .*resnet18"):
        open_source(source)


@pytest.mark.parametrize("source", ["timm:resnet18", "torchvision:resnet18"])
def test_a_zoo_that_is_not_installed(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"pip install 'prunus\[vision\]'"):
        open_source(source)


def test_weights_are_fetched_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    asked: list[bool] = []

    def create(name: str, pretrained: bool) -> nn.Module:
        asked.append(pretrained)
        if pretrained:
            raise OSError("no network")
        return Net()

    monkeypatch.setattr(timm, "create_model", create)
    open_source("timm:resnet18", ["1x3x12x12"])
    with pytest.raises(SourceError, match="cannot be built: OSError: no network"):
        open_source("timm:resnet18", pretrained=True)
    assert asked == [False, True]


def test_random_weights_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    note_random_weights(sources.Opened("timm:x", Net(), random_weights=True))
    assert "timm:x has random weights" in capsys.readouterr().err
    note_random_weights(sources.Opened("timm:x", Net(), random_weights=False))
    assert capsys.readouterr().err == ""


# --- the user's own code


def test_what_a_factory_may_give() -> None:
    pair = open_source("tests.cli.nets:build_with_inputs")
    assert isinstance(pair.model, Net) and pair.example_inputs.shape == IMAGE
    for source in ("tests.cli.nets:build", "tests.cli.nets:Net", "tests.cli.nets:Zoo.net"):
        opened = open_source(source, ["1x3x12x12"])
        assert isinstance(opened.model, Net) and shape_of(opened) == IMAGE
        assert not opened.random_weights


def test_given_shapes_win() -> None:
    assert shape_of(open_source("tests.cli.nets:build_with_inputs", ["4x3x20x20"])) == (4, 3, 20, 20)


def test_the_seed_decides_on_random_weights() -> None:
    first, again, other = (open_source("tests.cli.nets:build", ["1"], seed=seed).model for seed in (3, 3, 4))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("tests.cli.netz:build", r"There is no module tests\.cli\.netz"),
        ("nowhere_at_all:build", r"There is no module nowhere_at_all.*nor in|neither installed nor in"),
        ("tests.cli.nets:bild", r"has no bild\. Did you mean build"),
        ("tests.cli.nets:build_number", "gives a int; expected a torch.nn.Module"),
        ("tests.cli.nets:not_callable", "gives a int"),
        ("tests.cli.nets:build_broken", r"ValueError: the data is not there\n  at .*nets\.py:\d+: raise"),
    ],
)
def test_what_a_factory_may_not_do(source: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_source(source, ["1x3x12x12"])


def test_errors_inside_a_module_are_told_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    (tmp_path / "divides.py").write_text("x = 1\nx / 0\n")
    with pytest.raises(
        SourceError, match=r"needs_more:f cannot be imported: No module named 'not_installed_here'"
    ):
        open_source("needs_more:f")
    with pytest.raises(SourceError, match=r"ZeroDivisionError.*\n  at .*divides\.py:2: x / 0"):
        open_source("divides:f")


def test_modules_of_the_current_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(3, 4)\n")
    program = Path(sys.executable).parent / "prunus"
    run = subprocess.run(
        [program, "inspect", "mine:build", "--input", "2x3"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0 and "mine:build: 16 parameters" in run.stdout, run.stderr


# --- files


def test_a_program_brings_its_inputs(tmp_path: Path) -> None:
    program = torch.export.export(Net().eval(), (torch.randn(IMAGE),))
    torch.export.save(program, tmp_path / "net.pt2")
    opened = open_source(str(tmp_path / "net.pt2"))
    assert isinstance(opened.model, ExportedProgram) and opened.example_inputs is None
    program.example_inputs = None
    torch.export.save(program, tmp_path / "bare.pt2")
    with pytest.raises(typer.BadParameter, match="does not say how it is called"):
        open_source(str(tmp_path / "bare.pt2"))
    assert shape_of(open_source(str(tmp_path / "bare.pt2"), ["1x3x12x12"])) == IMAGE


def test_weights_are_loaded(tmp_path: Path) -> None:
    net = Net()
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    opened = open_source("tests.cli.nets:build", ["1x3x12x12"], weights=tmp_path / "net.safetensors")
    assert torch.equal(opened.model.conv2.weight, net.conv2.weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("head.bias"), r"lacks head\.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "has extra, which the model has not"),
        (lambda state: state.update({"head.bias": torch.zeros(7)}), r"head\.bias is \(7,\), expected \(5,\)"),
    ],
)
def test_weights_that_do_not_fit(change: Any, said: str, tmp_path: Path) -> None:
    state = Net().state_dict()
    change(state)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(SourceError, match=rf"net\.pth does not fit the model: .*{said}"):
        open_source("tests.cli.nets:build", ["1x3x12x12"], weights=tmp_path / "net.pth")


# --- shapes


def test_shapes_and_dtypes() -> None:
    inputs = inputs_of(["2x3", "4:int64", "mask=2x2:bool", "half=3:float16"])
    x, ids = inputs.args
    assert x.shape == (2, 3) and x.dtype == torch.float32 and x.std() > 0
    assert ids.dtype == torch.int64 and set(ids.tolist()) <= {0, 1}
    assert inputs.kwargs["mask"].dtype == torch.bool and bool(inputs.kwargs["mask"].all())
    assert inputs.kwargs["half"].dtype == torch.float16
    assert torch.equal(inputs_of(["2x3"], seed=1).args[0], inputs_of(["2x3"], seed=1).args[0])
