"""What a node of the graph looks like when it is run on labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunus.structure.labels import along, varying


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its shape, the labels along its axes, and its real content where that is a known constant.

    Attributes:
        shape: concrete sizes (symbolic sizes at the example's values).
        tracks: label tensors of exactly this shape, stride 0 along axes on which the label does not vary. A position is
            removed as soon as one of its labels is.
        data: the content of integer and boolean constants (index tensors, masks), which movement by index needs.
    """

    shape: tuple[int, ...]
    tracks: tuple[Tensor, ...] = ()
    data: Tensor | None = None

    def __post_init__(self) -> None:
        if 0 in self.shape:  # nothing there that could leave
            object.__setattr__(self, "tracks", ())

    def varying(self) -> set[int]:
        """Axes along which some track varies."""
        return {axis for track in self.tracks for axis in varying(track)}

    def with_tracks(self, tracks: list[Tensor] | tuple[Tensor, ...]) -> Value:
        return Value(self.shape, tuple(tracks))


def respread(track: Tensor, axes_out: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Move the varying axes of a track to `axes_out` (same order) of a new shape."""
    axes = varying(track)
    index = tuple(slice(None) if i in axes else 0 for i in range(track.dim()))
    return along(track[index], axes_out, shape)
