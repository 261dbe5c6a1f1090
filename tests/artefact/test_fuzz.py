"""Every kind of file that prunus reads, damaged at random: what comes back is the content or an error in words."""

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.artefact import load_weights
from prunus.capture import capture
from prunus.decomposition.table import RankTable
from prunus.describe import rebuild
from prunus.evidence import Evidence, arrays
from prunus.evidence.arrays import read_arrays
from tests.capture.archives import rewrite

HOSTILE: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, 2**70, 10**400, 1.5, float("nan"), float("inf"), "", "x", "\x1b[2J\n", "a" * 2000, [], {}, [[]],
    [None], {"as_int": 10**12}, {"as_expr": {"expr_str": "9**9**9", "hint": None}}, {"as_operator": "torch.hub.load"},
    "__import__('os').abort()", "torch.ops.aten.from_file.default", [[[[[[]]]]]], "../../etc/passwd",
]  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    result = prunus.compress(Net().eval(), torch.ones(2, 4), target=prunus.Target(channels=0.5))
    assert result.structure is not None
    result.save(folder / "saved")
    for file in (folder / "saved").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    result.structure.layers().to_csv(folder / "layers.csv")
    (folder / "ranks.csv").write_text("name,method,inputs,outputs,full,recommended,ranks\nup,svd,4,6,4,2,2\n")
    sums = {"key": {"up": {"up": torch.ones(6, dtype=torch.float64)}}}
    Evidence("architecture", 4, sums).save(folder / "evidence.safetensors")
    torch.save(Net().state_dict(), folder / "weights.pth")
    np.save(folder / "data.npy", np.ones((3, 4), np.float32))
    np.savez(folder / "data.npz", x=np.ones((3, 4), np.float32), labels=np.arange(3))
    np.savez_compressed(folder / "packed.npz", x=np.ones((30, 4), np.float32))
    return folder


def load_folder(path: Path) -> None:
    """A saved result with another manifest."""
    copy = path.parent / "folder"
    copy.mkdir(exist_ok=True)
    (copy / "artefact.json").write_bytes(path.read_bytes())
    prunus.load(copy)


