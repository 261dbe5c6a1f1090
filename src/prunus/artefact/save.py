"""Write a result: plan, weights, a self-contained model, a report; all of it or nothing."""

import io
import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.alone import alone
from prunus.artefact.atomic import new_folder, require_free
from prunus.artefact.checks import MODEL, PARTS, PLAN, REPORT, WEIGHTS, strange_in, written
from prunus.artefact.load import rebuild
from prunus.artefact.onnx import require_onnx, write_onnx
from prunus.artefact.program import export_for_saving, on_cpu, plain
from prunus.artefact.tensors import write_state
from prunus.capture import Captured, architecture_hash
from prunus.capture.batch import batch_size, with_batch
from prunus.capture.export import Export
from prunus.capture.outputs import only_plain_outputs
from prunus.capture.preserve import buffers_kept, left_as_found, seed_generators
from prunus.errors import ArtefactError
from prunus.files import as_path
from prunus.inputs import Inputs
from prunus.surgery.difference import relative_error
from prunus.surgery.other_sizes import other_sizes

__all__ = ["require_savable", "save"]

_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
_TOLERANCE = 1e-4


class _Plan(Protocol):
    @property
    def architecture(self) -> str: ...
    def to_json(self) -> str: ...


class _Report(Protocol):
    def to_json(self) -> str: ...


class SavableResult(Protocol):
    """What of a result is saved."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def plan(self) -> _Plan: ...
    @property
    def report(self) -> _Report: ...
    @property
    def captured(self) -> Captured: ...


@alone
def save(
    result: SavableResult, directory: str | os.PathLike[str], *, overwrite: bool = False, onnx: bool = False
) -> Path:
    """Write a result to a folder, from which `prunus.load` builds the model without its code.

    * ``plan.json``: what was removed from what; `prunus.apply` repeats it on a fresh model.
    * ``model.safetensors``: the state dict of the model as it is now, trained further or not. Tied tensors
      are in it once, and its metadata has their other names.
    * ``model.pt2``: the exported model, on the CPU, with any batch size where the capture had that. It keeps
      up to two samples of the example inputs. Outputs that torch cannot take apart, such as a cache of keys and
      values, are left out.
      A model that was captured in parts has no such file: rebuild it from its code with `prunus.apply` and the weights.
    * ``report.json``; ``model.onnx`` on request, checked against onnxruntime to 1e-4 of the outputs' scale.
    * ``artefact.json``: versions, architecture, size and SHA-256 of each file.

    All is written to a folder beside the target, loaded from there and compared with the model, flushed to
    the disk, and moved into place as a whole: a full disk or a killed process leaves the target as it was.

    Args:
        result: What `prunus.compress` or `prunus.apply` returned.
        directory: The folder; parents are created.
        overwrite: Replace the folder if it exists and holds nothing but an earlier result, unchanged since it was written.
        onnx: Write ``model.onnx`` too; needs ``prunus[onnx]``.

    Returns:
        The folder.

    Raises:
        ArtefactError: If the folder exists, cannot be written, or what was written does not compute what the
            model computes.
    """
    require_savable(directory, overwrite=overwrite, onnx=onnx)
    target = as_path(directory, ArtefactError)
    with new_folder(target, overwrite=overwrite, own=strange_in) as folder:
        _write(result, folder, onnx)
    return target


def require_savable(
    directory: str | os.PathLike[str], *, overwrite: bool = False, onnx: bool = False
) -> None:
    """Find out before the work what would keep `save` from saving after it.

    Raises:
        ArtefactError: If the folder may not be replaced, or a package for ONNX is missing.
    """
    if onnx:
        require_onnx()
    require_free(as_path(directory, ArtefactError), overwrite, strange_in)


def _write(result: SavableResult, folder: Path, onnx: bool) -> None:
    _write_text(folder / PLAN, result.plan.to_json())
    _write_text(folder / REPORT, result.report.to_json())
    model = on_cpu(result.model)
    write_state(model.state_dict(), folder / WEIGHTS)
    if not result.captured.is_program:
        _write_parts(result, folder, onnx)
        return
    name = _class_name(result)
    for fixed in (False, True):
        export = export_for_saving(model, result.captured, fixed=fixed)
        _write_program(folder / MODEL, export)
        loaded, captured = rebuild(folder / MODEL, name)
        if fixed or _is_same_elsewhere(model, loaded, captured, export.run_inputs):
            break
    _require_same_state(result.model, loaded)
    dynamic = export.static_reason is None
    with left_as_found(model), buffers_kept(model):
        for inputs in _trials(export.run_inputs, dynamic):
            _require_same_outputs(model, loaded, inputs)
        if onnx:
            write_onnx(export.program, model, export.run_inputs, folder / "model.onnx", dynamic)
    import prunus

    written(
        folder,
        prunus=prunus.__version__,
        model_class=name,
        architecture=architecture_hash(captured),
        original_architecture=result.plan.architecture,
        batch="dynamic" if dynamic else "fixed",
        batch_reason=export.static_reason,
        left_out=list(export.left_out),
    )


def _write_parts(result: SavableResult, folder: Path, onnx: bool) -> None:
    """What can be written of a model that cannot be exported as a whole."""
    if onnx:
        raise ArtefactError(
            "There is no ONNX file of a model that was captured in parts, or that packs sequences, because no graph holds all of "
            "it. Save without it."
        )
    import prunus

    partial = result.captured.partial
    written(
        folder,
        prunus=prunus.__version__,
        model_class=_class_name(result),
        architecture=architecture_hash(result.captured),
        original_architecture=result.plan.architecture,
        batch=PARTS,
        batch_reason=result.captured.static_reason,
        left_out=[each.path or "the model" for each in partial.left_out]
        if partial
        else ["what packs sequences"],
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def _write_program(path: Path, export: Export) -> None:
    with path.open("wb") as file:
        kept = _KeepGoing(file)
        torch.export.save(export.program, kept)
        if kept.error is not None:
            raise kept.error


class _KeepGoing(io.BytesIO):
    """A file for torch's archive writer, which ends the process when it meets a full disk.

    After the first error it accepts all that comes and writes no more; `error` has to be raised afterwards.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def _class_name(result: SavableResult) -> str:
    """Name of the original class, without what lifting puts before it."""
    name = type(result.model).__name__.removeprefix("Lifted")
    return name if name.isidentifier() else "Module"


