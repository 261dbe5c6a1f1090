"""Arguments and options that several commands share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.allocation import ALLOCATORS, Target
from prunus.criteria import CRITERIA, NORMALIZERS, Options
from prunus.criteria.options import CHANNEL_AXES, GROUP_POLICIES, POLICIES, STEP_OPS

# decided by lists of indices, which a command line cannot give
_NOT_HERE = "index"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        show_default=False,
        help="timm:NAME, torchvision:NAME, package.module:factory, a .pt2 file, or a folder of prunus.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        show_default=False,
        help="Shape of an input, such as 1x3x224x224, 1x16:int64 or mask=1x16:bool; once for each argument "
        "of the model. Default: what the source says.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", show_default=False, help="Load these weights first: .safetensors or .pth."),
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Let timm or torchvision fetch the trained weights.")
]
Seed = Annotated[int, typer.Option(help="For everything that is drawn at random.")]


_METHODS = ", ".join(name for name in sorted(CRITERIA) if name != _NOT_HERE)


def _known_method(name: str | None) -> str | None:
    if name is not None and name not in _METHODS.split(", "):
        raise typer.BadParameter(f"{name!r} is none of {_METHODS}.")
    return name


Method = Annotated[
    str | None,
    typer.Option(
        callback=_known_method,
        show_default=False,
        help=f"How channels are ranked: {_METHODS}. By default obs with --data, l2 without.",
    ),
]
Bias = Annotated[
    bool,
    typer.Option("--bias", help="With --data: give layers without a bias one where that helps."),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="With --data: a folder in which finished work is noted; the same command goes on there after an interruption.",
    ),
]
Recover = Annotated[
    bool,
    typer.Option(
        "--recover/--no-recover", help="With --data: fit what is left to what the original computes."
    ),
]


def _fraction(value: float | None) -> float | None:
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"{value:g} is no fraction above 0 and up to 1; 0.5 keeps half.")
    return value


def _kept(what: str) -> Any:
    return typer.Option(
        metavar="FRACTION", callback=_fraction, show_default=False, help=f"Keep this fraction of {what}."
    )


def _ratio(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(
            f"{value:g} is no share above 0 and below 1; 0.3 removes 30 % of the filters."
        )
    return value


def _one_of(known: Sequence[Any], what: str, metavar: str = "NAME") -> Any:
    """An option with a few known values, all of which the help and the error list."""
    names = ", ".join(map(str, known))

    def check(value: Any) -> Any:
        if value is not None and value not in known:
            raise typer.BadParameter(f"{value!r} is none of {names}.")
        return value

    return typer.Option(metavar=metavar, callback=check, show_default=False, help=f"{what}: {names}.")


Channels = Annotated[float | None, _kept("the channels of every group")]
Params = Annotated[float | None, _kept("the parameters")]
Macs = Annotated[float | None, _kept("the multiply-accumulates")]
Size = Annotated[float | None, _kept("the bytes of the weights")]
Ratio = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        callback=_ratio,
        show_default=False,
        help="Remove this share of the filters: 0.3 is --channels 0.7.",
    ),
]
Allocation = Annotated[
    str | None,
    _one_of(tuple(ALLOCATORS), "How many channels each group keeps; by default what suits the target"),
]
LayerNorm = Annotated[
    str | None, _one_of(tuple(NORMALIZERS), "How scores of a layer are normalized; by default mean")
]
Policy = Annotated[str | None, _one_of(POLICIES, "How coupled layers count; by default backward")]
GroupPolicy = Annotated[
    str | None, _one_of(GROUP_POLICIES, "How heads and other rows count; by default none")
]
StepSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", show_default=False, help="As --multiple-of, rounded by --step-op."),
]
StepOp = Annotated[str | None, _one_of(STEP_OPS, "How numbers are rounded to --step-size")]
ChannelAxis = Annotated[
    int | None,
    _one_of(CHANNEL_AXES, "Whether heads (0, -2) or the channels of every head (1, -1) become fewer", "AXIS"),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        show_default=False,
        help="Calibration data: an .npy, .npz or .safetensors file, or a folder of these; an array `labels` is no input.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Samples in a batch of --data.")]
Hold = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        show_default=False,
        help="Leave layers alone: a path, its beginning, or a glob.",
    ),
]
MultipleOf = Annotated[
    int, typer.Option(min=1, metavar="N", help="Keep multiples of N channels, which hardware likes.")
]
KeepClass = Annotated[
    bool, typer.Option("--keep-class", help="Only cut in ways that the model's own class can run with.")
]
ClassFirst = Annotated[
    bool | None,
    typer.Option(
        "--keep-class/--any-class",
        show_default=False,
        help="Cut in ways that the model's own class can run with: at any cost, or not at all; by default where that costs little.",
    ),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="AXES",
        show_default=False,
        help="Which axes of the inputs may have other sizes than here: auto (all that can), batch, none, or x=0,2,3 for "
        "those of the input x; once for each input. Default: auto.",
    ),
]
Free = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OUTPUT",
        show_default=False,
        help="This output may get narrower: its place in what the model returns, such as 1 or maps.0; * for all.",
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OUTPUT", show_default=False, help="This output is not wanted: neither held nor computed."
    ),
]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Do not compare the result with the masked original.")
]
Folder = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="DIR", show_default=False, help="Folder to write; must be new."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Onnx = Annotated[bool, typer.Option("--onnx", help="Write model.onnx as well, checked with onnxruntime.")]


def target_of(channels: float | None, params: float | None, macs: float | None, size: float | None) -> Target:
    """The one target that was given.

    Raises:
        typer.BadParameter: None or several are given.
    """
    given = {"channels": channels, "params": params, "macs": macs, "size_bytes": size}
    given = {unit: value for unit, value in given.items() if value is not None}
    if len(given) != 1:
        found = " and ".join("--size" if unit == "size_bytes" else f"--{unit}" for unit in given) or "none"
        raise typer.BadParameter(
            f"give exactly one of --channels, --params, --macs, --size, --ratio, such as --macs 0.5; got {found}.",
            param_hint="target",
        )
    return Target(**given)


def options_of(**given: Any) -> Options | None:
    """The options that were given, with defaults for the rest; None where none were, which leaves it to the method."""
    said = {name: value for name, value in given.items() if value is not None}
    return Options(**said) if said else None


def dynamic_of(given: Sequence[str] | None) -> Any:
    """The free axes that were asked for, as `prunus.analyze` takes them.

    Raises:
        typer.BadParameter: It is none of the words, and names no axes.
    """
    if not given:
        return "auto"
    if len(given) == 1 and given[0] in ("auto", "batch", "none"):
        return given[0]
    named: dict[str, list[int]] = {}
    for text in given:
        name, sign, axes = text.partition("=")
        try:
            named[name] = [int(axis) for axis in axes.split(",")]
        except ValueError:
            name = ""
        if not (name and sign):
            raise typer.BadParameter(f"{text!r} is none of auto, batch, none, and not of the form x=0,2,3.")
    return named


def outputs_of(free: Sequence[str] | None, drop: Sequence[str] | None) -> dict[str, str]:
    """What is said of outputs, as `prunus.analyze` takes it."""
    return {**dict.fromkeys(free or (), "free"), **dict.fromkeys(drop or (), "drop")}


def method_of(name: str, seed: int) -> Any:
    """The criterion of a name, with the seed where it draws numbers."""
    criterion: Callable[..., Any] = CRITERIA[name]
    draws = "seed" in getattr(criterion, "__dataclass_fields__", {})
    return criterion(seed=seed) if draws else criterion()
