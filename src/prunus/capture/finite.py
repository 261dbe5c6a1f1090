"""Refuse weights that are not numbers before anything is computed from them."""

import torch
from torch import Tensor, fx

from prunus.errors import CaptureError

__all__ = ["require_finite"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
_SHOWN = 10


def require_finite(
    placeholders: dict[str, fx.Node], tensors: dict[str, Tensor], names: dict[str, str], kinds: dict[str, str]
) -> None:
    """Check every tensor that the graph uses.

    A parameter must be finite. A buffer may hold infinities, as attention masks do, but no NaN.

    Raises:
        CaptureError: Naming the parameters and buffers that are not.
    """
    bad = [
        names[placeholder]
        for placeholder, tensor in tensors.items()
        if placeholders[placeholder].users and not _is_usable(tensor, kinds[placeholder])
    ]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise CaptureError(
            f"The model holds NaN or infinite weights: {', '.join(bad[:_SHOWN])}{more}. Nothing that is "
            "computed from them means anything. Load a checkpoint whose training did not diverge."
        )


def _is_usable(tensor: Tensor, kind: str) -> bool:
    if tensor.is_meta or tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        return True
    with torch.no_grad():
        if kind == "parameter":
            return bool(torch.isfinite(tensor).all())
        return not bool(torch.isnan(tensor).any())
