"""Whatever interrupts a save, there is the old result or the new one, and no litter after the next save."""

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.artefact import atomic, load, require_savable, save
from prunus.artefact.atomic import interrupted_save, new_folder
from prunus.artefact.checks import FILES, written
from prunus.errors import ArtefactError
from tests.artefact.results import ConvNet, SmallResult, made

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def result() -> SmallResult:
    return made(ConvNet(), IMAGE)


def strange(folder: Path) -> str | None:
    """As far as the exchange of folders is concerned, names tell what is a result."""
    return next((f"it holds {entry.name}." for entry in folder.iterdir() if entry.name not in FILES), None)


def old_result(folder: Path) -> dict[str, str]:
    """A folder as an earlier save leaves it, as far as its files and their manifest go."""
    folder.mkdir()
    for name in ("plan.json", "model.safetensors", "model.pt2", "report.json"):
        (folder / name).write_text(f"old {name}")
    about = {"prunus": "0", "model_class": "Net", "architecture": "", "original_architecture": ""}
    written(folder, **about, batch="dynamic", batch_reason=None, left_out=[])
    return content(folder)


def write(target: Path, text: str = "new", overwrite: bool = True) -> None:
    """What saving does to the disk, without a model."""
    with new_folder(target, overwrite=overwrite, own=strange) as folder:
        (folder / "plan.json").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "out", "old", overwrite=False)
    with pytest.raises(ArtefactError, match=r"out exists already.*overwrite=True"):
        write(tmp_path / "out", overwrite=False)
    with pytest.raises(ArtefactError, match="exists already"):
        require_savable(tmp_path / "out")
    old_result(tmp_path / "result")
    require_savable(tmp_path / "result", overwrite=True)
    assert content(tmp_path / "out") == {"plan.json": "old"}


def plan_alone(folder: Path) -> None:
    for name in ("artefact.json", "model.safetensors", "model.pt2", "report.json"):
        (folder / name).unlink()


def with_notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def with_a_folder(folder: Path) -> None:
    (folder / "model.onnx").mkdir()
    (folder / "model.onnx" / "precious").write_text("mine")


def edited(folder: Path) -> None:
    (folder / "plan.json").write_text("new plan.json")


def of_another_program(folder: Path) -> None:
    (folder / "artefact.json").write_text('{"files": {}}')


def linked(folder: Path) -> None:
    (folder / "plan.json").rename(folder.parent / "mine.json")
    (folder / "plan.json").symlink_to(folder.parent / "mine.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (plan_alone, "no artefact.json"),
        (with_notes, "notes.txt"),
        (with_a_folder, "model.onnx"),
        (edited, "plan.json"),
        (of_another_program, "artefact.json"),
        (linked, "is a link"),
    ],
)
def test_only_an_unchanged_result_is_replaced(
    change: Callable[[Path], None], words: str, result: SmallResult, tmp_path: Path
) -> None:
    old_result(tmp_path / "out")
    change(tmp_path / "out")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for call in (require_savable, lambda *args, **more: save(result, *args, **more)):
        with pytest.raises(ArtefactError, match=r"out is not replaced") as caught:
            call(tmp_path / "out", overwrite=True)
        assert words in str(caught.value)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_an_empty_folder_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    require_savable(tmp_path / "out", overwrite=True)
    with pytest.raises(ArtefactError, match="exists already"):
        require_savable(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "words"), [("a\0b", "no name can have"), ("a" * 300, "too long"), ("\x1b[2J\0", r"\x1b[2J")]
)
def test_names_that_no_folder_can_have(name: str, words: str, result: SmallResult, tmp_path: Path) -> None:
    for call in (require_savable, lambda path: save(result, path)):
        with pytest.raises(ArtefactError) as caught:
            call(tmp_path / name)
        assert words in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="modes of files are POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o007])
def test_files_have_the_mode_that_the_umask_says(mask: int, result: SmallResult, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        folder = save(result, tmp_path / "out")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o666 & ~mask}


def test_overwriting_replaces_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "model.onnx").write_text("of the old one")
    write(tmp_path / "out")
    assert content(tmp_path / "out") == {"plan.json": "new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtefactError, match=r"thesis\.tex"):
        write(tmp_path / "out")
    assert content(tmp_path / "out") == {"thesis.tex": "years of work"}


def test_a_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtefactError, match="is a file"):
        write(tmp_path / "out")
    with pytest.raises(ArtefactError, match="could not be saved"):
        write(tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "mine"


def test_parents_are_made_and_links_followed(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "out", "old")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b" / "out")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "a" / "b" / "out") == {"plan.json": "new"}


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtefactError, match="exists by now"),
        new_folder(tmp_path / "out", overwrite=False, own=strange) as folder,
    ):
        (folder / "plan.json").write_text("slow")
        write(tmp_path / "out", "fast")
    assert content(tmp_path / "out") == {"plan.json": "fast"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "in two steps"])
