"""The small model as ONNX, compared with onnxruntime before anybody gets it."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from prunus.capture.batch import batch_size, with_batch
from prunus.capture.outputs import only_plain_outputs
from prunus.errors import ArtefactError
from prunus.inputs import Inputs
from prunus.surgery.difference import relative_error

__all__ = ["require_onnx", "write_onnx"]

_TOLERANCE = 1e-4
# the protocol buffer that an ONNX file is holds at most 2 GiB; larger weights go to a file beside it
_IN_ONE_FILE = 1_800_000_000


def require_onnx() -> None:
    """Find out before any work whether ONNX can be written.

    Raises:
        ArtefactError: If a package is missing.
    """
    missing = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ArtefactError(f"Writing model.onnx needs {', '.join(missing)}: pip install 'prunus[onnx]'.")


def write_onnx(program: ExportedProgram, model: nn.Module, inputs: Inputs, path: Path, dynamic: bool) -> None:
    """Write an exported program as ONNX, and compare its outputs in onnxruntime with the model's.

    Args:
        program: The exported model.
        model: The model itself, in evaluation mode on the CPU.
        inputs: Inputs of the program; with a dynamic batch, one more sample than these is compared too.
        path: The file; weights beyond 1.8 GB go to ``<path>.data``.
        dynamic: Whether the batch is.

    Raises:
        ArtefactError: If the program cannot be converted, or an output differs by more than 1e-4 of its
            scale.
    """
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    try:
        with _quiet():
            converted = torch.onnx.export(program, verbose=False)
            if converted is None:
                raise RuntimeError("torch.onnx.export returned nothing")
            converted.save(path, external_data=size_bytes > _IN_ONE_FILE)
    except OSError:
        raise
    except Exception as error:
        raise ArtefactError(
            f"The model cannot be written as ONNX by torch {torch.__version__}: {_reason(error)}\n"
            "Save it without onnx=True; model.pt2 runs everywhere that torch does."
        ) from error
    _compare(model, inputs, path)
    size = batch_size(inputs)
    if dynamic and size:
        _compare(model, with_batch(inputs, size, size + 1), path)


def _compare(model: nn.Module, inputs: Inputs, path: Path) -> None:
    import onnxruntime

    with torch.no_grad(), only_plain_outputs(model):
        expected = _tensors(model(*inputs.args, **inputs.kwargs))
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = [tensor.numpy() for tensor in _tensors((inputs.args, inputs.kwargs))]
        names = [item.name for item in session.get_inputs()]
        if len(names) != len(given):
            raise ValueError(f"it takes {len(names)} inputs where the model takes {len(given)}")
        results = session.run(None, dict(zip(names, given, strict=True)))
    except Exception as error:
        raise ArtefactError(f"onnxruntime does not run {path.name}: {_reason(error)}") from error
    if len(results) != len(expected):
        raise ArtefactError(
            f"{path.name} has {len(results)} outputs where the model has {len(expected)} tensors."
        )
    for number, (wanted, result) in enumerate(zip(expected, results, strict=True)):
        got = torch.as_tensor(result)
        error = relative_error(wanted, got) if got.shape == wanted.shape else float("inf")
        if error > _TOLERANCE:
            raise ArtefactError(
                f"Output {number} of {path.name} differs in onnxruntime by {error:.1e} of its scale from the "
                f"model's, more than {_TOLERANCE:.0e}. Save the result without onnx=True."
            )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own remarks from the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
