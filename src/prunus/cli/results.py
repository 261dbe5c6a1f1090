"""Save a result and show it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from prunus.cli.progress import step
from prunus.files import shown

if TYPE_CHECKING:
    from prunus.api import Result

__all__ = ["save_result"]


def save_result(result: "Result", output: Path, *, overwrite: bool, onnx: bool) -> None:
    """Write a result to a folder, then print its report: in colors on a terminal, else as plain text.

    Raises:
        ArtefactError: It cannot be written.
    """
    with step("Writing and checking the files"):
        result.save(output, overwrite=overwrite, onnx=onnx)
    if sys.stdout.isatty():
        from prunus.report.table import print_report

        print_report(result.report)
    else:
        typer.echo(str(result.report))
    size_bytes = sum(file.stat().st_size for file in output.iterdir())
    names = ", ".join(sorted(file.name for file in output.iterdir()))
    typer.echo(f"\nSaved to {shown(output)} ({size_bytes:,} bytes): {names}")
    typer.echo(f"prunus.load({str(output)!r}) gives the model back, without its code.")
