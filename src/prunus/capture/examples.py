"""More examples than the one that is captured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from prunus.capture.batch import batch_size, describe_inputs, with_batch
from prunus.capture.diagnose import first_line, place_in_model
from prunus.capture.flow import kind_of_call, run_once
from prunus.errors import CaptureError
from prunus.inputs import Inputs

if TYPE_CHECKING:
    from prunus.capture.captured import Captured

__all__ = ["alike", "require_running", "several_hint", "unreached"]


def require_running(model: nn.Module, others: Iterable[Inputs]) -> None:
    """Run the model on each further example.

    Raises:
        CaptureError: If one does not fit.
    """
    for number, example in enumerate(others, start=2):
        try:
            run_once(model, example)
        except Exception as error:
            raise CaptureError(
                f"Example {number} does not fit the model's forward: {first_line(error)}\n"
                f"  at {place_in_model(error) or type(model).__name__}\n  inputs: {describe_inputs(example)}"
                + several_hint([example])
            ) from error


def several_hint(example_inputs: Any) -> str:
    """What to say where an example does not fit and a list was passed."""
    return (
        "\nA list is several example inputs, each of one call: pass a tuple for several arguments, and ([...],) for one that is a list."
        if isinstance(example_inputs, list)
        else ""
    )


def alike(others: Iterable[Inputs], run_inputs: Inputs) -> tuple[Inputs, ...]:
    """Those of the examples, in the batch of the captured graph, that have its sizes."""
    wanted, batch = kind_of_call(run_inputs.args, run_inputs.kwargs), batch_size(run_inputs)
    found = []
    for example in others:
        size = batch_size(example)
        each = with_batch(example, size, batch) if size and batch else example
        if kind_of_call(each.args, each.kwargs) == wanted:
            found.append(each)
    return tuple(found)


def unreached(captured: Captured) -> tuple[str, ...]:
    """Modules, and single parameters, that no example input led to: the topmost whose parameters are all unused."""
    owner = captured.owner
    if owner is None:
        return ()
    alive = {node.name for node in captured.graph.find_nodes(op="placeholder") if node.users}
    used = {
        name
        for placeholder, first in captured.names.items()
        for name in (first, *captured.aliases.get(first, ()))
        if placeholder in alive
    } | (set(captured.partial.touched) if captured.partial else set())
    unused = [name for name, _ in owner.named_parameters() if name not in used]
    found: list[str] = []
    for path, module in owner.named_modules():
        mine = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if (
            path
            and mine
            and set(mine) <= set(unused)
            and not any(path.startswith(f"{each}.") for each in found)
        ):
            found.append(path)
    single = [name for name in unused if not any(name.startswith(f"{each}.") for each in found)]
    return (*found, *single)
