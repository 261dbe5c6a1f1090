"""Every command from the outside: what it prints, what it writes, how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import prunus
from prunus.artefact import load, load_weights
from prunus.cli.main import app
from prunus.plan import Plan
from tests.cli.nets import IMAGE, Net, Words

BUILD = "tests.cli.nets:build_with_inputs"
X = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))


def run(*words: Any, code: int = 0) -> Any:
    """Run the command line, and check how it ends."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed") / "out"
    run("compress", BUILD, "-o", folder, "--macs", "0.5")
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    torch.export.save(torch.export.export(Net().eval(), (X,)), path)
    return path


# --- inspect


def test_inspect_shows_the_groups() -> None:
    result = run("inspect", BUILD)
    assert f"{BUILD}: {sum(p.numel() for p in Net().parameters()):,} parameters" in result.stdout
    assert "MACs for one sample" in result.stdout
    assert "3 groups of channels: 2 can be pruned, 1 held" in result.stdout
    assert "is part of the model's output" in result.stdout
    assert "Analyzing the model" in result.stderr and "Analyzing" not in result.stdout


def test_inspect_a_program_and_a_saved_result(program: Path, compressed: Path) -> None:
    shown = run("inspect", program).stdout
    assert "2 can be pruned" in shown and "Takes one batch size only" in shown
    assert "2 can be pruned" in run("inspect", compressed).stdout


# --- compress


def test_compress_writes_a_result(compressed: Path) -> None:
    names = {"artefact.json", "model.pt2", "model.safetensors", "plan.json", "report.json"}
    assert {file.name for file in compressed.iterdir()} == names
    report = json.loads((compressed / "report.json").read_text())
    assert report["target"] == {"macs": 0.5} and report["method"] == "l2"
    assert report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    assert report["verification"]["passed"]
    assert load(compressed)(X).shape == (1, 5)


def test_compress_says_what_it_did(tmp_path: Path) -> None:
    result = run("compress", BUILD, "-o", tmp_path / "out", "--params", "0.5", "--no-verify")
    assert "Pruned by l2 to params=0.5 (global allocation)." in result.stdout
    assert "Not verified" in result.stdout and f"Saved to {tmp_path / 'out'}" in result.stdout
    for doing in ("Opening", "Analyzing the model", "Deciding what stays", "Cutting", "Writing"):
        assert f"{doing}" in result.stderr and f"{doing} " not in result.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["verification"] is None


def test_the_options_reach_the_plan(tmp_path: Path) -> None:
    options = ["--channels", "0.6", "--hold", "conv1", "--multiple-of", "4", "--method", "l1", "--seed", "7"]
    run("compress", BUILD, "-o", tmp_path / "out", *options)
    plan = Plan.load(tmp_path / "out" / "plan.json")
    assert plan.method == "l1" and plan.seed == 7 and plan.target == {"channels": 0.6}
    (group,) = plan.groups
    assert group.name == "conv2" and len(group.keep) % 4 == 0


