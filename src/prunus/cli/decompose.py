"""``prunus decompose``: layers as chains of smaller ones."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli import options
from prunus.cli.progress import step
from prunus.cli.results import save_result
from prunus.cli.sources import note_random_weights, open_source
from prunus.errors import ConfigError
from prunus.evidence.files import FileData

__all__ = ["decompose"]

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", show_default=False, help="Folder to write; must be new."),
]
Methods = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="svd, tucker, cp or spatial_svd; several with commas: each layer gets the first that takes it.",
    ),
]
Evbmf = Annotated[
    float | None,
    typer.Option(
        metavar="C",
        show_default=False,
        help="Ranks at which what is cut off looks like noise; C from -1 to 1 keeps more or less, 0 just that.",
    ),
]
Energy = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", show_default=False, help="Least ranks that keep this share of the spectrum."
    ),
]
Layers = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV", show_default=False, help="Only list layers and recommended ranks, to edit; new."
    ),
]
Edit = Annotated[
    Path | None, typer.Option(metavar="CSV", show_default=False, help="Use the ranks of this table.")
]
Latency = Annotated[
    bool, typer.Option("--latency", help="Measure; leave alone what gets no faster on this machine.")
]


def decompose(
    source: options.Source,
    output: Output = None,
    method: Methods = "svd",
    params: options.Params = None,
    macs: options.Macs = None,
    size: options.Size = None,
    evbmf: Evbmf = None,
    energy: Energy = None,
    layers: Layers = None,
    edit: Edit = None,
    data: options.Data = None,
    batch_size: options.BatchSize = 32,
    hold: options.Hold = None,
    multiple_of: options.MultipleOf = 1,
    latency: Latency = False,
    inputs: options.Inputs = None,
    dynamic: options.Dynamic = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    onnx: options.Onnx = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
) -> None:
    """Replace layers by chains of smaller ones, and write the model to a folder.

    With calibration data (--data) as little as possible is lost at the layers' outputs; without, in their weights.

    Examples:
      prunus decompose timm:resnet50 --pretrained -o out --method tucker,svd --macs 0.5
      prunus decompose timm:vit_small_patch16_224 -o out --macs 0.7 --data images.npy
      prunus decompose mymodels.net:build --weights net.pth -o out --evbmf 0.2
      prunus decompose mymodels.net:build --method tucker --layers ranks.csv
      prunus decompose mymodels.net:build --method tucker -o out --edit ranks.csv
    """
    goal = _goal(params, macs, size, evbmf, energy, edit, listing=layers is not None)
    if (output is None) == (layers is None):
        raise typer.BadParameter(
            "give --output for a model, or --layers alone for the table.", param_hint="output"
        )
    from prunus.api import decompose as execute
    from prunus.artefact import require_savable
    from prunus.decomposition import rank_table

    methods = [name.strip() for name in method.split(",")]
    if output is not None:
        require_savable(output, overwrite=overwrite, onnx=onnx)
    elif layers is not None and os.path.exists(layers) and not overwrite:
        raise ConfigError(f"{layers} exists already. Choose another file, or pass --overwrite.")
    opened = open_source(source, inputs or (), weights=weights, pretrained=pretrained, seed=seed)
    note_random_weights(opened)
    shared = {
        "method": methods,
        "data": None if data is None else FileData(data, batch_size),
        "hold": hold or (),
    }
    if layers is not None:
        with step("Looking at the layers"):
            table = rank_table(opened.model, opened.example_inputs, **goal, **shared)
        table.to_csv(layers)
        typer.echo(f"{layers}: {len(table)} rows. Edit `ranks` (an empty cell leaves a layer alone), and pass it with --edit.")  # fmt: skip
    if output is not None:
        with step("Decomposing and verifying"):
            result = execute(
                opened.model,
                opened.example_inputs,
                multiple_of=multiple_of,
                measure_latency=latency,
                dynamic=options.dynamic_of(dynamic),
                **goal,
                **shared,
            )
        save_result(result, output, overwrite=overwrite, onnx=onnx)


def _goal(
    params: float | None,
    macs: float | None,
    size: float | None,
    evbmf: float | None,
    energy: float | None,
    edit: Path | None,
    listing: bool,
) -> dict[str, Any]:
    """The one target, rule or table that was given.

    Raises:
        typer.BadParameter: None or several are given.
    """
    from prunus.decomposition import EVBMF, Energy, RankTable

    rules: dict[str, Any] = {}
    if evbmf is not None:
        rules["--evbmf"] = {"ranks": EVBMF(evbmf)}
    if energy is not None:
        rules["--energy"] = {"ranks": Energy(energy)}
    if edit is not None:
        rules["--edit"] = {"table": RankTable.from_csv(edit)}
    fractions = {"--params": params, "--macs": macs, "--size": size}
    given = [*(name for name, value in fractions.items() if value is not None), *rules]
    if listing:
        if set(given) - {"--evbmf", "--energy"} or len(given) > 1:
            raise typer.BadParameter("a table takes --evbmf or --energy alone.", param_hint="--layers")
        return next(iter(rules.values()), {})
    if len(given) != 1:
        raise typer.BadParameter(
            f"give exactly one of --macs, --params, --size, --evbmf, --energy, --edit; got {' and '.join(given) or 'none'}.",
            param_hint="target",
        )
    return rules[given[0]] if given[0] in rules else {"target": options.target_of(None, params, macs, size)}
