"""What is saved loads in a process that has never seen the model, and is the same model."""

import collections
import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor, nn

from prunus.artefact import load, load_weights, save
from prunus.artefact.program import plain
from prunus.errors import ArtefactError
from tests.artefact.results import BatchOfTwo, ConvNet, Named, SmallResult, Tied, made

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(10).reshape(2, 5)


@pytest.fixture(scope="module")
def conv_net() -> SmallResult:
    torch.manual_seed(0)
    return made(ConvNet(), IMAGE)


@pytest.fixture(scope="module")
def saved(conv_net: SmallResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(conv_net, tmp_path_factory.mktemp("saved") / "out")


def test_the_files_and_what_is_said_about_them(conv_net: SmallResult, saved: Path) -> None:
    names = {"artefact.json", "model.pt2", "model.safetensors", "plan.json", "report.json"}
    assert {file.name for file in saved.iterdir()} == names
    about = json.loads((saved / "artefact.json").read_text())
    assert set(about["files"]) == names - {"artefact.json"}
    assert about["files"]["model.pt2"]["size_bytes"] == (saved / "model.pt2").stat().st_size
    assert about["original_architecture"] == conv_net.plan.architecture != about["architecture"]
    assert about["model_class"] == "ConvNet" and about["torch"] == torch.__version__
    assert about["batch"] == "dynamic" and about["batch_reason"] is None
    assert json.loads((saved / "plan.json").read_text())["architecture"] == conv_net.plan.architecture


def test_a_fresh_process_computes_the_same(conv_net: SmallResult, saved: Path, tmp_path: Path) -> None:
    images = torch.randn(3, 3, 8, 8)
    torch.save(images, tmp_path / "images.pth")
    code = (
        "import sys, torch; from prunus.artefact import load\n"
        "model = load(sys.argv[1])\n"
        "assert not any(name.startswith('tests') for name in sys.modules)\n"
        "out = model(torch.load(sys.argv[2] + '/images.pth'))\n"
        "torch.save((out.detach(), list(model.state_dict())), sys.argv[2] + '/out.pth')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(saved), str(tmp_path)], check=True, cwd=tmp_path)
    out, names = torch.load(tmp_path / "out.pth")
    torch.testing.assert_close(out, conv_net.model(images).detach())
    assert names == list(conv_net.model.state_dict())


def test_the_loaded_module_is_an_ordinary_one(conv_net: SmallResult, saved: Path) -> None:
    loaded = load(saved)
    assert type(loaded).__name__ == "LiftedConvNet" and not loaded.training
    assert isinstance(loaded.conv1, nn.Conv2d) and loaded.conv1.out_channels == 4
    assert isinstance(loaded.bn1, nn.BatchNorm2d) and isinstance(loaded.drop, nn.Dropout)
    flags = {name: parameter.requires_grad for name, parameter in loaded.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in conv_net.model.named_parameters()}
    assert flags["conv1.weight"] and not flags["fc.weight"]
    assert "shift" not in loaded.state_dict() and "shift" in dict(loaded.named_buffers())
    torch.testing.assert_close(loaded(image=IMAGE), conv_net.model(IMAGE))


def test_the_loaded_module_trains(saved: Path) -> None:
    loaded = load(saved).train()
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in loaded.parameters() if p.requires_grad], lr=0.1)
    first, second = loaded(IMAGE.repeat(4, 1, 1, 1)), loaded(IMAGE.repeat(4, 1, 1, 1))
    assert not torch.equal(first, second), "dropout is not active"
    first.square().sum().backward()
    optimizer.step()
    after = loaded.state_dict()
    for name in ("conv1.weight", "conv2.bias", "bn1.running_mean", "bn1.num_batches_tracked"):
        assert not torch.equal(before[name], after[name]), name
    assert torch.equal(before["fc.weight"], after["fc.weight"])


def test_what_was_trained_since_is_saved(conv_net: SmallResult, tmp_path: Path) -> None:
    result = made(ConvNet(), IMAGE)
    with torch.no_grad():
        result.model.conv1.weight.add_(1)
    result.model.train()
    save(result, tmp_path / "out")
    assert result.model.training, "saving has changed the mode"
    assert torch.equal(load(tmp_path / "out").conv1.weight, result.model.conv1.weight)
    weights = load_weights(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights["conv1.weight"], result.model.conv1.weight)


def test_a_loaded_module_can_be_saved_again(conv_net: SmallResult, saved: Path, tmp_path: Path) -> None:
    again = SmallResult(load(saved), conv_net.captured, conv_net.plan, conv_net.report)
    save(again, tmp_path / "again")
    assert type(load(tmp_path / "again")).__name__ == "LiftedConvNet"
    torch.testing.assert_close(load(tmp_path / "again")(IMAGE), conv_net.model(IMAGE))


def test_tied_weights_are_one_tensor_with_two_names(tmp_path: Path) -> None:
    result = made(Tied(), {"ids": IDS, "mask": torch.ones(2, 5)})
    folder = save(result, tmp_path / "out")
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert "embed.weight" in file.keys() and "head.weight" not in file.keys()
        assert file.metadata()["head.weight"] == "embed.weight"
    weights = load_weights(folder / "model.safetensors")
    assert set(weights) == set(result.model.state_dict())
    loaded = load(folder)
    assert loaded.head.weight is loaded.embed.weight
    loaded.load_state_dict(weights)
    other = {"ids": torch.randint(0, 11, (3, 5)), "mask": torch.ones(3, 5)}
    torch.testing.assert_close(loaded(**other), result.model(**other))


