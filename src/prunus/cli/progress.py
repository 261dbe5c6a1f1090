"""What is going on, on stderr: stdout has the results alone."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from prunus.errors import printable
from prunus.evidence import Progress
from prunus.files import shown

__all__ = ["note", "step", "watched"]


@contextlib.contextmanager
def step(doing: str) -> Iterator[None]:
    """Show what is being done, and afterwards how long it took."""
    console = Console(stderr=True, highlight=False)
    start = time.perf_counter()
    doing = shown(doing)
    with console.status(Text(f"{doing} ...")):
        yield
    console.print(f"{doing}: {time.perf_counter() - start:.1f} s", style="dim", markup=False)


@contextlib.contextmanager
def watched(doing: str, unit: str = "batch") -> Iterator[Callable[[Progress], None]]:
    """As `step`; what it gives is told how far a pass over data is, and says what time is left."""
    console = Console(stderr=True, highlight=False)
    start = time.perf_counter()
    with console.status(Text(f"{doing} ...")) as status:

        def progress(now: Progress) -> None:
            total = "" if now.total is None else f" of {now.total}"
            left = "" if now.seconds_left is None else f", about {now.seconds_left:.0f} s left"
            if now.batches == 0 and now.seconds_left is not None:
                console.print(
                    f"Looking at the data takes about {now.seconds_left:.0f} s.", style="dim", markup=False
                )
            status.update(Text(f"{doing} ... {unit} {now.batches}{total}{left}"))

        yield progress
    console.print(f"{doing}: {time.perf_counter() - start:.1f} s", style="dim", markup=False)


def note(text: str) -> None:
    """Say something that the user should know."""
    Console(stderr=True, highlight=False).print(
        f"note: {printable(text)}", style="yellow", markup=False, soft_wrap=True
    )