def test_there_is_always_a_whole_folder(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    write(tmp_path / "out", "0")
    seen: set[str] = set()
    missing = 0
    done = threading.Event()

    def look() -> None:
        nonlocal missing
        while not done.is_set():
            try:
                seen.add((tmp_path / "out" / "plan.json").read_text())
            except FileNotFoundError:
                missing += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(100):
        write(tmp_path / "out", str(number))
    done.set()
    watcher.join()
    assert seen <= {str(number) for number in range(100)}
    assert not missing or not exchange
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


# --- a full disk


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with (
        pytest.raises(ArtefactError, match=r"No space left.*bytes free.*out is as it was before"),
        new_folder(tmp_path / "out", overwrite=True, own=strange) as folder,
    ):
        (folder / "plan.json").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert content(tmp_path / "out") == {"plan.json": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("at", ["write_state", "_write_program", "_write_text", "written"])
@pytest.mark.parametrize("before", [True, False], ids=["over an old one", "new"])
def test_a_full_disk_at_any_file(
    at: str, before: bool, result: SmallResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = old_result(tmp_path / "out") if before else {}
    monkeypatch.setattr(importlib.import_module("prunus.artefact.save"), at, full)
    with pytest.raises(ArtefactError, match="No space left"):
        save(result, tmp_path / "out", overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == (["out"] if before else [])
    assert not before or content(tmp_path / "out") == old


@pytest.mark.skipif(os.name == "nt", reason="limits of processes are POSIX")
@pytest.mark.parametrize("limit", [100, 1_500, 20_000], ids=["plan", "weights", "model"])
def test_files_that_cannot_grow(limit: int, tmp_path: Path) -> None:
    """The operating system itself refuses, to Python, Rust and C++ writers alike."""
    code = (
        "import sys, signal, resource, torch\n"
        "from pathlib import Path\n"
        "from prunus.artefact import save\n"
        "from prunus.errors import ArtefactError\n"
        "from tests.artefact.results import ConvNet, made\n"
        "result = made(ConvNet(), torch.randn(1, 3, 8, 8))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try:\n"
        "    save(result, sys.argv[1])\n"
        "except ArtefactError as error:\n"
        "    sys.exit(f'refused: {error}')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(limit)], capture_output=True, text=True
    )
    assert run.returncode == 1 and "refused: The result could not be saved" in run.stderr, run.stderr
    assert "File too large" in run.stderr and "was not created" in run.stderr
    assert list(tmp_path.iterdir()) == []


# --- a killed process

SLOW = """
import importlib, sys, time
from pathlib import Path
import torch
from tests.artefact.results import ConvNet, made
module = importlib.import_module(sys.argv[2])
original = getattr(module, sys.argv[3])
def slow(*args, **more):
    done = original(*args, **more) if sys.argv[4] == "after" else None
    print("now", flush=True)
    time.sleep(600)
    return done
setattr(module, sys.argv[3], slow)
from prunus.artefact import save
save(made(ConvNet(), torch.randn(1, 3, 8, 8)), sys.argv[1], overwrite=True)
"""


def killed_while(target: Path, module: str, function: str, when: str) -> None:
    """Save in a process that is killed inside one function."""
    arguments = [str(target), f"prunus.artefact.{module}", function, when]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "function", "when"),
    [
        ("save", "write_state", "after"),
        ("save", "_write_program", "after"),
        ("save", "written", "before"),
        ("atomic", "_flush", "before"),
        ("atomic", "_place", "before"),
        ("atomic", "_exchange", "after"),
    ],
)
def test_a_killed_save(module: str, function: str, when: str, tmp_path: Path, result: SmallResult) -> None:
    target = tmp_path / "out"
    save(result, target)
    before = json.loads((target / "artefact.json").read_text())
    killed_while(target, module, function, when)
    litter = [entry for entry in tmp_path.iterdir() if entry != target]
    assert len(litter) == 1 and litter[0].name.startswith(".out.prunus-new-")
    load(target)
    same = json.loads((target / "artefact.json").read_text()) == before
    assert same == (function != "_exchange"), "old and new are told apart by their weights"
    save(result, target, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_killed_save_leaves_no_half_folder(tmp_path: Path) -> None:
    """Without an old folder; the quick one of the kind."""
    killed_while(tmp_path / "out", "save", "_write_program", "after")
    assert not (tmp_path / "out").exists()
    (litter,) = tmp_path.iterdir()
    with pytest.raises(ArtefactError, match=r"no artefact\.json"):
        load(litter)
    write(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_folder_of_a_save_that_goes_on_is_not_cleaned(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from prunus.artefact.atomic import new_folder\n"
        "with new_folder(Path(sys.argv[1]), overwrite=True, own=lambda folder: None) as folder:\n"
        "    (folder / 'plan.json').write_text('slow')\n"
        "    print('now', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        write(tmp_path / "out", "fast")
        assert content(tmp_path / "out") == {"plan.json": "fast"}
        process.communicate("go on\n")
    assert process.returncode == 0
    assert content(tmp_path / "out") == {"plan.json": "slow"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_two_renames_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where folders cannot be exchanged in one step, the old one has another name for a moment."""
    target = tmp_path / "out"
    write(target, "old")
    os.rename(target, tmp_path / ".out.prunus-old-0a1b2c3d")
    (tmp_path / ".out.prunus-new-0a1b2c3d").mkdir()
    assert interrupted_save(target) == tmp_path / ".out.prunus-old-0a1b2c3d"
    with pytest.raises(ArtefactError, match=r"interrupted.*prunus-old-0a1b2c3d"):
        load(target)
    with pytest.raises(ArtefactError, match="exists already"):
        write(target, overwrite=False)
    assert content(target) == {"plan.json": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_only_leftovers_of_this_folder_are_cleaned(tmp_path: Path) -> None:
    others = [".out2.prunus-new-1", "out.prunus-new-1", ".out.prunus-newer"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.prunus-new-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".out.prunus-new-file").write_text("")
    (tmp_path / ".out.prunus-new-gone").mkdir()
    write(tmp_path / "out")
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {*others, "elsewhere", ".out.prunus-new-link", ".out.prunus-new-file", "out"}


def test_without_locks_only_old_leftovers_are_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "fcntl", None)
    young, old = tmp_path / ".out.prunus-new-a", tmp_path / ".out.prunus-new-b"
    young.mkdir()
    old.mkdir()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    write(tmp_path / "out")
    assert young.exists() and not old.exists()
