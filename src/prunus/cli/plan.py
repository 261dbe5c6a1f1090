"""``prunus plan``: decide what stays, and write that down."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli import options
from prunus.cli.progress import step
from prunus.cli.sources import note_random_weights, open_source
from prunus.errors import ArtefactError

__all__ = ["plan"]


def plan(
    source: options.Source,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", show_default=False, help="JSON file to write; new."),
    ],
    method: options.Method = "l2",
    channels: options.Channels = None,
    params: options.Params = None,
    macs: options.Macs = None,
    size: options.Size = None,
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

    Examples:
      prunus plan timm:resnet50 --pretrained -o plan.json --macs 0.5
      prunus plan mymodels.net:build --weights net.pth -o plan.json --channels 0.5
      prunus apply plan.json mymodels.net:build --weights net.pth -o out
    """
    target = options.target_of(channels, params, macs, size)
    _require_writable(output, overwrite)
    opened = open_source(source, inputs or (), weights=weights, pretrained=pretrained, seed=seed)
    note_random_weights(opened)
    with step("Analyzing the model"):
        from prunus.api import analyze
        from prunus.decide import plan as decide

        structure = analyze(opened.model, opened.example_inputs, keep_class=keep_class)
    with step("Deciding what stays"):
        made = decide(
            structure,
            method=options.method_of(method, seed),
            target=target,
            hold=hold or (),
            multiple_of=multiple_of,
            seed=seed,
        )
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
        raise ArtefactError(f"{path} is a folder; name the JSON file to write.")
    if path.exists() and not overwrite:
        raise ArtefactError(f"{path} exists already. Choose another file, or pass --overwrite.")
    if not path.parent.is_dir():
        raise ArtefactError(f"There is no folder {path.parent} to write {path.name} to.")
