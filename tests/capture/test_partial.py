"""Models whose forward cannot be exported as a whole: their parts are captured, cut and put back."""

import copy

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.capture import capture


def block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, outside, 3, padding=1),
    )


class Box:
    """Something that torch cannot take apart."""

    def __init__(self, image: Tensor) -> None:
        self.image = image


class Stage(nn.Module):
    """Is called with a `Box`, so only its child can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = block(8, 8)

    def forward(self, box: Box) -> Tensor:
        return self.inner(box.image)


class Detector(nn.Module):
    """Decides by the values of tensors how often it does what."""

    touch = ""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = block(3, 8)
        self.stage = Stage()
        self.head = block(8, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        features = self.backbone(torch.stack(images))
        scores = self.head(features) * self.scale.view(-1, 1, 1)
        extra = self.stage(Box(torch.relu(features)))
        chosen = [s[:, s.amax(0) > s.mean()] for s in scores]  # the number of columns depends on values
        if float(scores.mean()) > 100.0:  # data decide
            chosen = chosen[:1]
        return [*chosen, extra]


def net() -> tuple[Detector, list[Tensor]]:
    torch.manual_seed(0)
    model = Detector().eval()
    return model, [torch.randn(3, 6, 6), torch.randn(3, 6, 6)]


def test_the_largest_parts_are_found_and_what_is_left_out_is_named() -> None:
    model, images = net()
    captured = capture(model, (images,))
    assert captured.partial is not None
    assert captured.partial.parts == ("backbone", "head", "stage.inner")
    assert captured.owner is model
    left_out = {each.path: each for each in captured.partial.left_out}
    assert list(left_out) == ["", "stage"]
    assert "test_partial.py" in str(left_out[""].place) and "Box" in left_out["stage"].reason


def test_pruned_parts_come_back_in_the_users_class() -> None:
    model, images = net()
    before = copy.deepcopy(model.state_dict())
    result = prunus.compress(model, (images,), target=prunus.Target(channels=0.5))
    small = result.model
    assert type(small) is Detector and result.report.form == "class"
    assert small.backbone[0].out_channels == 8 and small.head[0].out_channels == 8
    assert small.stage.inner[0].out_channels == 8
    small([images[0], images[1], torch.randn(3, 6, 6)])  # another batch
    small([torch.randn(3, 9, 7)])  # another size
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (result.report.verification or {})["max_relative_error"] < 1e-9
    assert sum(p.numel() for p in small.parameters()) == result.report.after.params
    text = str(result.report)
    assert "captured in parts: backbone, head, stage.inner" in text and "left out: the code of stage" in text


def test_removing_nothing_but_zeros_changes_nothing() -> None:
    """The parts meet as in the original: with dead channels removed, the whole computes the same."""
    model, images = net()
    with torch.no_grad():
        for part in (model.backbone, model.head, model.stage.inner):
            part[3].weight[:, ::2] = 0
    removed = {f"{path}.0": list(range(0, 16, 2)) for path in ("backbone", "head", "stage.inner")}
    structure = prunus.analyze(model, (images,))
    groups = {g.name: g for g in structure.prunable}
    remove = {next(n for n, g in groups.items() if layer in g.producers): r for layer, r in removed.items()}
    small = prunus.apply(
        model, prunus.plan(structure, method=prunus.ByIndex(remove=remove)), example_inputs=(images,)
    )
    assert small.model.backbone[0].out_channels == 8
    for wanted, got in zip(model(images), small.model(images), strict=True):
        assert torch.allclose(wanted, got, atol=1e-5)


def test_what_other_code_computes_with_is_held() -> None:
    """`features` also goes through a relu outside of all parts."""
    model, images = net()
    structure = prunus.analyze(model, (images,))
    (width,) = [g for g in structure.groups if "backbone.3" in g.producers]
    assert "code that could not be captured" in str(width.held)


class Linked(Detector):
    """The features only go on to the head, and other code looks at their sizes."""

    def forward(self, images: list[Tensor]) -> Tensor:
        features = self.backbone(torch.stack(images))
        rows = features.shape[-2]
        if self.touch == "channels":
            rows += features.size(1)
        elif self.touch == "unpacked":
            _, _, rows, _ = features.shape
        elif self.touch == "whole":
            rows = torch.zeros(features.shape).shape[2]
        elif self.touch == "values":
            rows += int(features.sum() > 0)
        elif self.touch == "weight":
            rows += int(self.backbone[3].weight.sum() > 0)
        elif self.touch == "dtype":
            rows += int(features.dtype == torch.float32 and features.size(-1) > 1)
        scores = self.head(features)
        return scores[:, :, :rows] if float(scores.mean()) < 100.0 else scores * 2


@pytest.mark.parametrize(
    ("touch", "free"),
    [("", True), ("dtype", True), ("channels", False), ("unpacked", False), ("whole", False), ("values", False), ("weight", False)],
)  # fmt: skip
def test_what_is_only_passed_on_is_free(touch: str, free: bool) -> None:
    torch.manual_seed(0)
    model = Linked().eval()
    model.touch = touch
    images = [torch.randn(3, 6, 6)]
    structure = prunus.analyze(model, (images,))
    (width,) = [g for g in structure.groups if "backbone.3" in g.producers]
    assert (width.held is None) == free
    result = prunus.compress(model, (images,), target=prunus.Target(channels=0.5))
    assert result.model.backbone[3].out_channels == (4 if free else 8)
    assert result.model(images).shape == model(images).shape


class Twice(nn.Module):
    """One head for two sizes, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), block(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.stem(x))
        outputs = [self.head(fine), self.head(fine[..., ::2, ::2])]
        return outputs[0].sum() if float(outputs[0].mean()) < 100.0 else outputs[1].sum()


