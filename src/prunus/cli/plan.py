"""``prunus plan``: decide what stays, and write that down."""

import os
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli import options
from prunus.cli.deciding import Wanted, asked, goal_of, table_of
from prunus.cli.progress import step
from prunus.cli.sources import note_random_weights, open_source
from prunus.errors import ArtefactError
from prunus.files import shown
from prunus.plan import Plan
from prunus.structure import Structure

__all__ = ["plan"]


Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", show_default=False, help="JSON file to write; new."),
]
Layers = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV",
        show_default=False,
        help="Write a table to edit instead of a plan: what can be pruned and, with a fraction or ratio, what is recommended.",
    ),
]
Edit = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV", show_default=False, help="Keep what this table says, in place of a fraction."
    ),
]


def plan(
    source: options.Source,
    output: Output = None,
    method: options.Method = None,
    channels: options.Channels = None,
    params: options.Params = None,
    macs: options.Macs = None,
    size: options.Size = None,
    ratio: options.Ratio = None,
    allocation: options.Allocation = None,
    data: options.Data = None,
    batch_size: options.BatchSize = 32,
    layers: Layers = None,
    edit: Edit = None,
    hold: options.Hold = None,
    multiple_of: options.MultipleOf = 1,
    layer_norm: options.LayerNorm = None,
    policy: options.Policy = None,
    group_policy: options.GroupPolicy = None,
    step_size: options.StepSize = None,
    step_op: options.StepOp = None,
    reshape_channel_axis: options.ChannelAxis = None,
    keep_class: options.KeepClass = False,
    dynamic: options.Dynamic = None,
    free: options.Free = None,
    drop: options.Drop = None,
    inputs: options.Inputs = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
) -> None:
    """Decide which channels stay, and write that as JSON.

    The file can be read, edited, and executed by `prunus apply`.

    To say how many channels each layer keeps, list them with --layers, fill in the column `kept` (an empty cell
    leaves a layer alone), and hand the table back with --edit.

    Examples:
      prunus plan timm:resnet50 --pretrained -o plan.json --macs 0.5
      prunus plan mymodels.net:build --weights net.pth -o plan.json --channels 0.5
      prunus plan torchvision:vgg16 --layers layers.csv --ratio 0.3 --allocation slamp
      prunus plan torchvision:vgg16 -o plan.json --edit layers.csv
      prunus apply plan.json mymodels.net:build --weights net.pth -o out
    """
    fractions = (channels, params, macs, size, ratio) != (None,) * 5
    written = _file_of(output, layers, edit, fractions)
    wanted = Wanted(
        method,
        table_of(edit)
        if edit
        else goal_of(channels, params, macs, size, ratio, method)
        if fractions or output
        else {},
        allocation,
        options.options_of(
            layer_norm=layer_norm,
            policy=policy,
            group_policy=group_policy,
            step_size=step_size,
            step_op=step_op,
            reshape_channel_axis=reshape_channel_axis,
        ),
        tuple(hold or ()),
        multiple_of,
        seed,
        data,
        batch_size,
    )
    _require_writable(written, overwrite)
    if wanted.goal:
        wanted.check()
    opened = open_source(source, inputs or (), weights=weights, pretrained=pretrained, seed=seed)
    note_random_weights(opened)
    with step("Analyzing the model"):
        from prunus.api import analyze

        structure = analyze(
            opened.model,
            opened.example_inputs,
            keep_class=keep_class,
            outputs=options.outputs_of(free, drop),
            dynamic=options.dynamic_of(dynamic),
        )
    made = wanted.plan(structure) if wanted.goal else None
    if layers:
        _list(structure, made, layers)
    elif made is not None:
        _save(made, structure, written)


def _list(structure: Structure, made: Plan | None, path: Path) -> None:
    """Write the table, filled in as a plan recommends, if there is one."""
    table = structure.layers() if made is None else structure.layers().filled(made.keep)
    table.to_csv(path)
    if made is None:
        typer.echo(f"{path}: {len(table)} rows. Fill in `kept`, and pass it with --edit.")
    else:
        filled = sum(row.kept is not None for row in table)
        typer.echo(
            f"{path}: {len(table)} rows, {filled} of them filled in ({asked(made)}). Edit `kept`, and pass it with --edit."
        )


def _file_of(output: Path | None, layers: Path | None, edit: Path | None, fractions: bool) -> Path:
    """The file to write: the table, or the plan.

    Raises:
        typer.BadParameter: Options that do not go together.
    """
    written = layers or output
    if written is None or (layers and (output or edit)):
        raise typer.BadParameter(
            "give --output for a plan, or --layers without it for the table.", param_hint="output"
        )
    if edit and fractions:
        raise typer.BadParameter("the table says what stays; leave the fractions out.", param_hint="--edit")
    return written


def _save(made: Plan, structure: Structure, output: Path) -> None:
    try:
        made.save(output)
    except OSError as error:
        raise ArtefactError(f"{output} cannot be written: {error.strerror or error}.") from error
    removed = sum(group.size - len(group.keep) for group in made.groups)
    total = sum(group.size for group in structure.prunable if not group.outer)
    typer.echo(
        f"{output}: {len(made.groups)} of {len(structure.groups)} groups lose {removed:,} of {total:,} "
        f"channels that can be removed ({asked(made)})."
    )


def _require_writable(path: Path, overwrite: bool) -> None:
    if os.path.isdir(path):
        raise ArtefactError(f"{shown(path)} is a folder; name the file to write.")
    if os.path.exists(path) and not overwrite:
        raise ArtefactError(f"{shown(path)} exists already. Choose another file, or pass --overwrite.")
    if not os.path.isdir(path.parent):
        raise ArtefactError(f"There is no folder {shown(path.parent)} to write {shown(path.name)} to.")
