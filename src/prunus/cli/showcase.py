"""``prunus demo``: the whole way on a small network of its own."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the result of the demo.")
    ] = Path("prunus-demo"),
) -> None:
    """Train a small network on real images, prune it, save it.

    It also tunes the small network, and loads what it has saved; all in a minute or two on a CPU.

    Examples:
      prunus demo
      prunus demo -o /tmp/demo
    """
    from prunus.cli.demo import run_demo

    run_demo(output)
