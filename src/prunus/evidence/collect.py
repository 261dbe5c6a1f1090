"""One pass over the calibration data, in which all that was asked for is summed; no batch is kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunus.alone import alone
from prunus.capture import architecture_hash
from prunus.errors import ConfigError
from prunus.evidence.arrange import Blocks, arrangement, blocks
from prunus.evidence.batches import Batch, checked_batches
from prunus.evidence.effects import Effects, Job, by_unit
from prunus.evidence.forms import length_of
from prunus.evidence.interpret import Pass, ancestors
from prunus.evidence.losses import loss_of
from prunus.evidence.needs import Need
from prunus.evidence.places import Place, Places
from prunus.evidence.probe import PROBED, probe
from prunus.evidence.products import Operands
from prunus.evidence.store import Evidence, Sums, added
from prunus.heap import freed_memory_kept
from prunus.structure import Group, Structure

__all__ = ["Progress", "collect", "wanted"]

_REHEARSED = 2  # samples of the first batch that are run once more to tell the time
GROUP = "*"  # stands for all layers of a group


@dataclass(frozen=True)
class Progress:
    """How far a pass is.

    Attributes:
        batches: how many are done.
        total: how many there are, None where nobody knows.
        seconds: spent so far.
        seconds_left: about, None where nobody knows. Before the first batch: what is expected for all.
    """

    batches: int
    total: int | None
    seconds: float
    seconds_left: float | None


def wanted(structure: Structure, needs: Sequence[Need], groups: Sequence[Group]) -> set[tuple[str, str]]:
    """(key, group) of all sums that these needs mean for these groups; empty where no data is needed at all."""
    if not needs:
        return set()
    places = Places(structure, groups)
    rows = {group.name: group.rows for group in groups}
    return {
        (need.key, place.group)
        for need in needs
        for place in places.at(need.where)
        if not need.with_rows or rows[place.group] is not None
    }


@alone
def collect(
    structure: Structure,
    needs: Sequence[Need],
    data: Any,
    *,
    groups: Sequence[Group] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Evidence:
    """Run the original network over the data once, and sum what the needs say.

    Memory does not grow with the data: only sums are kept. Processes may each take a share, see `Evidence.merge`.

    Args:
        structure: from `prunus.analyze`.
        needs: what criteria ask for: `criterion.needs`.
        data: batches, each a tensor, array, tuple, dictionary or `prunus.Inputs` like the example inputs; what a batch
            has beyond them counts as labels. In any of the forms that `prunus.plan` takes.
        groups: those that are asked for; by default all that can be pruned.
        loss: `(outputs, batch) -> scalar`, averaged over the batch, for criteria that use gradients. By default the
            cross-entropy of the outputs with the integer labels in the batches.
        progress: called before the first batch with the time to expect, and after every batch.

    Raises:
        ConfigError: data that is empty, does not fit the model, or is not finite; names the batch.
    """
    chosen = structure.prunable if groups is None else groups
    needs = list({need.key: need for need in needs}.values())
    if data is None:
        raise ConfigError("data is missing: pass an iterable of batches like the example inputs")
    if structure.captured.partial is not None:
        raise ConfigError(
            "this model could only be captured in parts, and calibration data does not pass through code that was not captured: "
            "use a method that looks at weights alone, such as 'l2', or analyze one of its parts by itself"
        )
    pass_ = _Collector(structure, needs, chosen, loss)
    with freed_memory_kept():
        samples = _taken(pass_, structure, data, progress)
    return Evidence(architecture_hash(structure.captured), samples, pass_.sums)


def _taken(
    pass_: _Collector, structure: Structure, data: Any, progress: Callable[[Progress], None] | None
) -> int:
    """Take all batches; how many samples there were."""
    if isinstance(
        data, list | tuple
    ):  # all of it is there: find what does not fit before anything is computed
        for _ in checked_batches(structure.captured, data):
            pass
    total, batches, samples = length_of(data), 0, 0
    start = time.perf_counter()
    for batch in checked_batches(structure.captured, data):
        if progress is not None and not batches:
            expected = pass_.rehearse(batch)
            progress(Progress(0, total, 0.0, expected and total and expected * total))
        pass_.take(batch, pass_.sums)
        batches, samples = batches + 1, samples + batch.samples
        if progress is not None:
            spent = time.perf_counter() - start
            progress(Progress(batches, total, spent, total and spent / batches * max(total - batches, 0)))
    return samples


class _Collector:
    def __init__(
        self, structure: Structure, needs: Sequence[Need], groups: Sequence[Group], loss: Any
    ) -> None:
        self.structure, self.loss = structure, loss
        self.sums: Sums = {}
        self._sizes = {group.name: group.size for group in groups}
        rows = {group.name: group.rows for group in groups}
        places = Places(structure, groups)
        self._at: dict[fx.Node, list[Job]] = {}
        self._before: dict[fx.Node, list[Job]] = {}
        self._gradients: dict[tuple[fx.Node, fx.Node], list[Job]] = {}
        self._probes: dict[tuple[fx.Node, fx.Node], list[Job]] = {}
        self._probed = 0
        for need in needs:
            for place in places.at(need.where):
                if not need.with_rows or rows[place.group] is not None:
                    self._add(need, place, rows[place.group])
        self._finish = {need.key: need.finish for need in needs}
        self._pass = Pass(structure.captured, self._needed())

    def _add(self, need: Need, place: Place, rows: Any) -> None:
        if need.where == "product":
            job = Job(need, place, Operands(place))
        elif need.gradients and place.layer.endswith(":1"):
            return  # the other operand of the same product: what it loses is the same
        elif need.by_position:
            job = Job(need, place, blocks(place, self._sizes[place.group]))
        else:
            job = Job(need, place, arrangement(place))
        if place.reader is None:
            self._at.setdefault(place.node, []).append(job)
        elif need.probe:
            self._probes.setdefault((place.reader, place.node), []).append(job)
        elif need.gradients:
            self._gradients.setdefault((place.reader, place.node), []).append(job)
        else:
            self._before.setdefault(place.reader, []).append(job)

    def _needed(self) -> set[fx.Node]:
        graph = self.structure.captured.graph
        if self._gradients or self._probes:
            return set(graph.nodes)
        nodes = {*self._at, *(operand for reader in self._before for operand in reader.all_input_nodes)}
        return ancestors(nodes | set(self._before))

    # ------------------------------------------------------------------ one batch
    def take(self, batch: Batch, sums: Sums) -> None:
        """Add the sums of a batch."""
        if not (self._at or self._before or self._gradients or self._probes):
            return
        leaves = dict(zip(self.structure.captured.inputs, batch.leaves, strict=True))

        def look(node: fx.Node, value: Any) -> None:
            for job in self._at.get(node, ()):
                self._measure(job, (value,), sums)

        def before(reader: fx.Node, values: dict[fx.Node, Any]) -> None:
            for job in self._before.get(reader, ()):
                seen = (job.place.node, *((job.place.other,) if job.need.where == "product" else ()))
                self._measure(job, tuple(values[n] for n in seen if n is not None), sums)

        if self._probes and self._probed < PROBED:
            self._probed += batch.samples
            seen = {at: partial(self._look, jobs, sums) for at, jobs in self._probes.items()}
            if not self._gradients:  # one pass is for both
                probe(self._pass, leaves, seen, look, before)
                return
            probe(self._pass, leaves, seen)
        if not self._gradients:
            with torch.no_grad():
                self._pass.run(leaves, look, None, before)
            return
        effects = Effects(self._gradients, self._sizes, batch.samples)
        with torch.enable_grad():
            found = self._pass.run(leaves, look, effects.replace, before)
            outputs = pytree.tree_unflatten(found, self.structure.captured.out_spec)
            loss_of(self.loss, outputs, batch).backward()
        for (key, group), totals in effects.totals().items():
            finish = self._finish[key]
            added(sums, key, group, GROUP, totals if finish is None else finish(totals))

    def _look(self, jobs: list[Job], sums: Sums, value: Tensor, gradient: Tensor) -> None:
        for job in jobs:
            self._measure(job, (value, gradient) if job.need.weighted else (gradient,), sums)

    @torch.no_grad()
    def _measure(self, job: Job, values: tuple[Any, ...], sums: Sums) -> None:
        name, size = job.place.group, self._sizes[job.place.group]
        if isinstance(job.arranged, Operands):
            if not job.arranged.units.size:
                return
            found = job.need.measure(*job.arranged(*values), torch.from_numpy(job.arranged.units))
            total = found.new_zeros(size, *found.shape[1:])
            total[: len(found)] = found
        else:
            arranged = job.arranged
            found = job.need.measure(*(arranged(value.detach()) for value in values))
            if isinstance(job.arranged, Blocks):
                total = found if job.arranged.width == 1 else found.unflatten(0, (size, job.arranged.width))
            else:
                total = by_unit(found, job.arranged.units, size)
        if not math.isfinite(float(total.sum())):
            raise ConfigError(
                f"{job.need.key}: the activations of {job.place.layer!r} are NaN or infinite on this data, so its sums are too"
            )
        added(sums, job.need.key, name, job.place.layer, total)

    def rehearse(self, batch: Batch) -> float | None:
        """About how many seconds a batch like this takes, from a few of its samples; None where it cannot be cut."""
        if self.structure.captured.batch is None or batch.samples < 2 * _REHEARSED:
            return None
        cut = [
            leaf[:_REHEARSED]
            if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch.samples
            else leaf
            for leaf in batch.leaves
        ]
        with contextlib.suppress(ConfigError):  # labels that are not cut with it
            loss, self.loss = self.loss, _any_loss if self._gradients else self.loss
            start = time.perf_counter()
            try:
                self.take(Batch(tuple(cut), batch.given, (), _REHEARSED), {})
            finally:
                self.loss = loss
            return (time.perf_counter() - start) * batch.samples / _REHEARSED
        return None


def _any_loss(outputs: Any, batch: Any) -> Tensor:
    floats = [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]
    return torch.stack([x.float().mean() for x in floats]).sum()
