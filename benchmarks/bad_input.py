"""What calls that make no sense give: the class of the error, how long it takes, and whether anything was changed.

python benchmarks/bad_input.py               # writes benchmarks/results/bad_input.md
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import torch
from _record import ROOT, table, write

sys.path.insert(0, str(ROOT))
from tests.bad_calls import CALLS, Call, Outcome, Surroundings, outcome, problem


def _row(call: Call, found: Outcome) -> list[str]:
    when = "after capture" if found.captured else "before capture"
    text = call.text.replace("|", "\\|").replace("\0", "\\0")
    shown = f"`{text[:110]}`" + (" ..." if len(text) > 110 else "")
    return [
        shown,
        found.error,
        when,
        f"{1000 * found.seconds:.0f}",
        "yes" if found.untouched else "NO",
        problem(call, found),
    ]


def main() -> int:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as parent:
        around = Surroundings(Path(parent) / "folder")
        found = [(call, outcome(call, around)) for call in CALLS]
    wrong = sum(bool(problem(*pair)) for pair in found)
    times = sorted(one.seconds for _, one in found)
    text = (
        "# Calls that make no sense\n\n"
        f"{len(found)} calls in Python and on the command line, of which {len(found) - wrong} give the error that they should, with the "
        "model, its gradients and modes, and all files as they were. Half of them take up to "
        f"{1000 * times[len(times) // 2]:.0f} ms of the processor, the slowest {1000 * times[-1]:.0f} ms. On the command line, 1 is an "
        "error that prunus explains, 2 one in the words themselves.\n\n"
    )
    head = ["call", "error", "found", "ms", "untouched", "problem"]
    write("bad_input", "python benchmarks/bad_input.py", text + table(head, [_row(*pair) for pair in found]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