def test_a_part_that_is_called_with_several_sizes() -> None:
    torch.manual_seed(0)
    model = Twice().eval()
    result = prunus.compress(model, torch.randn(2, 3, 8, 8), target=prunus.Target(channels=0.5))
    assert type(result.model) is Twice and result.model.head[0].out_channels == 8
    assert result.report.verification and result.report.verification["inputs_checked"] == 2


class Stubborn(nn.Module):
    """Its number of channels is written in the code, so its class cannot be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(
            torch.relu(self.enter(x)).reshape(x.shape[0], 2, 4).transpose(1, 2).reshape(x.shape[0], 8)
        )


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Linear(5, 6), Stubborn()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        return self.body(y) if float(y.mean()) < 100.0 else y


def test_a_part_that_cannot_be_of_its_class_becomes_a_graph() -> None:
    torch.manual_seed(0)
    model = Outer().eval()
    x = torch.randn(4, 5)
    result = prunus.compress(model, x, target=prunus.Target(channels=0.5))
    assert result.report.form == "graph" and "written" not in result.report.form_reason
    assert isinstance(result.model, Outer) and not isinstance(result.model.body, Stubborn)
    assert result.model.body.get_parameter("enter.weight").shape == (4, 6)
    assert result.model(x).shape == (4, 6) and result.model(torch.randn(7, 5)).shape == (7, 6)
    result.model(x).sum().backward()
    assert isinstance(model.body, Stubborn)


class Chained(Outer):
    def forward(self, x: Tensor) -> Tensor:
        z = self.body(self.first(x))
        return z if float(z.mean()) < 100.0 else -z


def test_a_graph_takes_what_another_part_hands_it() -> None:
    torch.manual_seed(0)
    model = Chained().eval()
    structure = prunus.analyze(model, torch.randn(4, 5))
    (width,) = [g for g in structure.groups if "first" in g.producers]
    assert width.held is None
    result = prunus.compress(model, torch.randn(4, 5), target=prunus.Target(channels=0.5))
    assert result.report.form == "graph"
    assert result.model.get_parameter("first.weight").shape == (3, 5)
    assert result.model.get_parameter("body.enter.weight").shape == (4, 3)
    assert result.model(torch.randn(7, 5)).shape == (7, 6)


def test_saved_without_a_program_and_rebuilt_from_code(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, images = net()
    result = prunus.compress(model, (images,), target=prunus.Target(channels=0.5))
    folder = result.save(tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == [
        "artefact.json", "model.safetensors", "plan.json", "report.json",
    ]  # fmt: skip
    with pytest.raises(prunus.ArtefactError, match="only be captured in parts"):
        prunus.load(folder)
    again = prunus.apply(Detector().eval(), prunus.Plan.load(folder / "plan.json")).model
    again.load_state_dict(prunus.load_weights(folder / "model.safetensors"))
    for wanted, got in zip(result.model(images), again(images), strict=True):
        assert torch.equal(wanted, got)
    with pytest.raises(prunus.ArtefactError, match="no ONNX"):
        result.save(tmp_path / "onnx", onnx=True)
    assert not (tmp_path / "onnx").exists()


class Hopeless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if float(y.mean()) > 0 else -y


def test_without_a_part_the_reason_for_the_whole_is_given() -> None:
    with pytest.raises(prunus.CaptureError, match=r"float\(y.mean\(\)\)"):
        capture(Hopeless().eval(), torch.randn(2, 3))
