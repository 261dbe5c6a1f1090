"""The app: which commands there are, and what becomes of errors."""

import inspect as introspection
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from prunus.cli.apply import apply
from prunus.cli.compress import compress
from prunus.cli.decompose import decompose
from prunus.cli.inspect import inspect
from prunus.cli.plan import plan
from prunus.cli.showcase import demo
from prunus.errors import PrunusError

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Commands whose errors are messages: exit code 1, no traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PrunusError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


def _help(command: Callable[..., None]) -> str:
    """The docstring as help, in which paragraphs with indented lines (examples, lists) keep their lines."""
    paragraphs = introspection.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(f"\b\n{text}" if "\n  " in text else text for text in paragraphs)


app = typer.Typer(
    name="prunus",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (inspect, compress, plan, apply, decompose, demo):
    app.command(help=_help(command))(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from prunus import __version__

        typer.echo(f"prunus {__version__}")
        raise typer.Exit


def prunus(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make trained PyTorch networks smaller: remove whole channels, and prove what is left.

    A model (SOURCE) is given as one of
      timm:resnet50             a model of timm
      torchvision:resnet18      a model of torchvision
      package.module:factory    what a function of your own returns: a model,
                                or a model and example inputs
      model.pt2                 a program saved by torch.export.save
      out/                      a folder that prunus has written

    Exit codes: 0 done; 1 the request cannot be met, the message says why; 2 wrong use of the command.
    """


app.callback(help=_help(prunus))(prunus)


def main() -> None:
    """Run the command line."""
    app()
