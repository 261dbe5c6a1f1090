"""Example inputs from shapes on the command line."""

import re
from collections.abc import Sequence

import torch
import typer
from torch import Tensor

from prunus.inputs import Inputs

__all__ = ["inputs_of"]

_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")
_NAMES = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
_DTYPES = {name: getattr(torch, name) for name in _NAMES.split()}
_LARGEST = 2**30


def inputs_of(shapes: Sequence[str], seed: int = 0) -> Inputs:
    """Inputs of the given shapes: floating point numbers at random, whole numbers 0 or 1, flags true.

    Args:
        shapes: Each ``[name=]SIZExSIZE...[:dtype]``; without a name it is the next positional argument.
        seed: Of the random numbers.

    Raises:
        typer.BadParameter: A shape that cannot be read.
    """
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for text in shapes:
        name, tensor = _one(text, generator)
        if name in kwargs:
            raise typer.BadParameter(f"{name} is given twice.", param_hint="--input")
        if name:
            kwargs[name] = tensor
        else:
            args.append(tensor)
    return Inputs(tuple(args), kwargs)


def _one(text: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is no shape; write 1x3x224x224, 1x16:int64 or mask=1x16:bool.", param_hint="--input"
        )
    sizes = [int(size) for size in match["sizes"].split("x")]
    dtype = _DTYPES.get(match["dtype"] or "float32")
    if dtype is None:
        raise typer.BadParameter(
            f"{match['dtype']!r} in {text!r} is none of {', '.join(_DTYPES)}.", param_hint="--input"
        )
    count = 1
    for size in sizes:
        count *= size
    if not 0 < count <= _LARGEST:
        raise typer.BadParameter(
            f"{text!r} has {count:,} elements; expected 1 to {_LARGEST:,}.", param_hint="--input"
        )
    if dtype == torch.bool:
        return match["name"], torch.ones(sizes, dtype=dtype)
    if dtype.is_floating_point:
        return match["name"], torch.randn(sizes, generator=generator).to(dtype)
    return match["name"], torch.randint(0, 2, sizes, generator=generator).to(dtype)
