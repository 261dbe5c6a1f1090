"""State dicts from files of several kinds, and from nothing that would have to be run."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from prunus.artefact import load_weights
from prunus.artefact.tensors import write_state
from prunus.errors import ArtefactError, SourceError

STATE = {"a.weight": torch.randn(3, 2), "a.count": torch.tensor(4), "b": torch.randn(2).bfloat16()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves(suffix: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    assert same(load_weights(path), STATE) and same(load_weights(str(path)), STATE)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_is_unwrapped(key: str, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1, key: STATE, "optimizer": {"state": {}}}, tmp_path / "c.pth")
    assert same(load_weights(tmp_path / "c.pth"), STATE)


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        wrapped = {prefix + name: tensor for name, tensor in STATE.items()}
        torch.save(wrapped, tmp_path / "w.pth")
        safetensors.torch.save_file(wrapped, tmp_path / "w.safetensors")
        assert same(load_weights(tmp_path / "w.pth"), STATE)
        assert same(load_weights(tmp_path / "w.safetensors"), STATE)
    torch.save({"module.x": STATE["b"], "y": STATE["b"]}, tmp_path / "w.pth")
    assert set(load_weights(tmp_path / "w.pth")) == {"module.x", "y"}, "not every name has the prefix"


def test_a_module_of_data_parallel(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "w.pth")
    loaded = nn.Linear(2, 3)
    loaded.load_state_dict(load_weights(tmp_path / "w.pth"))
    assert torch.equal(loaded.weight, model.weight) and torch.equal(loaded.bias, model.bias)


class Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": Marker(tmp_path / "mark")}, tmp_path / "w.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    for name in ("w.pth", "model.pth"):
        with pytest.raises(
            SourceError, match=rf"{name}.*holds more than tensors[\s\S]*convert it where you trust"
        ):
            load_weights(tmp_path / name)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(2), "Tensor, not a state dict"),
        ([torch.zeros(2)], "list, not a state dict"),
        ({}, "nothing"),
        ({"a": torch.zeros(2), "epoch": 3}, "'epoch': a int"),
        ({"state_dict": {"a": {"b": torch.zeros(2)}}}, "'a': a dict"),
        ({3: torch.zeros(2)}, "3: "),
        ({"a": torch.eye(3).to_sparse()}, "sparse_coo"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "'a': torch.strided of"),
    ],
)
def test_what_is_no_state_dict(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(SourceError, match=words):
        load_weights(tmp_path / "w.pth")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-40])
        with pytest.raises(SourceError, match=rf"{name} is damaged"):
            load_weights(tmp_path / name)
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(SourceError, match="is damaged"):
        load_weights(tmp_path / "w.safetensors")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """It could unpack to any size."""
    torch.save(STATE, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    with pytest.raises(SourceError, match="compressed"):
        load_weights(tmp_path / "w.pth")


def test_the_size_is_bounded(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    size = (tmp_path / "w.pth").stat().st_size
    assert same(load_weights(tmp_path / "w.pth", max_size_bytes=size), STATE)
    with pytest.raises(SourceError, match=rf"{size:,} bytes, more than the limit of {size - 1:,}"):
        load_weights(tmp_path / "w.pth", max_size_bytes=size - 1)


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("")
    for path, words in [("none.pth", "no file"), (".", "not a file"), ("w.txt", "of no kind")]:
        with pytest.raises(SourceError, match=words):
            load_weights(tmp_path / path)


# --- writing


def test_each_tensor_is_written_once(tmp_path: Path) -> None:
    shared = torch.randn(1000)
    base = torch.randn(2, 500)
    state = {"a": shared, "b": shared, "row": base[0], "rows": base, "t": base.t(), "none": torch.zeros(0, 3)}
    write_state(state, tmp_path / "w.safetensors")
    # b is a; a view of other sizes is written for itself
    assert (tmp_path / "w.safetensors").stat().st_size < 4 * (1000 + 500 + 1000 + 1000) + 2000
    assert same(load_weights(tmp_path / "w.safetensors"), state)


def test_only_tensors_are_written(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"extra_state, which is a dict"):
        write_state({"a": torch.zeros(1), "extra_state": {}}, tmp_path / "w.safetensors")  # type: ignore[dict-item]
