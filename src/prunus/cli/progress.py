"""What is going on, on stderr: stdout has the results alone."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console

__all__ = ["note", "step"]


@contextlib.contextmanager
def step(doing: str) -> Iterator[None]:
    """Show what is being done, and afterwards how long it took."""
    console = Console(stderr=True, highlight=False)
    start = time.perf_counter()
    with console.status(f"{doing} ..."):
        yield
    console.print(f"{doing}: {time.perf_counter() - start:.1f} s", style="dim", markup=False)


def note(text: str) -> None:
    """Say something that the user should know."""
    Console(stderr=True, highlight=False).print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)
