"""Which positions of a value stay: masks made from labels, used to compute the reference."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from prunus.errors import VerificationError

__all__ = ["Masks", "count", "fill", "kept_values", "varies"]


class Masks:
    """The mask of every node: True where all labels of a position are kept.

    A mask has as many axes as the value, of size 1 along the axes on which it does not vary. So the mask of a
    ``(N, C, H, W)`` activation costs C booleans.

    Args:
        tracks: Node name -> label tensors of the node's shape, stride 0 along axes where they are constant.
        keep: One boolean for each label.
    """

    def __init__(self, tracks: Mapping[str, Any], keep: Tensor) -> None:
        self._tracks = tracks
        self._keep = torch.as_tensor(keep, dtype=torch.bool, device="cpu")
        self._made: dict[str, Tensor | None] = {}

    def of(self, name: str) -> Tensor | None:
        """The mask of a node, or None when all of it stays (or when it holds several tensors)."""
        if name not in self._made:
            self._made[name] = self._make(self._tracks.get(name, ()))
        return self._made[name]

    def _make(self, tracks: Any) -> Tensor | None:
        result: Tensor | None = None
        for track in tracks:
            if not isinstance(track, Tensor):  # several outputs: only what unpacks them is ever consumed
                return None
            mask = self._keep[_collapse(track)]
            if not mask.all():
                result = mask if result is None else result & mask
        return result


def _collapse(track: Tensor) -> Tensor:
    index = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in track.stride())
    return track[index]


def check_fits(mask: Tensor, value: Tensor, name: str) -> None:
    """Labels made for other shapes must not be applied: broadcasting would hide it."""
    if mask.dim() == value.dim() and all(m in (1, v) for m, v in zip(mask.shape, value.shape, strict=True)):
        return
    raise VerificationError(
        f"The labels of node {name!r} are for another shape than its value {tuple(value.shape)}: their mask "
        f"is {tuple(mask.shape)}. The reference runs only on inputs of the shapes that were captured."
    )


def varies(mask: Tensor, axes: Iterable[int]) -> bool:
    """Does the mask vary along one of the axes?"""
    return any(mask.shape[axis] > 1 for axis in axes)


def fill(value: Tensor, mask: Tensor, number: float = 0) -> Tensor:
    """A copy of the value with the removed positions set to a number (whatever they held, NaN included)."""
    if value.dtype == torch.bool:
        number = bool(number)
    elif not value.is_floating_point() and math.isinf(number):
        info = torch.iinfo(value.dtype)
        number = info.max if number > 0 else info.min
    # expanded, and with a tensor, this is about twice as fast as with a broadcast mask and a number
    return torch.where(mask.to(value.device).expand(value.shape), value, value.new_full((), number))


def count(mask: Tensor, shape: Iterable[int], axes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Number of kept positions along the axes of a value of the given shape; the axes stay, with size 1."""
    shape = tuple(shape)
    constant = math.prod(shape[axis] for axis in axes if mask.shape[axis] == 1)
    return mask.sum(axes, keepdim=True).to(dtype) * constant


def kept_values(value: Tensor, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """What is kept of a value, in its order, in the given shape; None if the number of elements differs.

    Rows that keep different but equally many indices (heads, groups) come out as rows.
    """
    if mask is None:
        return value if tuple(value.shape) == tuple(shape) else None
    kept = value[mask.to(value.device).expand(value.shape)]
    return kept.reshape(shape) if kept.numel() == math.prod(shape) else None
