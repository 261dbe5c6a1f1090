"""``prunus apply``: execute a plan on a model."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli import options
from prunus.cli.progress import step
from prunus.cli.results import save_result
from prunus.cli.sources import note_random_weights, open_source
from prunus.errors import PlanError
from prunus.plan import Plan

__all__ = ["apply"]


def apply(
    plan: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN", show_default=False, help="A plan.json, or a folder that prunus has written."
        ),
    ],
    source: options.Source,
    output: options.Folder,
    inputs: options.Inputs = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    no_verify: options.NoVerify = False,
    onnx: options.Onnx = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
) -> None:
    """Cut a model as a plan says, and write it to a folder.

    The model may be a fresh one of the architecture that the plan was made for, with any weights.

    Examples:
      prunus apply plan.json timm:resnet50 --pretrained -o out
      prunus apply plan.json mymodels.net:build --weights trained.pth -o out
      prunus apply out/ mymodels.net:build -o again
    """
    made = Plan.load(plan / "plan.json" if os.path.isdir(plan) else plan)
    from prunus.api import apply as execute
    from prunus.artefact import require_savable

    require_savable(output, overwrite=overwrite, onnx=onnx)
    opened = open_source(
        source, inputs or (), weights=weights, pretrained=pretrained, seed=seed, needs_inputs=False
    )
    note_random_weights(opened)
    with step("Cutting" if no_verify else "Cutting and verifying"):
        result = execute(
            opened.model,
            made,
            example_inputs=_inputs_for(made, opened.example_inputs, given=bool(inputs)),
            verify=not no_verify,
        )
    save_result(result, output, overwrite=overwrite, onnx=onnx)


def _inputs_for(made: Plan, own: Any, given: bool) -> Any:
    """Inputs given on the command line, else those of the plan, else the source's own."""
    if given:
        return own
    from prunus.describe import rebuild

    try:
        return rebuild(made.inputs)
    except PlanError:
        if own is None:
            raise
        return own