def test_a_fixed_batch_is_told(tmp_path: Path) -> None:
    result = made(BatchOfTwo(), torch.randn(2, 4))
    folder = save(result, tmp_path / "out")
    about = json.loads((folder / "artefact.json").read_text())
    assert about["batch"] == "fixed" and "batch" in about["batch_reason"]
    x = torch.randn(2, 4)
    torch.testing.assert_close(load(folder)(x), result.model(x))


def test_a_large_example_batch_does_not_swell_the_file(tmp_path: Path) -> None:
    few = save(made(ConvNet(), IMAGE.repeat(2, 1, 1, 1)), tmp_path / "few")
    many = save(made(ConvNet(), IMAGE.repeat(512, 1, 1, 1)), tmp_path / "many")
    size, other = ((folder / "model.pt2").stat().st_size for folder in (few, many))
    assert abs(size - other) < 2_000


def test_gradients_are_not_saved(tmp_path: Path, conv_net: SmallResult, saved: Path) -> None:
    result = made(ConvNet(), IMAGE)
    result.model(IMAGE).sum().backward()
    save(result, tmp_path / "out")
    for name in ("model.safetensors", "model.pt2"):
        assert abs((tmp_path / "out" / name).stat().st_size - (saved / name).stat().st_size) < 500


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    result = made(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype), torch.randn(2, 4).to(dtype)
    )
    folder = save(result, tmp_path / "out")
    x = torch.randn(3, 4).to(dtype)
    assert torch.equal(load(folder)(x), result.model(x))
    assert load_weights(folder / "model.safetensors")["0.weight"].dtype == dtype


# --- outputs in the user's own classes

Pair = collections.namedtuple("Pair", ["left", "right"])


def test_outputs_of_unknown_classes_become_plain() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    assert plain(Pair(a, [b])) == (a, [b]) and type(plain(Pair(a, b))) is tuple
    ordered = collections.OrderedDict(x=a, y=Pair(b, c))
    assert plain(ordered) == collections.OrderedDict(x=a, y=(b, c))
    assert type(plain(ordered)) is collections.OrderedDict
    stays = torch.max(c, 0)
    assert plain(stays) is stays
    unregistered = Named(a, (b,))
    assert plain(unregistered) is unregistered


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.up(x))
        return Named(self.down(hidden), (x + 1, x * 2))


def test_a_file_names_no_class_of_the_user(tmp_path: Path) -> None:
    if Named not in torch.utils._pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(Named, serialized_type_name="tests.Named")
    result = made(Outputs(), torch.randn(2, 4))
    folder = save(result, tmp_path / "out")
    code = (
        "import sys, torch; from prunus.artefact import load\n"
        "out = load(sys.argv[1])(torch.ones(3, 4))\n"
        "assert list(out) == ['logits', 'extra'], out\n"
        "assert type(out['extra']) is tuple and out['logits'].shape == (3, 4)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=tmp_path, env=os.environ)
    assert isinstance(result.model(torch.ones(3, 4)), Named), "saving has changed the model"


class Cache:
    """Nothing that torch knows."""


class WithCache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"out": self.down(torch.relu(self.up(x))), "cache": Cache()}


def test_outputs_that_torch_cannot_take_apart_are_left_out(tmp_path: Path) -> None:
    result = made(WithCache(), torch.randn(2, 4))
    own = WithCache()
    own.up, own.down = result.model.up, result.model.down
    folder = save(dataclasses.replace(result, model=own), tmp_path / "out")
    assert json.loads((folder / "artefact.json").read_text())["left_out"] == ["cache (Cache)"]
    x = torch.randn(3, 4)
    torch.testing.assert_close(load(folder)(x)["out"], own(x)["out"])
    assert isinstance(own(x)["cache"], Cache), "saving has changed the model"


# --- what cannot be saved


def test_a_model_with_values_that_are_none_is_not_saved(tmp_path: Path) -> None:
    result = made(ConvNet(), IMAGE)
    with torch.no_grad():
        result.model.conv1.weight[0] = float("nan")
    with pytest.raises(ArtefactError, match=r"NaN.*conv1\.weight"):
        save(result, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_values_is_not_saved(tmp_path: Path) -> None:
    result = made(ConvNet(), IMAGE)
    result.model.to("meta")
    with pytest.raises(ArtefactError, match=r"conv1\.weight is on the meta device"):
        save(result, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = importlib.import_module("prunus.artefact.save")

    def wrong(path: Path, name: str) -> Any:
        module, captured = original(path, name)
        module.fc.register_forward_hook(lambda module, args, output: output * 1.01)
        return module, captured

    original = saving.rebuild
    monkeypatch.setattr(saving, "rebuild", wrong)
    with pytest.raises(ArtefactError, match="Output 0 of the saved model differs"):
        save(made(ConvNet(), IMAGE), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass
class Question:
    """Inputs in a class of the user's own."""

    x: Tensor


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, question: Question) -> Tensor:
        return self.down(torch.relu(self.up(question.x)))


def test_inputs_of_an_unknown_class_are_named(tmp_path: Path) -> None:
    if Question not in torch.utils._pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(Question, serialized_type_name="tests.Question")
    folder = save(made(Asked(), (Question(torch.randn(2, 4)),)), tmp_path / "out")
    assert load(folder)(Question(torch.ones(3, 4))).shape == (3, 4)
    code = "import sys; from prunus.artefact import load; load(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=tmp_path, capture_output=True, text=True
    )
    last = [line for line in run.stderr.splitlines() if "prunus.errors.ArtefactError" in line]
    assert run.returncode == 1 and last and "model.pt2" in last[0]
    assert "tests.Question" in run.stderr.rpartition("ArtefactError")[2]
    assert "Ran into the following error" not in run.stderr, "torch's own log is not kept quiet"
