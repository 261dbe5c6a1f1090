"""Run a model at a chosen floating point precision, whatever precisions it names inside."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.capture.copying import copy_of
from prunus.capture.preserve import seed_generators
from prunus.surgery.depthwise import is_slow_depthwise, shifted_sum

__all__ = ["OnePrecision", "at_precision", "copy_at_precision", "exact_arithmetic", "is_bitcast"]

_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def at_precision(value: Any, dtype: torch.dtype) -> Any:
    """A floating point or complex tensor, or a torch.dtype of that kind, at a precision; others unchanged."""
    if isinstance(value, Tensor):
        wanted = _wanted(value.dtype, dtype)
        return value if wanted == value.dtype else value.to(wanted)
    return _wanted(value, dtype) if isinstance(value, torch.dtype) else value


def _wanted(given: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    if given.is_complex:
        return _COMPLEX[dtype]
    return dtype if given.is_floating_point else given


def is_bitcast(target: Any) -> bool:
    """Operators that reinterpret bits: the type they name is no precision."""
    return target is torch.ops.aten.view.dtype


def copy_at_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A deep copy of a module in evaluation mode, its floating point and complex tensors at one precision."""
    return copy_of(module).eval()._apply(lambda tensor: at_precision(tensor, dtype))


@contextlib.contextmanager
def exact_arithmetic(devices: list[torch.device], seed: int) -> Iterator[None]:
    """No gradients, no autocast, no TF32, nothing compiled, random numbers from a seed; all is restored afterwards."""
    precision = torch.get_float32_matmul_precision()
    cuda = [device for device in devices if device.type == "cuda"]
    cudnn = torch.backends.cudnn
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(cudnn.flags(cudnn.enabled, cudnn.benchmark, allow_tf32=False))
        for kind in {"cpu", *(device.type for device in devices)} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        seed_generators(seed)
        yield


class OnePrecision(TorchDispatchMode):
    """While active, every floating point operator computes at one precision.

    Casts and factory calls that name another precision (``x.to(torch.float32)`` in an RMS norm) yield this
    one, and so do tensors that arrive at another (plain attributes, which no cast of a module reaches).

    Attributes:
        stayed: The first operator that computed at another precision all the same; None if there was none.
    """

    supports_higher_order_operators = True

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.stayed: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            return func(*(self._inside(arg) if isinstance(arg, nn.Module) else arg for arg in args), **kwargs)
        if is_bitcast(func) or func._schema.is_mutable:
            # what is written to keeps its type; torch promotes the others
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map(lambda x: at_precision(x, self.dtype), (args, kwargs))
        if is_slow_depthwise(func, args):
            return shifted_sum(*args)
        result = func(*args, **kwargs)
        leaves = pytree.tree_leaves(result)
        if all(at_precision(leaf, self.dtype) is leaf for leaf in leaves):
            return result
        if any(isinstance(x, Tensor) and x.is_floating_point() for x in pytree.tree_leaves((args, kwargs))):
            self.stayed = self.stayed or str(func)
        return pytree.tree_map(lambda x: at_precision(x, self.dtype), result)

    def _inside(self, body: nn.Module) -> Callable[..., Any]:
        """The body of a control flow operator, at this precision too."""

        def run(*args: Any) -> Any:
            with self:
                return body(*args)

        return run