def test_the_seed_reaches_a_method_that_draws(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(
            "plan",
            BUILD,
            "-o",
            tmp_path / f"{name}.json",
            "--channels",
            0.5,
            "--method",
            "random",
            "--seed",
            seed,
        )
    a, b, c = (Plan.load(tmp_path / f"{name}.json").keep for name in "abc")
    assert a == b != c


def test_compress_a_program_and_a_saved_result(program: Path, compressed: Path, tmp_path: Path) -> None:
    run("compress", program, "-o", tmp_path / "a", "--size", "0.5")
    assert load(tmp_path / "a")(X).shape == (1, 5)
    run("compress", compressed, "-o", tmp_path / "b", "--channels", "0.5")
    assert load(tmp_path / "b").conv1.out_channels < load(compressed).conv1.out_channels


def test_a_folder_is_replaced_only_on_demand(tmp_path: Path) -> None:
    run("compress", BUILD, "-o", tmp_path / "out", "--channels", "0.5", "--no-verify")
    first = (tmp_path / "out" / "plan.json").read_text()
    result = run("compress", BUILD, "-o", tmp_path / "out", "--channels", "0.25", "--no-verify", code=1)
    assert "error:" in result.stderr and "exists already" in result.stderr
    assert "Analyzing" not in result.stderr, "found after the work instead of before"
    assert (tmp_path / "out" / "plan.json").read_text() == first
    run("compress", BUILD, "-o", tmp_path / "out", "--channels", "0.25", "--no-verify", "--overwrite")
    assert (tmp_path / "out" / "plan.json").read_text() != first


def test_onnx_is_written_on_demand(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run("compress", BUILD, "-o", tmp_path / "out", "--channels", "0.5", "--onnx")
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_keywords_and_dtypes_of_inputs(tmp_path: Path) -> None:
    shapes = ["--input", "2x7:int64", "--input", "mask=2x7:bool"]
    run("compress", "tests.cli.nets:Words", *shapes, "-o", tmp_path / "out", "--channels", "0.5")
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.ones(3, 7, dtype=torch.bool)
    assert load(tmp_path / "out")(ids, mask=mask).shape == (3, 7, 4)
    assert Words()(ids, mask=mask).shape == (3, 7, 4)


# --- plan and apply


def test_a_plan_applied_is_what_compress_does(compressed: Path, tmp_path: Path) -> None:
    result = run("plan", BUILD, "-o", tmp_path / "plan.json", "--macs", "0.5")
    assert "2 of 3 groups lose" in result.stdout
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads(
        (compressed / "plan.json").read_text()
    )
    run("apply", tmp_path / "plan.json", BUILD, "-o", tmp_path / "out")
    expected = load(compressed).state_dict()
    found = load(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_plan_knows_how_the_model_is_called(compressed: Path, tmp_path: Path) -> None:
    run("apply", compressed, "tests.cli.nets:build", "-o", tmp_path / "out", "--no-verify")
    assert Plan.load(tmp_path / "out" / "plan.json") == Plan.load(compressed / "plan.json")


def test_a_plan_with_trained_weights(compressed: Path, tmp_path: Path) -> None:
    net = Net()
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "net.pth")
    weights = ["--weights", tmp_path / "net.pth"]
    run("apply", compressed / "plan.json", "tests.cli.nets:build", "-o", tmp_path / "out", *weights)
    kept = Plan.load(compressed / "plan.json").keep["conv1"]
    saved = load_weights(tmp_path / "out" / "model.safetensors")
    assert torch.equal(saved["conv1.weight"], net.conv1.weight[list(kept)])


def test_a_plan_for_another_model(compressed: Path, tmp_path: Path) -> None:
    shapes = ["--input", "2x7:int64", "--input", "mask=2x7:bool"]
    result = run("apply", compressed, "tests.cli.nets:Words", *shapes, "-o", tmp_path / "out", code=1)
    assert "another architecture" in result.stderr and not (tmp_path / "out").exists()


def test_a_plan_is_replaced_only_on_demand(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("mine")
    command = ["plan", BUILD, "-o", tmp_path / "plan.json", "--macs", "0.5"]
    assert "exists already" in run(*command, code=1).stderr
    assert (tmp_path / "plan.json").read_text() == "mine"
    run(*command, "--overwrite")
    Plan.load(tmp_path / "plan.json")
    assert "is a folder" in run("plan", BUILD, "-o", tmp_path, "--macs", "0.5", code=1).stderr
    missing = tmp_path / "no" / "plan.json"
    assert "no folder" in run("plan", BUILD, "-o", missing, "--macs", "0.5", code=1).stderr


# --- what cannot be done


def test_a_target_out_of_reach(tmp_path: Path) -> None:
    result = run("compress", BUILD, "-o", tmp_path / "out", "--macs", "0.0001", code=1)
    assert "error: " in result.stderr and "cannot be reached" in result.stderr
    assert result.stdout == "" and not (tmp_path / "out").exists()


def test_inputs_that_do_not_fit() -> None:
    result = run("inspect", "tests.cli.nets:build", "--input", "1x4x12x12", code=1)
    assert "do not fit the model's forward" in result.stderr


def test_a_folder_that_is_no_result(tmp_path: Path) -> None:
    assert "no artefact.json" in run("inspect", tmp_path, code=1).stderr


# --- the table of layers


def test_a_table_is_listed_edited_and_applied(tmp_path: Path) -> None:
    table, plan, out = tmp_path / "layers.csv", tmp_path / "plan.json", tmp_path / "out"
    said = run("plan", BUILD, "--layers", table).stdout
    assert said == f"{table}: 2 rows. Fill in `kept`, and pass it with --edit.\n"
    assert table.read_text() == "name,channels,kept,group\nconv1,16,,conv1\nconv2,16,,conv2\n"
    table.write_text(table.read_text().replace("conv1,16,,", "conv1,16,5,"))
    assert "1 of 3 groups lose 11 of 32" in run("plan", BUILD, "-o", plan, "--edit", table).stdout
    run("apply", plan, BUILD, "-o", out)
    assert load(out).get_parameter("conv1.weight").shape[0] == 5


def test_a_table_that_does_not_fit_names_the_row(tmp_path: Path) -> None:
    table, plan = tmp_path / "layers.csv", tmp_path / "plan.json"
    table.write_text("name,channels,kept,group\nconv1,16,17,conv1\nconv2,16,x,conv2\n")
    assert "line 3 (conv2): kept is 'x'" in run("plan", BUILD, "-o", plan, "--edit", table, code=1).stderr
    table.write_text("name,channels,kept,group\nconv1,16,17,conv1\n")
    assert "row 'conv1': kept=17" in run("plan", BUILD, "-o", plan, "--edit", table, code=1).stderr
    assert "no table at" in run("plan", BUILD, "-o", plan, "--edit", tmp_path / "no.csv", code=1).stderr
    assert "exists already" in run("plan", BUILD, "--layers", table, code=1).stderr
    run("plan", BUILD, "--layers", table, "--overwrite")
    assert not plan.exists() and "conv1,16,,conv1" in table.read_text()


def test_a_missing_plan(tmp_path: Path) -> None:
    assert "no plan at" in run("apply", tmp_path / "p.json", BUILD, "-o", tmp_path / "out", code=1).stderr


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "net.pth")
    result = run("inspect", tmp_path / "net.pth", code=1)
    assert "pickle" in result.stderr and "torch.export.save" in result.stderr


# --- wrong use


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compress", BUILD, "-o", "out"], "exactly one of --channels, --params, --macs, --size"),
        (["compress", BUILD, "-o", "out", "--macs", "0.5", "--size", "0.5"], "got --macs and --size"),
        (["compress", BUILD, "-o", "out", "--macs", "1.5"], "1.5 is no fraction"),
        (["compress", BUILD, "-o", "out", "--macs", "0"], "0 is no fraction"),
        (["compress", BUILD, "-o", "out", "--macs", "half"], "--macs"),
        (["compress", BUILD, "--macs", "0.5"], "--output"),
        (
            ["compress", BUILD, "-o", "out", "--macs", "0.5", "--method", "l3"],
            "'l3' is none of bn_scale, dead, flap, geometric_median, hrank, l1, l2",
        ),
        (["compress", BUILD, "-o", "out", "--macs", "0.5", "--method", "index"], "'index' is none of"),
        (["compress", BUILD, "-o", "out", "--macs", "0.5", "--multiple-of", "0"], "--multiple-of"),
        (["plan", BUILD, "-o", "p.json"], "exactly one of"),
        (["plan", BUILD, "--macs", "0.5"], "give --output for a plan, or --layers without it"),
        (
            ["plan", BUILD, "--layers", "t.csv", "-o", "p.json"],
            "give --output for a plan, or --layers without it",
        ),
        (["plan", BUILD, "-o", "p.json", "--edit", "t.csv", "--macs", "0.5"], "leave the fractions out"),
        (["inspect"], "SOURCE"),
        (["inspect", "resnet18"], "is no kind of model"),
        (["inspect", "http://host/model"], "is no kind of model"),
        (["inspect", "tests.cli.nets:build"], "does not say how it is called"),
        (["inspect", "tests.cli.nets:build", "--input", "3,12,12"], "'3,12,12' is no shape"),
        (["inspect", "tests.cli.nets:build", "--input", "1x16:int65"], "'int65' in '1x16:int65' is none of"),
        (["inspect", "tests.cli.nets:build", "--input", "1x0"], "has 0 elements"),
        (["inspect", "tests.cli.nets:build", "--input", "99999x99999x99999"], "elements"),
        (["inspect", BUILD, "--input", "a=1x2", "--input", "a=1x2"], "a is given twice"),
        (["compress", BUILD, "-o", "out", "--macs", "0.5", "--pretrained"], "only timm: and torchvision:"),
        (["compress", "x.pt2", "-o", "out", "--macs", "0.5", "--weights", "w.pth"], "has its own weights"),
        (["compres"], "compress"),
    ],
)
def test_wrong_use(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words, code=2)
    assert said in " ".join(result.stderr.split()), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_defect_is_not_hidden_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*args: Any, **more: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("prunus.api.analyze", defect)
    result = CliRunner().invoke(app, ["inspect", BUILD])
    assert isinstance(result.exception, RuntimeError)


def test_the_version() -> None:
    assert run("--version").stdout == f"prunus {prunus.__version__}\n"


def test_the_demo_is_given_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Path] = []
    monkeypatch.setattr("prunus.cli.demo.run_demo", given.append)
    run("demo", "-o", tmp_path / "demo")
    run("demo")
    assert given == [tmp_path / "demo", Path("prunus-demo")]
