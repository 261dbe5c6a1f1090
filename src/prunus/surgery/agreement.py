"""Does a module compute what the graph module computes: on the captured inputs, at a precision that can tell."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.copying import copy_of
from prunus.capture.outputs import only_plain_outputs
from prunus.inputs import Inputs
from prunus.surgery.difference import relative_error
from prunus.surgery.memory import free_bytes
from prunus.surgery.precision import OnePrecision, at_precision, copy_at_precision, exact_arithmetic
from prunus.surgery.record import Recording, record

__all__ = ["Agreement", "Trial"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_SEED = 0
_NOISE = 0.05


@dataclass(frozen=True)
class Trial:
    """A forward of a module next to the graph module's.

    Attributes:
        error: Largest relative error of any output, 0 where it is only rounding; infinity where outputs are of
            another number, kind or shape.
        recording: The calls that the forward made.
    """

    error: float
    recording: Recording


class Agreement:
    """What the graph module computes, and whether another module computes the same.

    Parameters that are all zeros or all ones, behind which differences would be invisible, get the same noise
    in both.
    """

    def __init__(self, captured: Captured, graph_module: nn.Module) -> None:
        self._captured = captured
        self._graph_module = graph_module
        self._noise = dict(_noise(graph_module))
        self.last = Recording()  # of the run before, also of one that raised
        self._wanted: dict[torch.dtype | None, list[Any]] = {}

    def trial(self, module: nn.Module, scalings: Mapping[str, Tensor] | None = None) -> Trial:
        """Compare: mostly both compute bit for bit the same at their own precision; where not, float64 decides.

        Args:
            module: It is copied, and left as it is. What its forward raises goes through.
            scalings: Parameter -> what to multiply it by.
        """
        recording, error = self._compare(module, None, scalings or {})
        if error == 0 or not math.isfinite(error):
            return Trial(error, recording)
        for dtype in (torch.float64, torch.float32):
            if dtype == torch.float64 and not _fits_in_float64(self._graph_module):
                continue
            try:
                error = self._compare(module, dtype, scalings or {})[1]
            except (RuntimeError, TypeError, NotImplementedError):
                continue  # it ran at its own precision, but has operators that lack this one
            return Trial(0.0 if error <= _TOLERANCE[dtype] else error, recording)
        return Trial(error, recording)

    def _compare(
        self, module: nn.Module, dtype: torch.dtype | None, scalings: Mapping[str, Tensor]
    ) -> tuple[Recording, float]:
        recording = self._run(module, dtype, scalings)
        got = self._leaves(recording.output)
        if dtype not in self._wanted:
            self._wanted[dtype] = self._leaves(self._run(self._graph_module, dtype, {}).output)
        wanted = self._wanted[dtype]
        if len(got) != len(wanted):
            return recording, math.inf
        return recording, max((_error(a, b) for a, b in zip(wanted, got, strict=True)), default=0.0)

    def _leaves(self, output: Any) -> list[Any]:
        """What is compared: outputs that are wanted, and are not None."""
        leaves = enumerate(pytree.tree_leaves(output))
        return [x for i, x in leaves if x is not None and self._captured.output_state(i) != "drop"]

    def _run(self, module: nn.Module, dtype: torch.dtype | None, scalings: Mapping[str, Tensor]) -> Recording:
        """A forward at one precision, or at the module's own."""
        copied = copy_of(module) if dtype is None else copy_at_precision(module, dtype)
        for part in copied.modules():
            part.training = False
        inputs = self._captured.run_inputs
        args, kwargs = pytree.tree_map_only(
            Tensor,
            lambda x: (x.detach() if dtype is None else at_precision(x.detach(), dtype)).clone(),
            (inputs.args, inputs.kwargs),
        )
        devices = list({tensor.device for tensor in self._captured.tensors.values()})
        with contextlib.ExitStack() as stack:
            stack.enter_context(exact_arithmetic(devices, _SEED))
            for name, parameter in copied.named_parameters():
                if name in self._noise:
                    parameter.add_(self._noise[name].to(parameter))
                if name in scalings:
                    parameter.mul_(scalings[name].to(parameter))
            stack.enter_context(only_plain_outputs(copied))
            if dtype is not None:
                stack.enter_context(OnePrecision(dtype))
            self.last = Recording()
            return record(copied, Inputs(args, kwargs), self.last)


def _noise(module: nn.Module) -> Any:
    """(name, noise) for each parameter whose elements are all the same."""
    for name, parameter in module.named_parameters():
        if parameter.numel() < 2 or not parameter.is_floating_point() or parameter.is_meta:
            continue
        flat = parameter.detach().reshape(-1)
        if bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all()):
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            yield name, torch.randn(parameter.shape, generator=generator) * _NOISE


def _error(wanted: Any, got: Any) -> float:
    if not isinstance(wanted, Tensor) or not isinstance(got, Tensor):
        return 0.0 if type(wanted) is type(got) and wanted == got else math.inf
    return relative_error(wanted, got) if wanted.shape == got.shape else math.inf


def _fits_in_float64(module: nn.Module) -> bool:
    tensors = [*module.parameters(), *module.buffers()]
    for device in {tensor.device for tensor in tensors}:
        if device.type == "mps":
            return False
        free = free_bytes(device)
        needed = 4 * sum(t.numel() * t.element_size() for t in tensors if t.device == device)
        if free is not None and needed > free / 4:
            return False
    return True