READERS: dict[str, Callable[[Path], Any]] = {
    "model.pt2": lambda path: capture(path),
    "plan.json": lambda path: rebuild(prunus.Plan.load(path).inputs),
    "artefact.json": load_folder,
    "model.safetensors": load_weights,
    "weights.pth": load_weights,
    "evidence.safetensors": Evidence.load,
    "layers.csv": prunus.LayerTable.from_csv,
    "ranks.csv": RankTable.from_csv,
    "data.npy": read_arrays,
    "data.npz": read_arrays,
    "packed.npz": read_arrays,
}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Flip bits, cut short, leave out, repeat, exchange or overwrite."""
    data = bytearray(content)
    at, to = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    match draw.randrange(6):
        case 0:
            for _ in range(draw.randint(1, 4)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at:to]
        case 3:
            data[at:at] = data[at : at + draw.randint(1, 64)]
        case 4:
            data[at:to] = data[at:to][::-1]
        case _:
            data[at : at + 8] = draw.randbytes(8)
    return bytes(data)


def attempt(path: Path, read: Callable[[Path], Any]) -> str:
    """Read a file; what is raised has to be an error of prunus, in words that can be printed."""
    try:
        read(path)
    except prunus.PrunusError as error:
        text = str(error)
        assert text and all(c.isprintable() or c == "\n" for c in text)
        return "refused"
    return "read"


def count(short: int, long: int) -> Any:
    """Seeds of a few runs, and of many that take long."""
    return pytest.mark.parametrize(
        "seed", [range(short), pytest.param(range(short, long), marks=pytest.mark.slow)]
    )


@count(8, 300)
@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes(name: str, seed: range, folder: Path, tmp_path: Path) -> None:
    content, path = (folder / name).read_bytes(), tmp_path / name
    path.write_bytes(content)
    if name != "artefact.json":  # without the other files
        assert attempt(path, READERS[name]) == "read"
    found = set()
    for number in seed:
        path.write_bytes(damaged(content, random.Random(number)))
        found.add(attempt(path, READERS[name]))
    assert "refused" in found


def places(tree: Any) -> list[tuple[Any, Any]]:
    """All places in a JSON document at which there is a value."""
    found: list[tuple[Any, Any]] = []
    left = [tree]
    while left:
        item = left.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        found += [(item, key) for key in keys]
        left += [item[key] for key in keys]
    return found


def changed(content: bytes, draw: random.Random) -> bytes:
    """A document with another value at a place, one that is missing, or one that is there twice."""
    tree = json.loads(content)
    for _ in range(draw.randint(1, 2)):
        holder, key = draw.choice(places(tree))
        match draw.randrange(4):
            case 0 if isinstance(holder, dict):
                holder.pop(key, None)
            case 1 if isinstance(holder, list):
                holder.append(holder[key])
            case 2:
                other, name = draw.choice(places(tree))
                holder[key] = json.loads(json.dumps(other[name]))
            case _:
                holder[key] = draw.choice(HOSTILE)
    return json.dumps(tree).encode()


@count(12, 400)
@pytest.mark.parametrize("name", ["plan.json", "artefact.json"])
def test_other_values_in_documents(name: str, seed: range, folder: Path, tmp_path: Path) -> None:
    content, path = (folder / name).read_bytes(), tmp_path / name
    for number in seed:
        path.write_bytes(changed(content, random.Random(number)))
        attempt(path, READERS[name])


@count(16, 600)
@pytest.mark.parametrize("part", ["models/model.json", "model_weights_config.json"])
def test_other_values_in_programs(part: str, seed: range, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    for number in seed:
        path.write_bytes((folder / "model.pt2").read_bytes())
        draw = random.Random(number)

        def change(name: str, content: bytes, draw: random.Random = draw) -> bytes:
            return changed(content, draw) if name.endswith(part) else content

        rewrite(path, change)
        attempt(path, lambda file: prunus.analyze(file))


@count(4, 60)
def test_entries_that_have_changed_places(seed: range, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    for number in seed:
        draw = random.Random(number)
        one, other = draw.sample(sorted(entries), 2)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**entries, one: entries[other], other: entries[one]}.items():
                archive.writestr(name, content)
        attempt(path, READERS["model.pt2"])


# --- claims


def test_an_array_that_claims_more_than_the_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    path.write_bytes((folder / "data.npy").read_bytes().replace(b"(3, 4)", b"(9999999999, 8)"))
    with pytest.raises(prunus.SourceError, match=r"data\.npy cannot be read"):
        read_arrays(path)


def test_an_archive_that_unpacks_to_more_than_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_UNPACKED", 2**20)
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (2**20,)}
        )  # type: ignore[arg-type]
        for _ in range(4):
            file.write(bytes(2**20))
    with pytest.raises(prunus.SourceError, match="claims to unpack to 4,194,"):
        read_arrays(path)


@pytest.mark.parametrize("name", ["model.pt2", "plan.json", "weights.pth", "data.npy", "layers.csv"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    suffix = Path(name).suffix
    for path in (
        tmp_path / f"a\0b{suffix}",
        tmp_path / f"{'a' * 300}{suffix}",
        tmp_path / f"\x1b[2J{suffix}",
    ):
        with pytest.raises(prunus.PrunusError) as caught:
            READERS[name](path)
        assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_name_is_no_markup(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from prunus.cli.main import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "[").mkdir()
    for name in ("[/red]m.pt2", "[bold]m.pt2"):
        path = Path(name)
        path.write_bytes((folder / "model.pt2").read_bytes())
        said = CliRunner().invoke(app, ["inspect", name])
        assert said.exit_code == 0 and name in said.output
