"""Where attention heads have lost channels that may be mixed: linear layers make them, and all between only moves them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from prunus.capture import Captured
from prunus.criteria.moments import shrunk
from prunus.evidence.interpret import Pass
from prunus.evidence.probe import PROBED, probe, row_weights
from prunus.recovery.attention import Attention, Queries, columns_of, find_attentions, queries_of
from prunus.recovery.layers import Layer, find_layers
from prunus.recovery.logits import path_of
from prunus.recovery.mixtures import Mixture, mixed
from prunus.recovery.outcome import Repair
from prunus.recovery.pair import Batches, Pair
from prunus.recovery.statistics import like

__all__ = ["mix_heads"]


@dataclass(frozen=True, eq=False)
class _Side:
    """Outputs of a layer, in the original and in the cut network.

    Attributes:
        was, now: the layer, and (heads, width) which of its outputs.
        outputs: number of outputs of the original layer.
        chosen: (heads, width of the cut network) which channels of each head these are.
        heads: (heads of the cut network,) which heads of the original.
    """

    was: Queries
    now: Queries
    outputs: int
    chosen: Tensor
    heads: Tensor

    @property
    def narrower(self) -> bool:
        return self.now.rows.shape[1] < self.was.rows.shape[1]


@dataclass(frozen=True, eq=False)
class _Site:
    """An attention, of which queries and keys, or values, are mixed.

    Attributes:
        was: it, in the original.
        sides: queries and keys, or values alone.
        reader: of values, in both networks: the layer, and (heads, width) which of its inputs.
    """

    was: Attention
    sides: tuple[_Side, ...]
    reader: tuple[tuple[Layer, Tensor], tuple[Layer, Tensor]] | None = None

    @property
    def seen(self) -> fx.Node:
        """The queries, or what the heads hand on."""
        node = self.was.query if self.reader is None else self.was.out
        assert node is not None
        return node


def mix_heads(
    pair: Pair, original: Captured, small: Captured, layers: dict[fx.Node, Layer], batches: Batches
) -> list[Repair]:
    """Let heads that have lost channels keep mixtures of all of them, where nothing can tell: queries with keys, and values.

    What stays of a head need not be some of its channels: only products of queries and keys, and the layer that reads the
    values, see them. The best mixtures follow from second moments of what there was, and of how much the outputs of the network
    depend on it, over the first samples.

    Args:
        pair: both networks; layers of the cut one get new weights, and new targets if they are fitted later.
        original, small: their graphs.
        layers: of the cut network.
        batches: the data.

    Returns:
        What was done. Errors are shares of what the network's outputs would lose, to first order, with all channels of the heads:
        by the channels that were chosen as they are, and by the mixtures.

    References:
        Lin et al., MoDeGPT, 2024, arXiv:2408.09632 (queries with keys, and values with outputs, decomposed together).
    """
    sites = _sites(pair, original, small, layers)
    if not sites:
        return []
    sums = _summed(original, sites, batches)
    found = []
    for site, moments in zip(sites, sums, strict=True):
        if moments is None or not float(moments[3]) > 0:  # the outputs depend on none of it
            continue
        mixture = _mixture(site, moments)
        _mix(pair, site, mixture)
        scale = max(mixture.scale, 1e-30)
        said = "queries and keys" if site.reader is None else "values"
        path = f"{path_of(small, site.sides[0].now.layer.weight)} ({said})"
        found.append(Repair(path, "heads", mixture.before / scale, mixture.after / scale))
    return found


def _sites(pair: Pair, original: Captured, small: Captured, layers: dict[fx.Node, Layer]) -> list[_Site]:
    before, after = find_attentions(original), find_attentions(small)
    at_first = find_layers(original)
    sites = []
    for name, now in after.items():
        was = before.get(name)
        if was is None:
            continue
        q, k = (
            _side(pair, original, at_first, layers, one, other, one is was.key and was.key_is_turned)
            for one, other in ((was.query, now.query), (was.key, now.key))
        )
        if q and k and q.narrower and torch.equal(q.chosen, k.chosen) and torch.equal(q.heads, k.heads):
            sites.append(_Site(was, (q, k)))
        if was.value is None or now.value is None or was.out is None or now.out is None:
            continue
        v = _side(pair, original, at_first, layers, was.value, now.value, False)
        reads, reads_now = columns_of(was.out, at_first), columns_of(now.out, layers)
        if not (v and v.narrower and reads and reads_now):
            continue
        if reads[0].weight == reads_now[0].weight and reads_now[1].shape == v.now.rows.shape:
            sites.append(_Site(was, (v,), (reads, reads_now)))
    return sites


def _side(
    pair: Pair,
    original: Captured,
    at_first: dict[fx.Node, Layer],
    layers: dict[fx.Node, Layer],
    was: fx.Node,
    now: fx.Node,
    turned: bool,
) -> _Side | None:
    one, other = queries_of(was, at_first, turned), queries_of(now, layers, turned)
    if one is None or other is None or one.layer.node.name != other.layer.node.name:
        return None
    if one.layer.weight != other.layer.weight or one.layer.spatial:
        return None
    kept = pair.kept_along(other.layer.weight, 0)
    if len(kept) <= int(other.rows.max()):
        return None
    place = {row: (head, i) for head, rows in enumerate(one.rows.tolist()) for i, row in enumerate(rows)}
    found = [[place.get(row, (-1, -1)) for row in rows] for rows in kept[other.rows].tolist()]
    heads = [{head for head, _ in rows} for rows in found]
    if any(len(each) != 1 or -1 in each for each in heads):
        return None
    chosen = torch.tensor([[i for _, i in rows] for rows in found])
    outputs = len(original.tensors[one.layer.weight])
    return _Side(one, other, outputs, chosen, torch.tensor([each.pop() for each in heads]))


# ------------------------------------------------------------------ what the data say
def _summed(original: Captured, sites: list[_Site], batches: Batches) -> list[tuple[Tensor, ...] | None]:
    """For each site, sums over the rows (samples and tokens) that the queries, or what heads hand on, have.

    (heads, d, d) products and (heads, d) sum, rows counting as much as the outputs depend on them; (1,) sum of these weights and
    of their squares; (heads, d, d) products of the gradients. None where no gradient comes.
    """
    watched: dict[fx.Node, list[int]] = {}
    for number, site in enumerate(sites):
        watched.setdefault(site.seen, []).append(number)
    sums: list[tuple[Tensor, ...] | None] = [None] * len(sites)

    def look(node: fx.Node, value: Tensor, gradient: Tensor) -> None:
        for number in watched[node]:
            found, old = _moments(value, gradient), sums[number]
            sums[number] = found if old is None else tuple(a + b for a, b in zip(old, found, strict=True))

    pass_, samples = Pass(original, set(original.graph.nodes)), 0
    for leaves, size in zip(batches.leaves, batches.sizes, strict=True):
        seen = {
            (reader, node): (lambda v, g, node=node: look(node, v, g))
            for node in watched
            for reader in node.users
        }
        probe(pass_, dict(zip(original.inputs, leaves, strict=True)), seen)
        samples += size
        if samples >= PROBED:
            break
    return sums


def _moments(x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    x, g = (each.detach().double().transpose(0, 1).flatten(1, 2) for each in (x, gradient))
    w = row_weights(g)[None, :, None]
    count, squared = w.sum().reshape(1), w.square().sum().reshape(1)
    return (x * w).mT @ x, (x * w).sum(1), count, squared, g.mT @ g


# ------------------------------------------------------------------ what becomes of the weights
def _mixture(site: _Site, moments: tuple[Tensor, ...]) -> Mixture:
    heads, chosen = site.sides[0].heads, site.sides[0].chosen
    square, total, count, squared, felt = moments
    seen = square / count
    if site.reader is not None and site.reader[1][0].bias is not None:  # which takes the mean up
        mean = total / count
        seen = seen - mean[:, :, None] * mean[:, None, :]
    enough = float(count.square() / squared)  # rows of equal weight that would say as much
    at = heads.to(felt.device)
    seen = torch.stack([shrunk((each + each.mT) / 2, enough) for each in seen[at]])
    return mixed(seen, felt[at], chosen.to(felt.device))


def _mix(pair: Pair, site: _Site, mixture: Mixture) -> None:
    sides = (mixture.made, mixture.read.mT) if site.reader is None else (mixture.made,)
    for side, parts in zip(site.sides, sides, strict=True):
        matrix = parts.new_zeros(*parts.shape[:2], side.outputs)
        at = side.was.rows[side.heads].to(parts.device)
        matrix.scatter_(2, at[:, None].expand(-1, parts.shape[1], -1), parts)
        pair.mix(side.now.layer, side.now.rows.flatten(), matrix.flatten(0, 1))
    if site.reader is None:
        return
    (was, columns_was), (layer, columns) = site.reader
    old, weight = pair.tensors[layer.weight], pair.weight(was.weight).detach().double()
    weight = weight[pair.kept_along(layer.weight, 0).to(weight.device)]
    at = columns_was[site.sides[0].heads].to(weight.device)
    read = torch.einsum("ohd,hdr->ohr", weight[:, at], mixture.read.to(weight))
    new = old.detach().double().clone()
    new[:, columns.flatten().to(new.device)] = read.flatten(1).to(new)
    pair.tensors[layer.weight] = like(old, new)
