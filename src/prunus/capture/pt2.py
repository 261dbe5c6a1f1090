"""Read ``.pt2`` files without running anything that they contain.

``torch.export.load`` unpickles where a file asks for it, loads compiled libraries, evaluates strings as Python (sizes), imports
classes by their names and writes names into code that it runs. Here the archive is read, and everything in it looked at, first;
torch gets weights and a description of a graph that are plain data.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._export.serde import schema
from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from prunus.alone import alone
from prunus.capture.diagnose import first_line
from prunus.capture.reading.archive import Archive, DamagedArchiveError, require_archive
from prunus.capture.reading.consistent import InconsistentError, require_consistent
from prunus.capture.reading.payload import read_tensors
from prunus.capture.reading.plain import NotPlainError, require_plain
from prunus.capture.shapes import GUARDS
from prunus.errors import CaptureError, SourceError
from prunus.files import PICKLES, open_file, shown

__all__ = ["load_program"]

_EXPECTED = re.compile(
    r"(models/model\.json|data/(weights|constants)/((weight|tensor)_\d+|model_(weights|constants)_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/.*|archive_format|archive_version|byteorder|\.?data/\.?(version|serialization_id)"
    r"|version|\.data/.*|\.format_version|\.storage_alignment)"
)
_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_MOST_VALUES = 2**28  # in an example input: one number can be read as any shape
_SHOWN = ("stack_trace", "nn_module_stack", "torch_fn")  # of what a file tells about a node


@alone
def load_program(path: str | Path) -> ExportedProgram:
    """Load an exported program from a ``.pt2`` file that holds plain data only.

    Raises:
        SourceError: If there is no such file, it is not a ``.pt2`` file, is damaged, or holds more than plain data.
    """
    path = Path(path)
    _require_pt2(path)
    with open_file(path, SourceError) as file:
        return _checked(path, file)


def _checked(path: Path, file: BinaryIO) -> ExportedProgram:
    """Whatever a file does to the libraries that read it is an error of the file."""
    try:
        return _program(Archive(file))
    except DamagedArchiveError as error:
        raise SourceError(
            f"{shown(path)} is damaged, or not as torch.export.save writes it: {error}."
        ) from error
    except (NotPlainError, InconsistentError, CaptureError) as error:
        raise SourceError(
            f"{shown(path)} is damaged or holds more than plain data: {error}. It is not opened."
        ) from error
    except Exception as error:
        raise SourceError(
            f"{shown(path)} cannot be read by torch {torch.__version__}: {first_line(_innermost(error))}\n"
            "If it is not damaged, save it again with torch.export.save in this version of torch."
        ) from error


def _innermost(error: BaseException) -> BaseException:
    """The cause behind a text of all that torch knows about a node."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _require_pt2(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise SourceError(
            f"{shown(path)} is a pickle by its name, and opening a pickle can run any code, so prunus does not. "
            "Build the model's class yourself, load_state_dict(torch.load(path, weights_only=True)) into "
            "it, and pass the model; or save it once with "
            "torch.export.save(torch.export.export(model.eval(), args), 'model.pt2')."
        )
    with open_file(path, SourceError, ", expected a .pt2 file") as file:
        if path.suffix.lower() != ".pt2" or file.read(2) != b"PK":
            raise SourceError(f"{shown(path)} is not a .pt2 file, as torch.export.save writes it.")


def _program(archive: Archive) -> ExportedProgram:
    strange = next((name for name in archive.names if not _EXPECTED.fullmatch(name)), None)
    if strange is not None:
        raise NotPlainError(f"it has an entry {strange[:80]!r}")
    if "byteorder" in archive.names and archive.read("byteorder") != b"little":
        raise NotPlainError("its numbers are in another order of bytes")
    about = _read_json(archive, _MODEL, schema.ExportedProgram)
    guards = about["guards_code"]
    about["guards_code"] = []  # Python, which program.module() would run
    _forget_metadata(about["graph_module"])
    weights, constants = (
        _read_json(archive, f"{folder}model_{kind}_config.json", schema.PayloadConfig)
        for folder, kind in ((_WEIGHTS, "weights"), (_CONSTANTS, "constants"))
    )
    described: Any = _dict_to_dataclass(schema.ExportedProgram, about)
    program = ExportedProgramDeserializer().deserialize(
        described,
        read_tensors(archive, _WEIGHTS, weights),
        read_tensors(archive, _CONSTANTS, constants),
        _samples(archive),
    )
    require_consistent(program)
    program.graph_module.meta[GUARDS] = guards  # these are read as arithmetic, and never run
    return program


def _read_json(archive: Archive, name: str, kind: Any) -> dict[str, Any]:
    try:
        content = json.loads(archive.read(name).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotPlainError(f"{name} is not JSON ({error})") from error
    require_plain(kind, content, name)
    return content


def _forget_metadata(about: dict[str, Any]) -> None:
    """Keep of the remarks in a file what messages show; torch would look others up, or read them as JSON again."""
    about["metadata"] = {}
    graphs: list[Any] = [about["graph"]]
    while graphs:
        item = graphs.pop()
        if isinstance(item, dict) and isinstance(remarks := item.get("metadata"), dict):
            item["metadata"] = {key: remarks[key] for key in _SHOWN if key in remarks}
        if isinstance(item, dict | list):
            graphs += item.values() if isinstance(item, dict) else item


def _samples(archive: Archive) -> Any:
    """The example inputs that a file keeps; None where it keeps none."""
    content = archive.read(_SAMPLES) if _SAMPLES in archive.names else b""
    if not content:
        return None
    require_archive(content)
    try:
        samples = torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise NotPlainError("its example inputs need a pickle; save the program without them") from error
    for leaf in pytree.tree_leaves(samples):
        if isinstance(leaf, Tensor) and leaf.numel() > _MOST_VALUES:
            raise NotPlainError(f"an example input claims {leaf.numel():,} values")
    args, kwargs = samples
    return tuple(args), dict(kwargs)
