"""model.onnx computes what the model computes, or is not written."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.artefact import onnx as writing
from prunus.artefact import save
from prunus.artefact.onnx import require_onnx
from prunus.errors import ArtefactError
from tests.artefact.results import ConvNet, Tied, made

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def run(path: Path, *inputs: Tensor) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})


def test_it_computes_the_same_at_any_batch_size(tmp_path: Path) -> None:
    result = made(ConvNet(), IMAGE)
    folder = save(result, tmp_path / "out", onnx=True)
    images = torch.randn(7, 3, 8, 8)
    (found,) = run(folder / "model.onnx", images)
    torch.testing.assert_close(torch.as_tensor(found), result.model(images).detach(), rtol=1e-4, atol=1e-5)
    assert "model.onnx" in (folder / "artefact.json").read_text()


def test_keywords_and_several_outputs(tmp_path: Path) -> None:
    ids, mask = torch.arange(10).reshape(2, 5), torch.ones(2, 5)
    result = made(Tied(), {"ids": ids, "mask": mask})
    folder = save(result, tmp_path / "out", onnx=True)
    found = run(folder / "model.onnx", ids, mask)
    expected = result.model(ids=ids, mask=mask)
    for one, other in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(torch.as_tensor(one), other.detach(), rtol=1e-4, atol=1e-5)


def test_an_output_that_differs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "relative_error", lambda expected, actual: 2e-4)
    with pytest.raises(ArtefactError, match=r"Output 0 of model\.onnx differs in onnxruntime by 2\.0e-04"):
        save(made(ConvNet(), IMAGE), tmp_path / "out", onnx=True)
    assert list(tmp_path.iterdir()) == []


class Count(nn.Module):
    """Returns a number that is no tensor, for which ONNX has no place."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.down(torch.relu(self.up(x))), x.shape[1]


def test_what_onnx_cannot_say_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ArtefactError, match=r"cannot be written as ONNX by torch.*\nSave it without onnx=True"
    ):
        save(made(Count(), torch.randn(2, 4)), tmp_path / "out", onnx=True)
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in "".join(capfd.readouterr())
    save(made(Count(), torch.randn(2, 4)), tmp_path / "out")


def test_a_missing_package_is_found_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(ArtefactError, match=r"onnxscript.*pip install 'prunus\[onnx\]'"):
        require_onnx()
    with pytest.raises(ArtefactError, match="onnxscript"):
        save(object(), tmp_path / "out", onnx=True)  # type: ignore[arg-type]
