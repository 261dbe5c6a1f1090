"""``artefact.json``: what a saved result consists of, and whether it is still what was written."""

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from prunus.artefact.atomic import interrupted_save
from prunus.errors import ArtefactError
from prunus.files import PICKLES, as_path, reason_of, shown

__all__ = [
    "FILES",
    "MANIFEST",
    "MODEL",
    "PARTS",
    "PLAN",
    "REPORT",
    "WEIGHTS",
    "Manifest",
    "verified",
    "written",
]

MANIFEST = "artefact.json"
PLAN, WEIGHTS, MODEL, REPORT = "plan.json", "model.safetensors", "model.pt2", "report.json"
_REQUIRED = (PLAN, WEIGHTS, MODEL, REPORT)
PARTS = "parts"  # in place of a kind of batch: the model was captured in parts, so there is no model.pt2
_OPTIONAL = ("report.html", "model.onnx", "model.onnx.data")
FILES = frozenset((MANIFEST, *_REQUIRED, *_OPTIONAL))

_VERSION = 1
_MIB = 2**20
_LIMITS = {MANIFEST: _MIB, PLAN: 256 * _MIB, REPORT: 256 * _MIB, "report.html": 256 * _MIB}
_LIMIT = 2**40


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of ``artefact.json``.

    Attributes:
        version: Of this format.
        prunus: Version of prunus that wrote the artefact.
        torch: Version of torch that wrote it.
        model_class: Name of the class of the original model, for display.
        architecture: `architecture_hash` of the small model.
        original_architecture: `architecture_hash` of the model that the plan was made for.
        batch: ``"dynamic"``, or ``"fixed"`` with the reason in `batch_reason`; ``"parts"`` when the model could only be
            captured in parts, and no file holds it as a whole.
        batch_reason: Why the saved model takes one batch size only; None when it takes any.
        left_out: Outputs of the model that the saved one does not return.
        files: Name of each file besides this one -> its size and hash.
    """

    version: int
    prunus: str
    torch: str
    model_class: str
    architecture: str
    original_architecture: str
    batch: str
    batch_reason: str | None
    left_out: list[str]
    files: dict[str, FileEntry]


def written(folder: Path, **about: Any) -> Manifest:
    """Write ``artefact.json`` for the files that are in a folder.

    Args:
        folder: Holds all other files.
        about: The fields of `Manifest` besides `version`, `torch` and `files`.
    """
    names = sorted(entry.name for entry in folder.iterdir())
    files = {}
    for name in names:
        with (folder / name).open("rb") as file:
            files[name] = _entry(file)
    manifest = Manifest(version=_VERSION, torch=torch.__version__, files=files, **about)
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def verified(directory: str | os.PathLike[str]) -> tuple[Path, Manifest]:
    """Check that a folder is an artefact, whole and unchanged.

    Every file that ``artefact.json`` names has to be an ordinary file of the folder, not a link, with the
    size and the SHA-256 written there. Files that it does not name are never read.

    Raises:
        ArtefactError: Naming the file that is missing, cut short, changed or not a file.
    """
    folder = as_path(directory, ArtefactError)
    _require_folder(folder)
    return folder, _unchanged(folder)


def strange_in(folder: Path) -> str | None:
    """What in a folder is not of a result that prunus saved, in a sentence; None if all of it is as it was written."""
    names = {entry.name for entry in folder.iterdir()}
    if MANIFEST not in names:
        return f"it holds {_listed(names)}, and no {MANIFEST}."
    try:
        strange = names - set(_unchanged(folder).files) - {MANIFEST}
    except ArtefactError as error:
        return str(error)
    return f"it holds what prunus did not write ({_listed(strange)})." if strange else None


def _listed(names: set[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _unchanged(folder: Path) -> Manifest:
    manifest = _manifest(folder)
    for name, entry in manifest.files.items():
        with _opened(folder, name) as file:
            _compare(folder / name, _entry(file, expected=entry), entry)
    return manifest


def _require_folder(folder: Path) -> None:
    try:
        if folder.is_dir():
            next(folder.iterdir(), None)
            return
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{shown(folder)} cannot be opened: {reason_of(error)}.") from error
    if folder.suffix.lower() in PICKLES:
        raise ArtefactError(
            f"{shown(folder)} is a pickle by its name, and opening a pickle can run any code, so prunus does not. "
            "Build the model's class yourself, load_state_dict(prunus.load_weights(path)) into it, and pass "
            "that model; or save it once with "
            "torch.export.save(torch.export.export(model.eval(), args), 'model.pt2')."
        )
    if folder.exists():
        raise ArtefactError(f"{shown(folder)} is a file; expected the folder that result.save() wrote.")
    old = interrupted_save(folder)
    hint = f" A save was interrupted there: the previous result is in {shown(old)}; rename it." if old else ""
    raise ArtefactError(f"There is no folder {shown(folder)}.{hint}")


# --- the manifest


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise ArtefactError(
            f"{folder} has no {MANIFEST}, so it is no saved result of prunus (or only a part of one)."
        )
    with _opened(folder, MANIFEST) as file:
        content = file.read(_LIMITS[MANIFEST] + 1)
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged: it is not JSON ({error}).") from error
    problem = _problem(fields)
    if problem:
        raise ArtefactError(f"{path} is damaged or was changed: {problem}.")
    files = {name: FileEntry(**entry) for name, entry in fields["files"].items()}
    return Manifest(**{**fields, "files": files})


def _problem(fields: Any) -> str | None:
    if not isinstance(fields, dict):
        return "it holds no object"
    version = fields.get("version")
    if isinstance(version, int) and version > _VERSION:
        return f"its format {version} is newer than this prunus, which reads up to {_VERSION}; upgrade prunus"
    expected = Manifest.__dataclass_fields__
    if set(fields) != set(expected):
        different = sorted(set(fields) ^ set(expected))
        return f"it lacks or has too much: {', '.join(map(str, different[:5]))}"
    texts = [name for name in expected if name not in ("version", "files", "batch_reason", "left_out")]
    wrong = [name for name in texts if not isinstance(fields[name], str)]
    if wrong or version != _VERSION:
        return f"{(wrong or ['version'])[0]} is {fields[(wrong or ['version'])[0]]!r}"
    if not fields["model_class"].isidentifier():
        return f"model_class is {fields['model_class']!r}"
    files = fields["files"]
    if not isinstance(files, dict):
        return "files is no object"
    missing = sorted(set(_REQUIRED) - set(files) - ({MODEL} if fields["batch"] == PARTS else set()))
    return next(filter(None, (_file_problem(name, entry) for name, entry in files.items())), None) or (
        f"it does not name {missing[0]}" if missing else None
    )


def _file_problem(name: str, entry: Any) -> str | None:
    if name not in FILES or name == MANIFEST:
        return f"it names {name!r}, which is no file of an artefact"
    if not isinstance(entry, dict) or set(entry) != {"size_bytes", "sha256"}:
        return f"its entry of {name} is not a size and a hash"
    size, digest = entry["size_bytes"], entry["sha256"]
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _LIMITS.get(name, _LIMIT):
        return f"{name} has an impossible size ({size!r})"
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return f"{name} has an impossible hash"
    return None


# --- files


def _opened(folder: Path, name: str) -> BufferedReader:
    """Open an ordinary file of the folder; never a link, a pipe or a device."""
    path = folder / name
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise ArtefactError(f"{path} is a link. An artefact consists of ordinary files; copy it anew.")
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing.") from None
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtefactError(f"{path} is not an ordinary file.")
    return os.fdopen(descriptor, "rb")


def _entry(file: BufferedReader, expected: FileEntry | None = None) -> FileEntry:
    """Size and hash of an open file; a file of another size than expected is not read."""
    size = os.fstat(file.fileno()).st_size
    if expected is not None and size != expected.size_bytes:
        return FileEntry(size, "")
    return FileEntry(size, hashlib.file_digest(file, "sha256").hexdigest())


def _compare(path: Path, found: FileEntry, expected: FileEntry) -> None:
    if found.size_bytes != expected.size_bytes:
        raise ArtefactError(
            f"{path} has {found.size_bytes:,} bytes where {expected.size_bytes:,} were written: it is cut "
            "short or was changed. Copy the folder anew, or save the result again."
        )
    if found.sha256 != expected.sha256:
        raise ArtefactError(
            f"{path} is not what was written (its SHA-256 begins with {found.sha256[:12]}, expected "
            f"{expected.sha256[:12]}): it is damaged or was changed. Copy the folder anew, or save the "
            "result again."
        )
