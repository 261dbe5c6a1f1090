"""Replace layers by chains of smaller ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunus.allocation import Target
from prunus.alone import alone
from prunus.api.result import Result, after
from prunus.capture import Captured, Dynamic, architecture_hash, capture, require_values
from prunus.decomposition.align import with_names_of
from prunus.decomposition.decide import Work
from prunus.decomposition.request import requested
from prunus.decomposition.run import Outcome, decided, entries, executed
from prunus.decomposition.table import RankTable
from prunus.describe import describe
from prunus.errors import CaptureError, StructureError
from prunus.evidence import as_data
from prunus.evidence.batches import require_fitting
from prunus.patterns import checked_patterns
from prunus.plan import Plan
from prunus.recovery import Recovery, checked_steps
from prunus.recovery import recover as fitted_to
from prunus.report.decomposed import decomposition_report
from prunus.request import Problems, checked_flags
from prunus.structure import find_structure, with_parts
from prunus.surgery import lift

__all__ = ["decompose", "replaced"]


@alone
def decompose(
    model: Any,
    example_inputs: Any = None,
    *,
    method: Any = "svd",
    target: Target | None = None,
    ranks: Any = None,
    table: RankTable | None = None,
    data: Any = None,
    hold: Any = (),
    multiple_of: int = 1,
    floor: int | float = 1,
    correct_bias: bool = True,
    measure_latency: bool = False,
    recover: bool | str | Sequence[str] = False,
    dynamic: Dynamic = "auto",
) -> Result:
    """Replace layers by chains of smaller ones. Give exactly one of `target`, `ranks` and `table`.

    A replaced layer becomes an `nn.Sequential` of plain layers in its place: `conv1.0`, `conv1.1`... Layers whose weight is used
    otherwise than by calling the layer are left alone; the report says why.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, the path of a `.pt2` file, or the `Result` of an earlier step, whose plan
            is then continued. It is left as found.
        example_inputs: see `analyze`; not needed for results.
        method: `"svd"`, `"tucker"`, `"cp"`, `"spatial_svd"`, or an object of `prunus.decomposition`; or several, of which
            each layer gets the first that takes it.
        target: what is kept of the model's `macs`, `params` or `size_bytes`; ranks are chosen so that as little as possible is
            lost at the layers' outputs.
        ranks: `EVBMF()` or `Energy(0.95)` of `prunus.decomposition`, or ranks per layer: `{"conv1": [8, 16], "fc": 10}`. Ranks
            are those of one group, for convolutions with groups.
        table: from `prunus.decomposition.rank_table`, edited.
        data: calibration data in any of the forms that `plan` lists, without labels; it is read several times. With it,
            errors count at the layers' outputs; without, in the weights.
        hold: layers that are never touched, see `plan`.
        multiple_of: estimated and chosen ranks are multiples of this, or full.
        floor: smallest rank, as a number or a share (a float) of the full one, where ranks are not given.
        correct_bias: with data, the bias takes up the mean of what is lost; a layer without one gets one.
        measure_latency: also time both models, and refuse replacements that are no faster on this machine.
        recover: with data, the steps by which the new model is fitted to what the original computes, see `apply`: the last
            factor of each replaced layer and the layers behind it, on inputs from what has been fitted already. True for all,
            False for none. Compare both: where data are few it can also do harm.
        dynamic: see `analyze`.

    Returns:
        The result: model, plan, report.

    Raises:
        ConfigError: options, ranks or data that do not fit; all problems of the ranks at once.
        TargetError: no ranks reach the target.
        PrunusError: see `analyze`; the model is as it was.

    Example:
        >>> import torch, prunus
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
        >>> result = prunus.decompose(net, torch.randn(4, 32), ranks={"0": 8})
        >>> result.model[0]
        Sequential(
          (0): Linear(in_features=32, out_features=8, bias=False)
          (1): Linear(in_features=8, out_features=64, bias=True)
        )
    """
    problems = Problems()
    request = problems.of(requested, method, target, ranks, table, multiple_of, floor, correct_bias)
    problems.of(checked_flags, correct_bias=correct_bias, measure_latency=measure_latency)
    hold = problems.of(checked_patterns, hold, "hold")
    data, steps = problems.of(as_data, data), problems.of(checked_steps, recover)
    problems.settle()
    earlier = model if isinstance(model, Result) else None
    source: Any = model
    if earlier is not None:
        source = earlier.model
        example_inputs = earlier.captured.example if example_inputs is None else example_inputs
    captured = capture(source, example_inputs, dynamic)
    if captured.partial is not None:
        raise CaptureError(
            f"the model can only be captured in parts ({', '.join(captured.partial.parts)}), and layers are replaced in whole "
            "models: decompose such a part by itself, and put it back"
        )
    if captured.packed:
        raise CaptureError(
            "the model packs sequences, which no graph can hold, and a model with replaced layers is a graph: decompose the modules "
            "around the packing by themselves, and put them back"
        )
    if captured.model is None:
        captured = capture(lift(captured), captured.example, dynamic)
    require_values(captured.tensors, captured.names)
    require_fitting(captured, data)
    work, chosen = decided(captured, request, data, hold)
    made = Plan(
        architecture=architecture_hash(captured),
        groups=(),
        inputs=describe(captured),
        method="+".join(each.name for each in request.methods),
        target=target.to_dict() if target is not None else {},
        options={} if target is not None else {"ranks": "manual" if isinstance(request.goal, Mapping) else str(request.goal)},
    )  # fmt: skip
    result = replaced(
        captured,
        work,
        chosen,
        data,
        made,
        centered=correct_bias,
        measure_latency=measure_latency,
        steps=steps,
    )
    return result if earlier is None else after(earlier, result)


def replaced(
    captured: Captured,
    work: Work,
    ranks: Mapping[str, tuple[int, ...]],
    data: Any,
    plan: Plan,
    *,
    biases: Mapping[str, bool] | None = None,
    centered: bool = True,
    measure_latency: bool = False,
    steps: tuple[str, ...] = (),
) -> Result:
    """Replace layers at chosen ranks; with data, `steps` say how the new model is then fitted to the original."""
    outcome = executed(
        captured,
        work,
        ranks,
        data,
        centered=centered,
        biases=biases,
        only_faster=measure_latency and biases is None,
    )
    plan = dataclasses.replace(plan, layers=entries(outcome))
    small = capture(outcome.model, captured.example, captured.shapes.asked)
    report = decomposition_report(captured, small, outcome, plan, measure_latency)
    if data is not None and steps and outcome.replacements:
        recovery = _repaired(captured, small, outcome, data, steps)
        if isinstance(recovery, str):
            report = dataclasses.replace(
                report, notes=(*report.notes, f"not fitted to the original: {recovery}")
            )
        else:
            report = dataclasses.replace(report, recovery=recovery.to_dict())
    return Result(outcome.model, plan, report, small, None)


def _repaired(
    captured: Captured, small: Captured, outcome: Outcome, data: Any, steps: tuple[str, ...]
) -> Recovery | str:
    """Fit the new model, in place, to what the original computes; or why that cannot be done."""
    chains = {path: each.chain for path, each in outcome.replacements.items()}
    captured, small = with_parts(captured), with_parts(small)
    matched = with_names_of(captured, small, chains)
    if matched is None:
        return "the graph of the new model goes another way"
    try:
        structure = find_structure(captured)
    except StructureError as error:
        return str(error)
    fitted, recovery = fitted_to(structure, matched, structure.keep_labels({}), data, steps=steps)
    with torch.no_grad():
        for name, tensor in fitted.tensors.items():
            own = small.tensors.get(name)
            if own is not None and own is not tensor:
                own.copy_(tensor)  # the model's own: its graph sees the same
    return recovery
