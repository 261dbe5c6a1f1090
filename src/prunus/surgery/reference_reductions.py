"""Reductions of a partly removed value, computed over what is kept.

Every function takes the arguments of the operator by name and the masks of those that are partly removed.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunus.surgery.masks import count, fill, varies
from prunus.surgery.reference_norms import moments

__all__ = ["NEUTRAL", "STATISTICS", "attention", "reduced_axes"]

Arguments = dict[str, Any]
MaskOf = dict[str, Tensor]

# What a removed element is replaced by, so that the reduction does not see it.
NEUTRAL: dict[str, float] = {
    **dict.fromkeys(("sum", "nansum", "cumsum", "any", "count_nonzero", "norm", "linalg_vector_norm"), 0),
    **dict.fromkeys(("prod", "cumprod", "all"), 1),
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax"), -math.inf),
    **dict.fromkeys(("logsumexp", "logcumsumexp", "max", "amax", "argmax", "cummax", "topk"), -math.inf),
    **dict.fromkeys(("min", "amin", "argmin", "cummin"), math.inf),
}


def reduced_axes(a: Arguments, dimensions: int) -> tuple[int, ...]:
    """The axes that a reduction runs over; all when it names none."""
    named = a.get("dim")
    if named is None or (isinstance(named, list | tuple) and not named):
        return tuple(range(dimensions))
    axes = named if isinstance(named, list | tuple) else (named,)
    return tuple(axis % dimensions for axis in axes) if dimensions else ()


def neutral(name: str, a: Arguments) -> float:
    """What removed elements are replaced by for one call."""
    order = a.get("ord", a.get("p"))
    if name in ("norm", "linalg_vector_norm") and isinstance(order, int | float) and order < 0:
        return math.inf
    return NEUTRAL[name]


def mean(a: Arguments, masks: MaskOf) -> Tensor | None:
    """Mean over the kept; None when nothing is removed along the axes, and the operator itself does it."""
    value, mask = a["self"], masks["self"]
    axes = reduced_axes(a, value.dim())
    if not varies(mask, axes):
        return None
    number = count(mask.to(value.device), value.shape, axes, value.dtype).clamp(min=1)
    return _shaped(fill(value, mask).sum(axes, keepdim=True) / number, axes, a)


def _variance(a: Arguments, masks: MaskOf) -> tuple[Tensor, Tensor] | None:
    value, mask = a["self"], masks["self"]
    axes = reduced_axes(a, value.dim())
    if not varies(mask, axes):
        return None
    correction = a.get("correction", int(a.get("unbiased", True)))
    variance, average = moments(value, mask, axes, 1 if correction is None else correction)
    return _shaped(variance, axes, a), _shaped(average, axes, a)


def var(a: Arguments, masks: MaskOf) -> Tensor | None:
    found = _variance(a, masks)
    return None if found is None else found[0]


def std(a: Arguments, masks: MaskOf) -> Tensor | None:
    found = _variance(a, masks)
    return None if found is None else found[0].sqrt()


def var_mean(a: Arguments, masks: MaskOf) -> tuple[Tensor, Tensor] | None:
    return _variance(a, masks)


def std_mean(a: Arguments, masks: MaskOf) -> tuple[Tensor, Tensor] | None:
    found = _variance(a, masks)
    return None if found is None else (found[0].sqrt(), found[1])


def _shaped(result: Tensor, axes: tuple[int, ...], a: Arguments) -> Tensor:
    return result if a.get("keepdim", False) else result.squeeze(axes)


STATISTICS: dict[str, Callable[[Arguments, MaskOf], Any]] = {
    function.__name__: function for function in (mean, var, std, var_mean, std_mean)
}


def attention(a: Arguments, masks: MaskOf) -> Arguments:
    """Arguments of scaled_dot_product_attention on the original shapes with removed positions as zeros.

    The scale needs nothing: without one, the operator takes that of the original head dimension. Zeros are
    right along the head dimension and for whole heads; where single keys are removed, no query may see them.
    """
    a = {**a, **{name: fill(a[name], masks[name]) for name in ("query", "key", "value") if name in masks}}
    mask = masks.get("key")
    if mask is None or mask.shape[-2] == 1:
        return a
    seen = mask.any(-1).unsqueeze(-2)  # (..., 1, keys)
    seen = (seen | ~seen.any(-1, keepdim=True)).to(
        a["query"].device
    )  # heads that are gone: any softmax will do
    if a["enable_gqa"] and seen.shape[-3] > 1:
        seen = seen.repeat_interleave(a["query"].shape[-3] // seen.shape[-3], -3)
    queries, keys = a["query"].shape[-2], a["key"].shape[-2]
    if a["is_causal"]:
        seen = seen & torch.ones(queries, keys, dtype=torch.bool, device=seen.device).tril()
    given = a["attn_mask"]
    if given is None:
        given = seen
    elif given.dtype == torch.bool:
        given = given & seen
    else:
        given = fill(given, seen, -math.inf)
    return {**a, "attn_mask": given, "is_causal": False}
