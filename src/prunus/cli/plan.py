"""``prunus plan``: decide what stays, and write that down."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli import options
from prunus.cli.progress import step
from prunus.cli.sources import note_random_weights, open_source
from prunus.errors import ArtefactError
from prunus.plan import Plan
from prunus.structure import LayerTable, Structure

__all__ = ["plan"]


Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", show_default=False, help="JSON file to write; new."),
]
Layers = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV", show_default=False, help="Only list what can be pruned, in a table to edit; new."
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
    method: options.Method = "l2",
    channels: options.Channels = None,
    params: options.Params = None,
    macs: options.Macs = None,
    size: options.Size = None,
    layers: Layers = None,
    edit: Edit = None,
    hold: options.Hold = None,
    multiple_of: options.MultipleOf = 1,
    keep_class: options.KeepClass = False,
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
      prunus plan torchvision:vgg16 --layers layers.csv
      prunus plan torchvision:vgg16 -o plan.json --edit layers.csv
      prunus apply plan.json mymodels.net:build --weights net.pth -o out
    """
    given = (channels, params, macs, size)
    written = _file_of(output, layers, edit, given != (None,) * 4)
    target = None if edit or layers else options.target_of(*given)
    table = LayerTable.from_csv(edit) if edit else None
    _require_writable(written, overwrite)
    opened = open_source(source, inputs or (), weights=weights, pretrained=pretrained, seed=seed)
    note_random_weights(opened)
    with step("Analyzing the model"):
        from prunus.api import analyze
        from prunus.decide import plan as decide

        structure = analyze(opened.model, opened.example_inputs, keep_class=keep_class)
    if layers:
        listed = structure.layers()
        listed.to_csv(layers)
        typer.echo(f"{layers}: {len(listed)} rows. Fill in `kept`, and pass it with --edit.")
        return
    with step("Deciding what stays"):
        made = decide(
            structure,
            method=options.method_of(method, seed),
            target=target,
            table=table,
            hold=hold or (),
            multiple_of=multiple_of,
            seed=seed,
        )
    _save(made, structure, written)


def _file_of(output: Path | None, layers: Path | None, edit: Path | None, fractions: bool) -> Path:
    """The file to write: the table, or the plan.

    Raises:
        typer.BadParameter: Options that do not go together.
    """
    written = layers or output
    if written is None or (layers and (output or edit or fractions)):
        raise typer.BadParameter(
            "give --output for a plan, or --layers alone for the table.", param_hint="output"
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
        "channels that can be removed."
    )


def _require_writable(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise ArtefactError(f"{path} is a folder; name the file to write.")
    if path.exists() and not overwrite:
        raise ArtefactError(f"{path} exists already. Choose another file, or pass --overwrite.")
    if not path.parent.is_dir():
        raise ArtefactError(f"There is no folder {path.parent} to write {path.name} to.")
