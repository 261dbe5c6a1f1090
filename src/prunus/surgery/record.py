"""Run a model and note every call of torch: by which module, with which numbers, of which origin."""

from __future__ import annotations

import functools
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from prunus.inputs import Inputs
from prunus.surgery.provenance import Source, TracedInt, observing_equality

__all__ = ["INPUT", "Call", "Recording", "SizeOf", "record"]

INPUT = "<input>"  # no name that a parameter could have
_TORCH = str(Path(torch.__file__).parent) + os.sep
_HERE = str(Path(__file__).parents[1]) + os.sep
_ASKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@dataclass(frozen=True)
class SizeOf:
    """Leaf of a traced integer that was read from a tensor's shape.

    Attributes:
        made_by: Number of the call that made the tensor, or the qualified name of a parameter or buffer, or
            `INPUT`.
        output: Which of the call's outputs.
        axis: Which axis.
        before: The size in this forward.
    """

    made_by: int | str
    output: int
    axis: int
    before: int


@dataclass(frozen=True)
class Call:
    """One call of a torch function.

    Attributes:
        path: Module whose forward was running.
        name: Of the function, without underscores at its ends.
        args: Positional arguments as given; tensors are replaced by None.
        kwargs: Keyword arguments likewise.
        shapes: Of the tensors that came out.
        place: Source line that called it, innermost outside torch.
    """

    path: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    place: str


@dataclass
class Recording:
    """All calls of one forward in order, the traced integers found equal, and what came out."""

    calls: list[Call] = field(default_factory=list)
    equalities: list[tuple[Source, Source]] = field(default_factory=list)
    output: Any = None


def record(model: nn.Module, inputs: Inputs, recording: Recording | None = None) -> Recording:
    """Run the model's forward as it is; the caller sees to mode and gradients.

    A recording that is given is filled as far as the forward comes, if it raises.
    """
    recording = Recording() if recording is None else recording
    with ExitStack() as stack:
        paths = stack.enter_context(_module_paths(model))
        stack.enter_context(observing_equality(lambda a, b: recording.equalities.append((a, b))))
        stack.enter_context(_Recorder(recording, model, inputs, paths))
        recording.output = model(*inputs.args, **inputs.kwargs)
    return recording


@contextmanager
def _module_paths(model: nn.Module) -> Iterator[list[str]]:
    """Paths of the modules that are running, innermost last."""
    running = [""]
    handles = []
    for path, module in model.named_modules():

        def enter(module: nn.Module, args: Any, *, path: str = path) -> None:
            running.append(path)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            running.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchFunctionMode):
    def __init__(self, recording: Recording, model: nn.Module, inputs: Inputs, paths: list[str]) -> None:
        super().__init__()
        self._calls = recording.calls
        self._paths = paths
        self._opened: Any = None
        self._maker: Any = WeakIdKeyDictionary()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._maker[tensor] = (name, 0)
        for tensor in pytree.tree_leaves((inputs.args, inputs.kwargs)):
            if isinstance(tensor, Tensor):
                self._maker[tensor] = (INPUT, 0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inside = _without_question(func) if func is not self._opened else None
        if inside is not None:  # made of other functions of torch, which are the ones to see
            before, self._opened = self._opened, func
            try:
                with self:
                    return inside(*args, **kwargs)
            finally:
                self._opened = before
        result = func(*args, **kwargs)
        if isinstance(result, (torch.Size, int)):
            return self._size(result, args, kwargs)
        tensors = _tensors(result)
        if tensors:
            call = Call(
                self._paths[-1],
                _name(func),
                tuple(_constants(a) for a in args),
                {k: _constants(v) for k, v in kwargs.items()},
                tuple(tuple(t.shape) for t in tensors),
                _calling_line(),
            )
            for i, tensor in enumerate(tensors):
                self._maker[tensor] = (len(self._calls), i)
            self._calls.append(call)
        return result

    def _size(self, result: Any, args: Any, kwargs: Any) -> Any:
        """What was read from a shape, with its origin."""
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        made = self._maker.get(tensor) if tensor is not None else None
        if made is None or tensor is None:
            return result
        maker, output = made
        if isinstance(result, torch.Size):
            if len(result) != tensor.dim():
                return result
            return torch.Size([TracedInt(n, SizeOf(maker, output, i, n)) for i, n in enumerate(result)])
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if type(result) is int and isinstance(axis, int) and result == tensor.shape[axis]:
            return TracedInt(result, SizeOf(maker, output, int(axis) % tensor.dim(), result))
        return result


def _name(func: Any) -> str:
    return getattr(func, "__name__", type(func).__name__).strip("_")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _tensors(item)]
    return []


def _constants(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (tuple, list)):
        return tuple(_constants(v) for v in value)
    return value


def _calling_line() -> str:
    """The innermost line outside of torch; where the model is torch's own, the innermost of its modules."""
    frame: types.FrameType | None = sys._getframe(2)
    of_torch = ""
    while frame is not None and frame.f_code is not record.__code__:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _HERE)):
            return f"{name}:{frame.f_lineno}"
        of_torch = of_torch or (f"{name}:{frame.f_lineno}" if name.startswith(_TORCH + "nn") else "")
        frame = frame.f_back
    return of_torch or "unknown line"


@functools.cache
def _without_question(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """The same function without asking whether somebody wants to see it; None where there is nothing to see inside.

    Functions that torch wrote in Python hand themselves over when they are observed, and hide what they call.
    """
    if not isinstance(func, types.FunctionType) or not func.__module__.startswith("torch"):
        return None
    asked = [name for name in _ASKS if name in func.__code__.co_names and name in func.__globals__]
    if not asked:
        return None
    namespace = {**func.__globals__, **dict.fromkeys(asked, lambda *_: False)}
    plain = types.FunctionType(func.__code__, namespace, func.__name__, func.__defaults__, func.__closure__)
    plain.__kwdefaults__ = func.__kwdefaults__
    return plain
