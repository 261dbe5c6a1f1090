"""The entry: whatever holds a model becomes a `Captured`."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from prunus.capture.captured import Captured
from prunus.capture.export import export_module
from prunus.capture.preserve import left_as_found
from prunus.capture.program import captured_from
from prunus.errors import CaptureError
from prunus.inputs import as_inputs

__all__ = ["capture"]


def capture(source: nn.Module | ExportedProgram | str | Path, example_inputs: Any) -> Captured:
    """Turn a model into one graph in which parameters are values like any other.

    The model is left as found: mode, hooks, attributes, gradients and random state.

    Args:
        source: A module.
        example_inputs: Anything that `as_inputs` takes.

    Raises:
        CaptureError: If the inputs do not fit, the forward cannot be captured, or weights are not finite.
    """
    if not isinstance(source, nn.Module):
        raise CaptureError(f"Cannot capture a {type(source).__name__}.")
    example = as_inputs(example_inputs)
    with left_as_found(source):
        program, run_inputs, reason = export_module(source, example)
        captured = captured_from(program, source, example, run_inputs)
    return captured.with_(static_reason=reason)