# --- what was written computes what the model computes


def _require_same_state(model: nn.Module, loaded: nn.Module) -> None:
    expected, found = model.state_dict(), loaded.state_dict()
    if set(expected) != set(found):
        different = sorted(set(expected) ^ set(found))
        raise ArtefactError(
            f"The saved model has other tensors than the model: {', '.join(different[:5])}. Nothing was "
            "saved."
        )
    for name, tensor in expected.items():
        if not torch.equal(tensor.detach().cpu(), found[name]):
            if tensor.isnan().any():
                raise ArtefactError(f"{name} holds NaN; such a model is not saved.")
            raise ArtefactError(f"{name} in the saved model is not what the model has. Nothing was saved.")


def _is_same_elsewhere(model: nn.Module, loaded: nn.Module, captured: Captured, inputs: Inputs) -> bool:
    """Whether a loaded model computes what the model does at another size, where sizes are free."""
    with left_as_found(model), buffers_kept(model):
        for each in other_sizes(captured, inputs):
            try:
                _outputs(model, each)
            except Exception:  # noqa: BLE001  the model does not take these sizes
                continue
            try:
                _require_same_outputs(model, loaded, each)
            except (ArtefactError, RuntimeError):
                return False
            return True
    return True


def _trials(inputs: Inputs, dynamic: bool) -> list[Inputs]:
    size = batch_size(inputs)
    return [inputs, with_batch(inputs, size, size + 1)] if dynamic and size else [inputs]


def _require_same_outputs(model: nn.Module, loaded: nn.Module, inputs: Inputs) -> None:
    expected, got = _outputs(model, inputs), _outputs(loaded, inputs)
    if len(expected) != len(got):
        raise ArtefactError(
            f"The saved model returns {len(got)} values where the model returns {len(expected)}. Nothing was "
            "saved."
        )
    for number, (wanted, result) in enumerate(zip(expected, got, strict=True)):
        if not isinstance(wanted, Tensor):
            continue
        same = isinstance(result, Tensor) and result.shape == wanted.shape and result.dtype == wanted.dtype
        error = relative_error(wanted, result) if same else float("inf")
        if error > _TOLERANCES.get(wanted.dtype, _TOLERANCE):
            raise ArtefactError(
                f"Output {number} of the saved model differs by {error:.1e} of its scale from the model's. "
                "Nothing was saved."
            )


def _outputs(model: nn.Module, inputs: Inputs) -> list[Any]:
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (inputs.args, inputs.kwargs))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), only_plain_outputs(model):
        seed_generators(0)
        return pytree.tree_leaves(plain(model(*args, **kwargs)))
