"""Groups whose channels may be mixed row by row: linear layers make them, and nothing up to their readers tells them apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from prunus.evidence.facing import kind_of
from prunus.evidence.places import Place, Places
from prunus.structure import Group, Structure

__all__ = ["MOVES", "PICKS", "kind_of", "mixable"]

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
MOVES = frozenset(
    "view reshape _unsafe_view transpose permute contiguous clone split split_with_sizes chunk unbind slice select unsqueeze "
    "squeeze unflatten flatten getitem dropout alias".split()
)
PICKS = frozenset("split split_with_sizes chunk unbind slice select getitem".split())
_SCALES = frozenset("mul div".split())


def mixable(structure: Structure, groups: Sequence[Group]) -> dict[str, np.ndarray]:
    """Group -> (rows, units per row) units that what stays of a row may be mixed from.

    These are the channels of attention heads: queries and keys, of which only products are seen, without anything but moves and
    factors between the layers that make them and the product; and values, which one linear layer reads.
    """
    with_rows = [group for group in groups if group.rows is not None]
    if not with_rows:
        return {}
    places = Places(structure, with_rows)
    found = {}
    for group in with_rows:
        reads = [place for place in places.read if place.group == group.name]
        makers = {place.node for place in places.made if place.group == group.name}
        sides = sorted(place.layer.rpartition(":")[2] for place in reads)
        as_pair, as_values = sides == ["0", "1"], len(reads) == 1 and _is_linear(reads[0].reader)
        if (as_pair or as_values) and all(_only_moved(place, makers, as_values) for place in reads):
            assert group.rows is not None
            found[group.name] = group.rows
    return found


def _only_moved(place: Place, makers: set[fx.Node], attended: bool) -> bool:
    """Whether what is read comes from a linear layer that makes it, through moves and factors, and perhaps a mean over tokens."""
    node, reader = place.node, place.reader
    while node not in makers:
        if len(_users(node)) > 1 and reader is not None and kind_of(reader) not in PICKS:
            return False
        reader, kind = node, kind_of(node)
        if kind in MOVES or (kind in _SCALES and isinstance(node.args[1], float | int)):
            following = node.args[0]
        elif attended and kind == "scaled_dot_product_attention":
            following = node.args[2]
        elif attended and node.target in _PRODUCTS:
            following = node.args[1]
        else:
            return False
        if not isinstance(following, fx.Node):
            return False
        node = following
    return _is_linear(node)


def _users(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if kind_of(user) != "sym_size"]


def _is_linear(node: fx.Node | None) -> bool:
    return node is not None and node.target is aten.linear.default
