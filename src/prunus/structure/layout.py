"""What follows for labels when a movement lays them out in rows, cuts part of an axis off, or merges axes again."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from prunus.structure.hashing import distinct as distinct_of
from prunus.structure.labels import Labels, along, compact, outer_to_inner, tighten, varying


def moved(labels: Labels, before: Tensor, after: Tensor, node: str) -> Tensor:
    """The track that `after`, which a movement made of the track `before`, is from now on."""
    if after.untyped_storage().data_ptr() != before.untyped_storage().data_ptr() or _extent(after) != _extent(
        before
    ):
        after = tighten(after)
    if _is_permuted(before, after):
        return after
    source, result = varying(before), varying(after)
    if len(result) > len(source):
        after = ordered(labels, after, node)
    cut(labels, before, after, node)
    if len(source) > 1 and _size(after) == _size(before) and not _is_row_major(before):
        labels.grid(before, node, separable=True)  # merged across the rows
    labels.grid(after, node)
    return after


def cut(labels: Labels, before: Tensor, after: Tensor, node: str) -> None:
    """Note when `after` has only some of the labels of `before`: not all of those may leave."""
    if _size(after) >= _size(before):
        return
    left = distinct_of(compact(after, varying(after)).numpy())
    left = left[left > 0]
    whole = distinct_of(compact(before, varying(before)).numpy())
    if len(left) and (len(left) < int((whole > 0).sum()) or not varying(after)):
        labels.cut(left, node)


def same_columns(labels: Labels, track: Tensor, axes: set[int], node: str) -> None:
    """Positions along one of `axes` are told apart: where the track varies along others too, they must be the same in all rows."""
    mine = varying(track)
    if len(mine) > 1 and axes & set(mine):
        outermost = mine[outer_to_inner(compact(track, mine))[0]]
        if axes & set(mine) != {outermost}:
            labels.grid(track, node, separable=True)


def ordered(labels: Labels, track: Tensor, node: str) -> Tensor:
    """The same with labels that ascend in the order in which they appear, so that rows can be told from columns by them."""
    axes = varying(track)
    old = compact(track, axes)
    flat = old.reshape(-1)
    if bool((flat[1:] > flat[:-1]).all()):
        return track
    distinct, first, which = np.unique(flat.numpy(), return_index=True, return_inverse=True)
    order = np.argsort(first)
    if (np.diff(distinct[order]) > 0).all():
        return track
    new = torch.zeros(len(distinct), dtype=torch.long)
    new[torch.from_numpy(order)] = labels.fresh(len(distinct))
    named = distinct > 0
    labels.unite(distinct[named], new.numpy()[named], node)
    new[torch.from_numpy(~named)] = 0
    return along(new[torch.from_numpy(which.reshape(-1))].reshape(old.shape), axes, tuple(track.shape))


def in_rows(
    labels: Labels, track: Tensor, shape: tuple[int, ...], node: str, separable: bool = False
) -> Tensor:
    """A track of a reshaped value, where an axis was laid out in rows."""
    after = tighten(track.reshape(shape))
    if len(varying(after)) > len(varying(track)):
        after = ordered(labels, after, node)
    labels.grid(after, node, separable)
    return after


def _extent(track: Tensor) -> list[int]:
    """Sizes of the axes along which the label changes, in ascending order."""
    return sorted(track.shape[axis] for axis in varying(track))


def _is_permuted(before: Tensor, after: Tensor) -> bool:
    """The axes are at most in another order."""
    if _extent(after) != _extent(before):
        return False
    source, result = varying(before), varying(after)
    if len(source) < 2:
        return True
    old, new = compact(before, source), compact(after, result)
    orders = itertools.permutations(range(len(source)))
    return any(torch.equal(old.permute(order), new) for order in orders)


def _size(track: Tensor) -> int:
    return compact(track, varying(track)).numel()


def _is_row_major(track: Tensor) -> bool:
    order = outer_to_inner(compact(track, varying(track)))
    return order == sorted(order)
