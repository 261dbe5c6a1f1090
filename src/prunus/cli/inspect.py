"""``prunus inspect``: which channels can go, and why others cannot."""

from typing import Annotated

import typer

from prunus.cli import options
from prunus.cli.progress import step
from prunus.cli.sources import open_source
from prunus.files import shown

__all__ = ["inspect"]


def inspect(
    source: options.Source,
    inputs: options.Inputs = None,
    keep_class: Annotated[
        bool, typer.Option("--keep-class", help="With the constraints that the model's own class needs.")
    ] = False,
    why: Annotated[
        list[str] | None,
        typer.Option(
            "--why",
            metavar="LAYER",
            show_default=False,
            help="Only say why the channels of this layer can or cannot go; several times for several layers.",
        ),
    ] = None,
    dynamic: options.Dynamic = None,
    free: options.Free = None,
    drop: options.Drop = None,
    seed: options.Seed = 0,
) -> None:
    """Show which channels can be removed, and why others cannot.

    Channels of one group live and die together.

    Examples:
      prunus inspect timm:resnet18
      prunus inspect timm:resnet18 --why layer2.0.conv2
      prunus inspect mymodels.net:build --input 1x3x224x224
      prunus inspect model.pt2
    """
    opened = open_source(source, inputs or (), seed=seed)
    with step("Analyzing the model"):
        from prunus.api import analyze
        from prunus.surgery import count_macs

        structure = analyze(
            opened.model,
            opened.example_inputs,
            keep_class=keep_class,
            outputs=options.outputs_of(free, drop),
            dynamic=options.dynamic_of(dynamic),
        )
        captured = structure.captured
        parameters = [captured.tensors[name] for name, kind in captured.kinds.items() if kind == "parameter"]
        params, macs = sum(tensor.numel() for tensor in parameters), count_macs(captured)
    per = "for one sample" if captured.batch else "for the batch of the inputs"
    typer.echo(f"{shown(opened.name)}: {params:,} parameters, {macs:,} MACs {per}")
    if captured.static_reason:
        typer.echo(f"Takes one batch size only: {captured.static_reason}.")
    typer.echo()
    if why:
        typer.echo("\n\n".join(str(structure.why(layer)) for layer in why))
    else:
        typer.echo(str(structure))
