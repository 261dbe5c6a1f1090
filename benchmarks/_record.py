"""What all benchmarks share: where data lies, what a figure was measured with, and where it is written."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import torch

import prunus

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"


def data() -> ModuleType:
    """The module that loads trained networks and data; ends the program with a sentence where it is absent."""
    return module_of(DATA / "load.py", "trained networks and data")


def module_of(file: Path, what: str) -> ModuleType:
    """A module beside the repository; ends the program with a sentence where it is absent."""
    if not file.is_file():
        print(f"Skipped: this benchmark needs {what}, and {file} does not exist.")
        sys.exit(0)
    spec = importlib.util.spec_from_file_location(f"beside_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = sys.modules[file.stem] = module  # it may import itself under its own name
    spec.loader.exec_module(module)
    return module


def measured_with() -> str:
    """Versions, threads and date, in a line."""
    made = f"prunus {prunus.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    cores = f"{torch.get_num_threads()} threads on {os.cpu_count()} {platform.machine()} cores"
    return f"{made}; {cores}; {datetime.now(UTC):%Y-%m-%d}."


def peak_bytes() -> int:
    """The most memory that this program has held; `getrusage` would include what the process held that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write(name: str, command: str, text: str) -> Path:
    """Write `benchmarks/results/NAME.md`: the text, the command that gives it, and what it was measured with."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.md"
    file.write_text(f"{text}\n\n`{command}`, {measured_with()}\n", encoding="utf-8")
    return file
