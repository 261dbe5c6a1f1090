"""Whatever a user can get wrong is said with its place and a way out, and costs the model nothing."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import (
    ArtefactError,
    CaptureError,
    ConfigError,
    PlanError,
    PrunusError,
    SourceError,
    TargetError,
)
from tests.allocation.nets import Residual, layers

HALF = prunus.Target(macs=0.5)


class Branching(nn.Module):
    """A forward that depends on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if y.sum() > 0 else -y  # the line to be named


class Case:
    """A model in the middle of its training, with all that must not change, and a folder for files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = Residual().train()
        self.model.bn1.eval()
        self.model.conv2.weight.requires_grad_(False)
        self.model.conv1.weight.grad = torch.ones_like(self.model.conv1.weight)
        self.model.conv1.register_forward_hook(lambda module, args, out: None)
        self.model.register_forward_pre_hook(lambda module, args: None)
        self.x = torch.randn(2, 3, 8, 8)

    def state(self) -> dict[str, Any]:
        model = self.model
        return {
            "values": {
                name: (id(t), t.detach().clone().view(torch.uint8).tolist() if t.dim() else t.item())
                for name, t in model.state_dict(keep_vars=True).items()
            },
            "modes": {name: m.training for name, m in model.named_modules()},
            "gradients": {n: (p.requires_grad, id(p.grad)) for n, p in model.named_parameters()},
            "modules": {name: (id(m), type(m)) for name, m in model.named_modules()},
            "hooks": {
                name: (list(m._forward_hooks.items()), list(m._forward_pre_hooks.items()))
                for name, m in model.named_modules()
            },
            "attributes": {name: sorted(m.__dict__) for name, m in model.named_modules()},
            "methods": [name for name in ("forward", "__call__") if name in model.__dict__],
        }

    def compress(self, x: Any = None, **options: Any) -> prunus.Result:
        example = self.x if x is None else x
        return prunus.compress(self.model, example, **{"target": HALF, **options})

    def remove(self, lists: dict[str, Any]) -> None:
        self.compress(method=prunus.ByIndex(remove=lists), target=None)

    def saved(self) -> Path:
        return self.compress(target=prunus.Target(channels=0.5)).save(self.folder / "result")


def other_inputs(case: Case) -> None:
    case.compress(torch.randn(2, 4, 8, 8))


def no_inputs(case: Case) -> None:
    prunus.analyze(case.model)


def target_zero(case: Case) -> None:
    case.compress(target=prunus.Target(macs=0))


def target_in_percent(case: Case) -> None:
    case.compress(target=prunus.Target(macs=50))


def out_of_reach(case: Case) -> None:
    case.compress(target=prunus.Target(params=0.01), hold=["conv1"])


def unknown_layer(case: Case) -> None:
    case.remove({"conv3": [0]})


def unknown_pattern(case: Case) -> None:
    case.compress(hold=["encoder.*"])


def out_of_range(case: Case) -> None:
    case.remove({"conv1": [12]})


def repeated(case: Case) -> None:
    case.remove({"conv1": [3, 3]})


def all_channels(case: Case) -> None:
    case.remove({"conv1": range(12)})


def held_layer(case: Case) -> None:
    case.remove({"head": [0]})


def nan_weight(case: Case) -> None:
    with torch.no_grad():
        case.model.conv1.weight[2, 1, 0, 0] = float("nan")
    case.compress()


def infinite_bias(case: Case) -> None:
    with torch.no_grad():
        case.model.head.bias[1] = -float("inf")
    case.compress()


def other_architecture(case: Case) -> None:
    made = prunus.plan(prunus.analyze(layers(4, 10, 2), torch.randn(3, 4)), target=HALF)
    prunus.apply(case.model, made, example_inputs=case.x)


def truncated_weights(case: Case) -> None:
    path = case.saved() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    prunus.load(path.parent)


def tampered_plan(case: Case) -> None:
    path = case.saved() / "plan.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    prunus.load(path.parent)


def tampered_manifest(case: Case) -> None:
    path = case.saved() / "artefact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run": "os.system"}))
    prunus.load(path.parent)


def missing_file(case: Case) -> None:
    folder = case.saved()
    (folder / "report.json").unlink()
    prunus.load(folder)


def pickled_model(case: Case) -> None:
    torch.save(case.model.state_dict(), case.folder / "model.pth")
    prunus.analyze(str(case.folder / "model.pth"), case.x)


def pickled_result(case: Case) -> None:
    torch.save(case.model.state_dict(), case.folder / "result.pkl")
    prunus.load(case.folder / "result.pkl")


def existing_folder(case: Case) -> None:
    case.compress().save(case.saved())


def not_exportable(case: Case) -> None:
    model = nn.Sequential(nn.Identity(), Branching())
    prunus.compress(model, torch.randn(2, 4), target=HALF)


def unknown_method(case: Case) -> None:
    case.compress(method="l3")


# what is done, the kind of error, what it says (place and remedy)
CASES: list[tuple[Callable[[Case], None], type[PrunusError], list[str]]] = [
    (
        other_inputs,
        CaptureError,
        [
            "The example inputs do not fit the model's forward",
            "nets.py:",
            "(2, 4, 8, 8) float32",
            "Pass exam",
        ],
    ),
    (no_inputs, ConfigError, ["pass the inputs of that call as example_inputs"]),
    (target_zero, ConfigError, ["Target(macs=0): say what is kept, a fraction above 0 and up to 1 (0.5 kee"]),
    (target_in_percent, ConfigError, ["Target(macs=50): say what is kept, a fraction above 0 and up to 1"]),
    (
        out_of_reach,
        TargetError,
        [
            "params=0.01 cannot be reached: at the least 1.0000 of the params stays (",
            "conv1 (12: held by your settings)",
            "add (8: held by your settings)",
            "head (5: is part of the model's output (at output))",
        ],
    ),
    (unknown_layer, PlanError, ["no layer or group 'conv3'; similar: ", "conv1"]),
    (
        unknown_pattern,
        ConfigError,
        ["hold: no layer or group matches 'encoder.*'", "`print(structure)` lists"],
    ),
    (out_of_range, PlanError, ["conv1: index 12 is out of range; it has 12 channels, 0 to 11"]),
    (repeated, PlanError, ["conv1: index 3 is listed twice"]),
    (all_channels, PlanError, ["conv1: this removes all 12 channels; at least one must stay"]),
    (held_layer, PlanError, ["head: nothing can be removed here: it is part of the model's output"]),
    (nan_weight, CaptureError, ["NaN or infinite weights: conv1.weight.", "Load a checkpoint"]),
    (infinite_bias, CaptureError, ["NaN or infinite weights: head.bias.", "Load a checkpoint"]),
    (
        other_architecture,
        PlanError,
        ["made for another architecture (no group '0')", "Make a new one with prunus.plan"],
    ),
    (
        truncated_weights,
        ArtefactError,
        ["result/model.safetensors has ", "were written: it is cut short", "save the result again"],
    ),
    (
        tampered_plan,
        ArtefactError,
        ["result/plan.json is not what was written", "Copy the folder anew"],
    ),
    (tampered_manifest, ArtefactError, ["result/artefact.json is damaged or was changed", "too much: run"]),
    (missing_file, ArtefactError, ["result/report.json is missing"]),
    (
        pickled_model,
        SourceError,
        ["model.pth is a pickle by its name, and opening a pickle can run any code", "torch.export.save("],
    ),
    (pickled_result, ArtefactError, ["result.pkl is a pickle by its name", "prunus.load_weights(path)"]),
    (existing_folder, ArtefactError, ["result exists already", "pass overwrite=True"]),
    (
        not_exportable,
        CaptureError,
        [
            "The model runs, but its forward cannot be captured",
            "test_bad_input.py:",
            "in forward: return y if y.sum() > 0 else -y",
            "torch.where instead of if",
            "submodule",
        ],
    ),
    (
        unknown_method,
        ConfigError,
        ["unknown method 'l3'.", "Known: bn_scale, dead, flap, geometric_median"],
    ),
]


def message(act: Callable[[Case], None], folder: Path, error: type[PrunusError]) -> str:
    case = Case(folder)
    if act in (nan_weight, infinite_bias):  # they spoil the model first; what counts comes after
        with pytest.raises(error):
            act(case)
        act = Case.compress  # type: ignore[assignment]
    before = case.state()
    with pytest.raises(error) as caught:
        act(case)
    assert type(caught.value) is error
    assert case.state() == before
    return str(caught.value)


@pytest.mark.parametrize(("act", "error", "said"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_input(
    act: Callable[[Case], None], error: type[PrunusError], said: list[str], tmp_path: Path
) -> None:
    text = message(act, tmp_path, error)
    for part in said:
        assert part in text
    assert len(text) < 1500 and "Traceback" not in text
    like = [other.__name__ for other, _, parts in CASES if all(part in text for part in parts)]
    assert like == [act.__name__], "two mistakes get the same message"


def test_the_state_sees_every_kind_of_change(tmp_path: Path) -> None:
    changes: list[Callable[[Residual], Any]] = [
        lambda m: m.eval(),
        lambda m: m.head.weight.data.mul_(2),
        lambda m: m.stem.weight.requires_grad_(False),
        lambda m: m.head.register_forward_hook(lambda *a: None),
        lambda m: setattr(m, "extra", 1),
        lambda m: setattr(m, "head", copy.deepcopy(m.head)),
        lambda m: m.bn.running_mean.add_(1),  # type: ignore[union-attr]
        lambda m: m.zero_grad(),
    ]
    for change in changes:
        case = Case(tmp_path)
        before = case.state()
        assert case.state() == before
        change(case.model)
        assert case.state() != before


def test_the_line_that_is_named_is_the_right_one() -> None:
    lines = Path(__file__).read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "# the line to be named" in line)
    with pytest.raises(CaptureError) as caught:
        prunus.analyze(Branching(), torch.randn(2, 4))
    assert f"{__file__}:{number} in forward" in str(caught.value)


def test_a_mistake_leaves_no_file_behind(tmp_path: Path) -> None:
    case = Case(tmp_path)
    folder = case.saved()
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ArtefactError):
        case.compress().save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
