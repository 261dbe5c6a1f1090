"""Files from strangers: what was changed is named, and nothing in a folder is ever run."""

import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.artefact import load, save
from prunus.errors import ArtefactError
from tests.artefact.results import ConvNet, made

FILES = ["model.pt2", "model.safetensors", "plan.json", "report.json"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(made(ConvNet(), torch.randn(1, 3, 8, 8)), tmp_path_factory.mktemp("saved") / "out")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "out"))


class Marker:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change artefact.json, as whoever changes a file can."""
    about = json.loads((folder / "artefact.json").read_text())
    replaced = change(about)
    (folder / "artefact.json").write_text(json.dumps(about if replaced is None else replaced))


def sign(folder: Path, name: str) -> None:
    """Make artefact.json agree with a file."""
    data = (folder / name).read_bytes()
    entry = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, lambda about: about["files"].update({name: entry}))


def refused(folder: Path, *words: str) -> bool:
    """Loading raises the right error, and it says all of these."""
    with pytest.raises(ArtefactError) as caught:
        load(folder)
    return all(word in str(caught.value) for word in words)


def test_the_untouched_copy_loads(folder: Path) -> None:
    assert load(str(folder))(torch.zeros(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    assert refused(folder, name, "cut short", f"{len(data):,}")


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_one_other_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert refused(folder, name, "not what was written")


@pytest.mark.parametrize("name", [*FILES, "artefact.json"])
def test_a_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refused(folder, name)


@pytest.mark.parametrize("name", [*FILES, "artefact.json"])
def test_a_link_is_no_file(folder: Path, name: str, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert refused(folder, name, "is a link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX")
@pytest.mark.parametrize("name", ["model.pt2", "artefact.json"])
def test_a_pipe_is_no_file_and_nobody_waits_for_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refused(folder, name, "not an ordinary file")


@pytest.mark.parametrize(
    "name", ["../secret.json", "/etc/passwd", "sub/model.pt2", "..", "", "artefact.json"]
)
def test_names_that_lead_elsewhere(folder: Path, name: str) -> None:
    (folder.parent / "secret.json").write_text("{}")
    entry = {"size_bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    edit(folder, lambda about: about["files"].update({name: entry}))
    assert refused(folder, "artefact.json", repr(name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.update(version=2), ["format 2", "upgrade"]),
        (lambda about: about.update(version="1"), ["version"]),
        (lambda about: about.pop("torch"), ["torch"]),
        (lambda about: about.update(more=1), ["more"]),
        (lambda about: about.update(model_class="a b"), ["model_class"]),
        (lambda about: about.update(batch=3), ["batch"]),
        (lambda about: about.update(files=[]), ["files"]),
        (lambda about: about["files"].pop("model.pt2"), ["model.pt2"]),
        (lambda about: about["files"].update({"plan.json": 3}), ["plan.json"]),
        (lambda about: about["files"]["plan.json"].update(size_bytes=-1), ["plan.json", "size"]),
        (lambda about: about["files"]["plan.json"].update(size_bytes=2**40), ["plan.json", "size"]),
        (lambda about: about["files"]["model.pt2"].update(size_bytes=2**50), ["model.pt2", "size"]),
        (lambda about: about["files"]["model.pt2"].update(sha256="x" * 64), ["model.pt2", "hash"]),
        (lambda about: [about], ["no object"]),
    ],
)
def test_a_damaged_manifest(folder: Path, change: Callable[[dict[str, Any]], Any], words: list[str]) -> None:
    edit(folder, lambda about: value if isinstance(value := change(about), list) else None)
    assert refused(folder, "artefact.json", *words)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"version": 1', " " * (2**20 + 1)])
def test_a_manifest_that_is_no_json(folder: Path, text: str) -> None:
    (folder / "artefact.json").write_text(text)
    assert refused(folder, "artefact.json", "not JSON")


def test_files_that_are_not_named_are_never_read(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "report.html").symlink_to("/nowhere")
    assert load(folder) is not None


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.pkl", "pytorch_model.bin"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str) -> None:
    torch.save(ConvNet(), tmp_path / name)
    assert refused(tmp_path / name, name, "pickle", "load_weights", "torch.export.save")


def test_what_is_no_artefact(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "none", "no folder")
    assert refused(tmp_path / "text", "is a file")
    assert refused(tmp_path / "empty", "no artefact.json")


def test_another_version_of_torch_is_told(folder: Path) -> None:
    (folder / "model.pt2").write_bytes(b"PK not an archive")
    sign(folder, "model.pt2")
    edit(folder, lambda about: about.update(torch="9.9"))
    assert refused(folder, "model.pt2", "written with torch 9.9", "prunus.apply(model, plan)")


# --- a model that is consistent with artefact.json, but not what it seems


def rewrite(
    folder: Path, change: Callable[[str, bytes], bytes], more: dict[str, bytes] | None = None
) -> None:
    """Change the entries of model.pt2, and artefact.json with them."""
    path = folder / "model.pt2"
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    root = entries[0][0].split("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            archive.writestr(name, change(name, data))
        for name, data in (more or {}).items():
            archive.writestr(f"{root}/{name}", data)
    sign(folder, "model.pt2")


def test_a_rewritten_model_loads(folder: Path) -> None:
    rewrite(folder, lambda name, data: data)
    assert load(folder) is not None


def test_pickled_example_inputs_are_not_run(folder: Path, tmp_path: Path) -> None:
    harmful = io.BytesIO()
    torch.save(((Marker(tmp_path / "mark"),), {}), harmful)
    rewrite(folder, lambda name, data: harmful.getvalue() if "sample_inputs" in name else data)
    assert refused(folder, "model.pt2", "example inputs")
    assert not (tmp_path / "mark").exists()


def test_pickled_weights_are_not_run(folder: Path, tmp_path: Path) -> None:
    harmful = pickle.dumps(Marker(tmp_path / "mark"))

    def change(name: str, data: bytes) -> bytes:
        if "weights/weight_" in name:
            return harmful
        return data.replace(b'"use_pickle": false', b'"use_pickle": true')

    rewrite(folder, change)
    assert refused(folder, "model.pt2", "pickled tensor")
    assert not (tmp_path / "mark").exists()


def test_libraries_are_not_loaded(folder: Path) -> None:
    rewrite(folder, lambda name, data: data, {"data/aotinductor/model/code.so": b"\x7fELF"})
    assert refused(folder, "model.pt2", "aotinductor")


def test_a_tensor_that_claims_more_than_the_file_has(folder: Path) -> None:
    """One number in the file, read as a terabyte of the same number."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("model_weights_config.json"):
            return data
        config = json.loads(data)
        meta = config["config"]["conv1.weight"]["tensor_meta"]
        meta["sizes"] = [{"as_int": 10**6} for _ in meta["sizes"][:2]]
        meta["strides"] = [{"as_int": 0}, {"as_int": 0}]
        return json.dumps(config).encode()

    rewrite(folder, change)
    assert refused(folder, "model.pt2", "conv1.weight", "larger than the file")
