"""What a repair has left of the errors, group by group."""

from __future__ import annotations

import statistics
from collections.abc import Collection

from prunus.recovery import Recovery
from prunus.structure import Structure

__all__ = ["errors_by_group"]


def errors_by_group(
    structure: Structure, pruned: Collection[str], recovery: Recovery
) -> dict[str, dict[str, float]]:
    """Group that has lost channels -> mean error of the layers that read it, `before` and `after` the repair.

    Errors are those of `prunus.recovery.Repair`: mean squares relative to the variance of the outputs, on held-out inputs. For
    queries and keys, of the attention's logits. Groups of which no reader was changed are left out.
    """
    found = {}
    for group in structure.groups:
        if group.name not in pruned:
            continue
        readers, makers = (
            {m.parameter.rpartition(".")[0] for m in group.members if m.produces is makes}
            for makes in (False, True)
        )
        mine = [
            repair
            for repair in recovery.repairs
            if (repair.step == "compensate" and repair.layer in readers)
            or (repair.step == "logits" and repair.layer in makers and not readers)
        ]
        if mine:
            found[group.name] = {
                "before": statistics.fmean(repair.before for repair in mine),
                "after": statistics.fmean(repair.after for repair in mine),
            }
    return found
