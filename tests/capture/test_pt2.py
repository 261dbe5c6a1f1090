"""Exported programs and .pt2 files: the same graph as from the module, and nothing in a file is ever run."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from prunus.capture import architecture_hash, capture
from prunus.errors import CaptureError, ConfigError, SourceError
from prunus.inputs import Inputs
from tests.capture.archives import Marker, edit_json, rewrite, same, set_everywhere
from tests.capture.running import ConvNet, TiedLanguageModel, assert_same, run_graph

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def exported(model: nn.Module, dynamic: bool = True) -> ExportedProgram:
    return torch.export.export(model.eval(), (X,), dynamic_shapes={"x": {0: Dim.AUTO}} if dynamic else None)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    torch.export.save(exported(ConvNet()), path)
    return path


def test_a_file_is_the_same_as_its_module(tmp_path: Path) -> None:
    model = ConvNet().eval()
    torch.export.save(exported(model), tmp_path / "model.pt2")
    for source in (str(tmp_path / "model.pt2"), tmp_path / "model.pt2"):
        captured = capture(source)
        assert captured.model is None and captured.batch == 2 and captured.static_reason is None
        assert architecture_hash(captured) == architecture_hash(capture(model, X))
        other = torch.randn(5, 3, 8, 8)
        assert_same(run_graph(captured, Inputs((other,))), model(other))


def test_a_program_stays_as_it_is() -> None:
    model = ConvNet()
    program = exported(model)
    before, names = str(program.graph), [node.name for node in program.graph.nodes]
    captured = capture(program, X[:1])
    assert str(program.graph) == before
    captured.graph.erase_node(captured.graph.find_nodes(op="output")[0])
    assert [node.name for node in program.graph.nodes] == names
    assert all(
        captured.tensors[name] is program.state_dict[captured.names[name]] for name in captured.tensors
    )


def test_tied_weights_of_a_file_are_one_tensor(tmp_path: Path) -> None:
    model = TiedLanguageModel().eval()
    ids = torch.zeros(2, 5, dtype=torch.long)
    torch.export.save(torch.export.export(model, (), {"ids": ids}), tmp_path / "model.pt2")
    captured = capture(tmp_path / "model.pt2")
    assert captured.aliases == {"embed.weight": ("head.weight",)}
    assert "head.weight" not in captured.names.values()
    assert captured.batch is None and "fixed batch" in str(captured.static_reason)
    assert_same(run_graph(captured, captured.example)["logits"], model(ids)["logits"])


def test_a_functional_program_keeps_its_writes() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x + self.count

    program = torch.export.export(Counter(), (torch.zeros(2, 3),)).run_decompositions()
    assert len(program.graph_signature.output_specs) == 2, "the changed buffer is an output of the program"
    captured = capture(program)
    assert len(captured.graph.output_node().args[0]) == captured.out_spec.num_leaves == 1
    assert_same(run_graph(captured, captured.example), torch.ones(2, 3))
    buffer = next(captured.tensors[name] for name in captured.tensors)
    assert_same(buffer, torch.ones(3))


def test_examples_of_another_batch_size_are_brought_to_the_programs() -> None:
    captured = capture(exported(ConvNet()), torch.randn(5, 3, 8, 8))
    assert captured.example.args[0].shape[0] == 5
    assert captured.run_inputs.args[0].shape[0] == captured.batch == 2
    assert torch.equal(captured.run_inputs.args[0], captured.example.args[0][:2])


def test_keywords_are_brought_into_the_programs_order() -> None:
    ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5)
    program = torch.export.export(TiedLanguageModel().eval(), (), {"ids": ids, "mask": mask})
    captured = capture(program, {"mask": mask, "ids": ids})
    assert list(captured.example.kwargs) == ["ids", "mask"]


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.randn(2, 3, 9, 8), ["dim 2 of x is 9", "expected 8"]),
        (torch.randn(2, 3, 8), ["x is (2, 3, 8)"]),
        (X.double(), ["float64", "float32"]),
        ((X, X), ["form"]),
        ({"y": X}, ["form"]),
    ],
)
def test_examples_that_do_not_fit_a_program(example: Any, words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(exported(ConvNet()), example)
    assert all(word in str(caught.value) for word in words)


def test_a_program_without_examples_needs_some() -> None:
    program = exported(ConvNet())
    program.example_inputs = None
    with pytest.raises(ConfigError, match="example_inputs"):
        capture(program)
    assert capture(program, X).batch == 2


def test_a_program_in_training_mode_is_refused() -> None:
    program = torch.export.export(ConvNet().train(), (X,))
    with pytest.raises(CaptureError, match=r"training mode \(batch_norm"):
        capture(program)


def test_a_norm_without_statistics_is_no_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert capture(torch.export.export(model, (X,))).batch is None


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(ConvNet(), path)
    with pytest.raises(SourceError) as caught:
        capture(path, X)
    assert "weights_only=True" in str(caught.value) and "torch.export.save" in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "text.pt2").write_text("not a model")
    (tmp_path / "model.txt").write_text("not a model")
    for name, words in [
        ("none.pt2", "no file"),
        ("folder.pt2", "not a file"),
        ("text.pt2", "not a .pt2 file"),
        ("model.txt", "not a .pt2 file"),
    ]:
        with pytest.raises(SourceError, match=words):
            capture(tmp_path / name, X)


def test_rewriting_alone_is_no_reason_to_refuse(saved: Path) -> None:
    rewrite(saved, same)
    assert capture(saved).batch == 2


def test_a_pickle_in_the_example_inputs_is_not_run(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    harmful = io.BytesIO()
    torch.save(((Marker(mark),), {}), harmful)
    rewrite(saved, lambda name, content: harmful.getvalue() if "sample_inputs" in name else content)
    with pytest.raises(SourceError, match="example inputs"):
        capture(saved)
    assert not mark.exists()


def test_a_pickled_weight_is_not_run(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    harmful = pickle.dumps(Marker(mark))
    config = edit_json("weights_config", set_everywhere("use_pickle", True))
    rewrite(saved, lambda name, content: harmful if "weights/weight_" in name else config(name, content))
    with pytest.raises(SourceError, match="pickled tensor"):
        capture(saved)
    assert not mark.exists()


def test_a_pickled_object_is_not_run(saved: Path) -> None:
    rewrite(saved, edit_json("weights_config", set_everywhere("path_name", "opaque_obj_0")))
    with pytest.raises(SourceError, match="pickled object"):
        capture(saved)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('pathlib').Path('{mark}').touch()",
        "Symbol('s0', **__import__('os').environ)",
        "open('{mark}', 'w')",
        "Symbol('s0').func('x')",
        "[print() for _ in (1,)]",
        "Symbol(f'x')",
        "lambda: 1",
    ],
)
def test_an_expression_is_not_run(saved: Path, tmp_path: Path, expression: str) -> None:
    mark = tmp_path / "mark"
    rewrite(saved, edit_json("models/", set_everywhere("expr_str", expression.format(mark=mark))))
    with pytest.raises(SourceError, match="expression"):
        capture(saved)
    assert not mark.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.aten.__class__.mro",
        "_operator.attrgetter",
        "#ext:x",
        "os.system",
        "torch.ops.aten.add.__init__",
        "torch.load",
    ],
)
def test_a_call_of_anything_but_operators_is_refused(saved: Path, target: str) -> None:
    rewrite(saved, edit_json("models/", set_everywhere("target", target)))
    with pytest.raises(SourceError, match="a call of"):
        capture(saved)


def test_compiled_code_is_refused(saved: Path) -> None:
    rewrite(saved, same, more={"data/aotinductor/model/code.so": b"\x7fELF"})
    with pytest.raises(SourceError, match="aotinductor"):
        capture(saved)


def test_weights_of_the_old_pickled_form_are_refused(saved: Path) -> None:
    rewrite(saved, same, more={"data/weights/model.pt": b"\x80\x02."})
    with pytest.raises(SourceError, match=r"weights/model\.pt"):
        capture(saved)


def test_a_class_to_import_is_refused(saved: Path) -> None:
    enum = json.dumps({"__enum__": True, "fqn": "antigravity:X", "name": "Y"})
    rewrite(saved, edit_json("models/", set_everywhere("in_spec", enum)))
    with pytest.raises(SourceError, match="class to import"):
        capture(saved)


def test_a_compressed_archive_is_refused(saved: Path) -> None:
    rewrite(saved, same, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(SourceError, match="compressed"):
        capture(saved)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        model = next(name for name in archive.namelist() if "models/model.json" in name)
        content = archive.read(model)
    rewrite(saved, same, more={model.split("/", 1)[1]: content})
    with pytest.raises(SourceError):
        capture(saved)


def test_a_damaged_file_is_named(saved: Path) -> None:
    rewrite(saved, lambda name, content: b"{" if name.endswith("models/model.json") else content)
    with pytest.raises(SourceError, match="not JSON"):
        capture(saved)
    saved.write_bytes(saved.read_bytes()[:-2000])
    with pytest.raises(SourceError, match=r"model\.pt2"):
        capture(saved)


def test_guards_of_a_file_are_dropped(saved: Path) -> None:
    from prunus.capture.pt2 import load_program

    rewrite(saved, edit_json("models/", set_everywhere("guards_code", ["__import__('os').abort()"])))
    program = load_program(saved)
    assert program.module()(X).shape == (2, 5)
