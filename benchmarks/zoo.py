"""Every architecture of a zoo pruned to half of its channels, each in a process of its own, with a limit on time and memory.

    python benchmarks/zoo.py                              # writes benchmarks/results/zoo.md
    python benchmarks/zoo.py --zoo timm --every 4         # a part of it
    python benchmarks/zoo.py --compare torch-pruning      # and Torch-Pruning 1.6.1 beside it
    python benchmarks/zoo.py --only timm/volo_d1_224      # one model: print what is found, write nothing

The architectures come from a folder of definitions next to the repository (`../shared/zoo/zoo.py`); without it the
benchmark says so and stops. Finished models are kept in benchmarks/results/zoo.jsonl, so that a run can be continued;
`--again` measures those that failed once more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from types import ModuleType
from typing import Any

from _record import RESULTS, ROOT, module_of, table, write

SECONDS, MEMORY_BYTES = 300, 14 << 30  # of the processor; by the clock four times that
STORE = RESULTS / "zoo.jsonl"


def definitions() -> ModuleType:
    """The module that builds the architectures."""
    return module_of(ROOT.parent / "shared" / "zoo" / "zoo.py", "definitions of architectures")


def measure(name: str, compare: bool, times_only: bool = False) -> dict[str, Any]:
    """One model: what could be captured, removed, verified, written back, and the CPU seconds that it took.

    With `times_only`, the times of analysis and surgery alone, for a row that has all the rest.
    """
    import torch

    import prunus

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    spec = next(s for s in definitions().get_specs() if s.name == name)
    net = spec.build()
    args, kwargs = spec.inputs()
    row: dict[str, Any] = {"name": name, "family": spec.family, "stage": "forward"}
    structure = None
    try:
        with torch.no_grad():
            net(*args, **kwargs)
        structure = _prune(net, prunus.Inputs(tuple(args), dict(kwargs)), row, times_only)
    except Exception as error:  # noqa: BLE001  (a failure of any kind is a result)
        row |= {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:240] if str(error) else ''}"}
        row["own_error"] = isinstance(error, prunus.PrunusError)
    if compare and row["stage"] != "forward":
        from _peer import torch_pruning

        kept = spec.find_heads(net, args, kwargs)
        row |= torch_pruning(net, tuple(args), dict(kwargs), kept, None if row.get("parts") else structure)
    return row


def _prune(net: Any, inputs: Any, row: dict[str, Any], times_only: bool) -> Any:
    from prunus.api import pruning
    from prunus.api.class_first import class_first
    from prunus.capture import capture
    from prunus.structure import find_structure
    from prunus.structure.table import prunable_share
    from prunus.surgery import axes_written_as_numbers, cut, lift

    clock = time.process_time
    row["stage"] = "capture"
    t = clock()
    captured = capture(net, inputs)
    stuck = axes_written_as_numbers(find_structure(captured)) if captured.partial is None else None
    if stuck:
        captured = capture(net, inputs, captured.shapes.asked - stuck)
    row |= {"capture_s": clock() - t, "parts": captured.partial is not None}
    row["stage"] = "structure"

    def cut_once() -> tuple[Any, float]:
        began = clock()
        structure = find_structure(captured)
        row["stage"] = "prune"
        lift(cut(structure, structure.keep_labels(_half(structure).keep)))
        return structure, clock() - began

    first = cut_once()[1]  # pays for what is loaded once
    structure, second = cut_once()
    row |= {"share": prunable_share(structure), "surgery_s": min(first, second)}
    if times_only:
        row["stage"] = "done"
        return structure
    row["unknown"] = sorted({str(op) for op in structure.unknown.values()})
    compare, seconds = pruning.compare, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = clock()
        result = compare(*args, **kwargs)
        seconds.append(clock() - started)
        return result

    pruning.compare = timed  # type: ignore[assignment]
    t = clock()
    made, notes = class_first(structure, _half, None)
    report = pruning.execute(made.structure, made.plan, tried=made, notes=notes).report
    row |= {"execute_s": clock() - t, "verify_s": sum(seconds)}
    row |= {
        "params": report.after.params / report.before.params,
        "form": report.form,
        "reason": report.form_reason,
        "error": (report.verification or {})["max_relative_error"],
    }
    row |= {"kept_form": "class", "kept_reason": ""} if report.form == "class" else _kept(captured)
    row["stage"] = "done"
    return structure


def _half(structure: Any) -> Any:
    import prunus

    return prunus.plan(structure, target=prunus.Target(channels=0.5))


def _kept(captured: Any) -> dict[str, Any]:
    """What comes back when the user insists on the own class."""
    import prunus
    from prunus.api import execute
    from prunus.api.class_first import class_first
    from prunus.structure import find_structure

    try:
        made, notes = class_first(find_structure(captured), _half, True)
        report = execute(made.structure, made.plan, tried=made, notes=notes).report
    except prunus.PrunusError as error:
        return {"kept_form": "failed", "kept_reason": str(error).splitlines()[0][:240]}
    return {"kept_form": report.form, "kept_reason": report.form_reason, "kept_params": report.after.params / report.before.params}  # fmt: skip


def run(name: str, compare: bool, times_only: bool = False) -> dict[str, Any]:
    """The same in a process of its own."""
    options = [
        *(["--compare", "torch-pruning"] if compare else []),
        *(["--times-only"] if times_only else []),
    ]
    command = [sys.executable, __file__, "--only", name, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=4 * SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return {"name": name, "stage": "time", "failed": f"took more than {4 * SECONDS} s by the clock"}
    if ran.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"name": name, "stage": "limits", "failed": f"took more than {SECONDS} s, or was killed"}
    if ran.returncode == 0:
        return json.loads(ran.stdout.splitlines()[-1])
    last = (ran.stderr.strip() or f"exit {ran.returncode}").splitlines()[-1]
    return {"name": name, "stage": "crash", "failed": last[:240]}


PEER = ("torch_pruning_s", "torch_pruning_right", "torch_pruning_params")


def _beside(name: str) -> dict[str, Any]:
    """Torch-Pruning beside a row that was measured without it: both times from one process."""
    found = run(name, compare=True, times_only=True)
    return {**dict.fromkeys(PEER[:2]), **{key: found[key] for key in ("surgery_s", *PEER) if key in found}}


def _lacks_peer(row: dict[str, Any]) -> bool:
    return "failed" not in row and not {"torch_pruning_s", "torch_pruning_right"} <= set(row)


def summary(rows: list[dict[str, Any]]) -> str:
    lines = []
    for zoo in (*dict.fromkeys(row["name"].split("/")[0] for row in rows), ""):
        mine = [row for row in rows if row["name"].startswith(f"{zoo}/") or not zoo]
        good = [row for row in mine if "failed" not in row]
        if not good:
            continue
        peer = [row for row in mine if row.get("torch_pruning_s") is not None]
        right = sum(_peer_is_right(row) for row in peer)
        lines.append([
            zoo or "all", str(len(mine)), str(len(good)), f"{statistics.median(1 - r['params'] for r in good):.0%}",
            f"{statistics.median(r['share'] for r in good):.1%}", str(sum(r["form"] == "class" for r in good)), str(sum(r["kept_form"] == "class" for r in good)),
            str(sum(r["parts"] for r in good)), f"{max(r['capture_s'] + r['execute_s'] + r['surgery_s'] for r in good):.0f} s",
            f"{len(peer)}, {right}" if any("torch_pruning_s" in r for r in mine) else "not run",
        ])  # fmt: skip
    head = ["zoo", "models", "pruned, verified", "parameters removed", "in removable units", "own class", "with `keep_class`", "captured in parts"]  # fmt: skip
    return table([*head, "longest, capture to write-back", "Torch-Pruning's result runs, is right"], lines)


def _peer_is_right(row: dict[str, Any]) -> bool:
    """Something was removed, and the result computes what the original does without it."""
    return bool(row.get("torch_pruning_right")) and row["torch_pruning_params"] < 0.99


def cost(rows: list[dict[str, Any]]) -> str:
    """What analysis, surgery and verification cost, as ratios taken in one process each."""
    good = [row for row in rows if "failed" not in row]
    ratio = statistics.median((r["surgery_s"] + r["verify_s"]) / r["capture_s"] for r in good)
    lines = [
        f"- Analysis, surgery and verification take {ratio:.2f} times the time of the capture (`torch.export`) in the median."
    ]
    for what, both in (
        ("whose result runs", [row for row in good if row.get("torch_pruning_s")]),
        ("whose result is right", [row for row in good if _peer_is_right(row)]),
    ):
        if both:
            slow = sorted(both, key=lambda r: -r["torch_pruning_s"])[: max(1, len(both) // 10)]
            lines.append(
                f"- Analysis and surgery take {_ratio(both):.2f} times what Torch-Pruning takes, in the median over the {len(both)} models "
                f"{what}; {_ratio(slow):.2f} times on the tenth of them where it takes longest."
            )
    wrong = [row for row in good if row.get("torch_pruning_right") is False]
    if wrong:
        lines.append(
            f"- On {len(wrong)} models its result runs and computes something else than the original without what it removed."
        )
    return "\n".join(lines)


def _ratio(rows: list[dict[str, Any]]) -> float:
    return statistics.median(row["surgery_s"] / row["torch_pruning_s"] for row in rows)


def report(rows: list[dict[str, Any]]) -> str:
    causes = Counter(f"{row['stage']}: {row['failed'][:110]}" for row in rows if "failed" in row)
    cells = []
    for row in sorted(rows, key=lambda row: row["name"]):
        if "failed" in row:
            cells.append([row["name"], f"failed ({row['stage']})", "", "", "", "", ""])
            continue
        times = f"{row['capture_s']:.1f} + {row['surgery_s']:.1f} + {row['verify_s']:.1f}"
        form = row["form"] if row["form"] == row["kept_form"] else f"{row['form']}, {row['kept_form']}"
        peer = row.get("torch_pruning_s")
        cells.append([
            row["name"], form, f"{row['params']:.3f}", f"{row['share']:.3f}", f"{row['error']:.0e}", times, "" if peer is None else f"{peer:.1f}" if row.get("torch_pruning_right") is not False else f"{peer:.1f}, wrong",
        ])  # fmt: skip
    failures = "\n".join(f"- {count} x {cause}" for cause, count in causes.most_common()) or "- none"
    return f"""# A zoo at half of its channels

{summary(rows)}

`Target(channels=0.5)`, L2, random weights, one thread. Medians; times are CPU seconds.

{cost(rows)}

## Failures

{failures}

## Why a graph module came back

Without `keep_class`:

{_reasons(rows, "form", "reason")}

With it:

{_reasons(rows, "kept_form", "kept_reason")}

## Models

Two forms where `keep_class=True` gives another one. Times: capture + analysis and surgery + verification, and Torch-Pruning's
analysis and surgery where its result runs ("wrong": it computes something else than the original with what it removed masked, to
1e-6 in float64).

{table(["model", "came back as", "parameters left", "share of parameters in removable units", "error", "s", "Torch-Pruning, s"], cells)}"""


def _reasons(rows: list[dict[str, Any]], form: str, reason: str) -> str:
    """Reasons by how often they occur; numbers and places are left out of them."""
    found = Counter(_shortened(row[reason]) for row in rows if row.get(form) not in (None, "class"))
    return "\n".join(f"- {count} x {text}" for text, count in found.most_common(25)) or "- none"


def _shortened(reason: str) -> str:
    return re.sub(r"\S*/site-packages/", "", reason.split(": `", 1)[-1]).replace("`", "")[:150]


def names(arguments: argparse.Namespace) -> list[str]:
    every = [s.name for s in definitions().get_specs(arguments.zoo)]
    return [n for n in every if n in arguments.names] if arguments.names else every[:: arguments.every]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="zoo/model; all without")
    parser.add_argument("--zoo", choices=["torchvision", "timm", "hf"])
    parser.add_argument("--every", type=int, default=1, help="only every n-th model")
    parser.add_argument("--compare", choices=["torch-pruning"])
    parser.add_argument("--again", action="store_true", help="measure again what failed")
    parser.add_argument("--only")
    parser.add_argument("--times-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        print(json.dumps(measure(arguments.only, bool(arguments.compare), arguments.times_only)))
        return
    rows = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []
    done = {row["name"]: row for row in rows}
    wanted = names(arguments)
    for i, name in enumerate(wanted):
        known = done.get(name)
        if name not in done or (arguments.again and "failed" in done[name]):
            done[name] = run(name, bool(arguments.compare))
        elif arguments.compare and _lacks_peer(done[name]):
            done[name] = {**done[name], **_beside(name)}
        if known is not done[name]:
            with STORE.open("a") as file:
                file.write(json.dumps(done[name]) + "\n")
        state = done[name].get("failed") or f"{done[name]['form']}, {done[name]['share']:.1%} removable"
        print(f"{i + 1}/{len(wanted)} {name}: {state}", flush=True)
    print(write("zoo", "python benchmarks/zoo.py", report(list(done.values()))).read_text()[:3000])


if __name__ == "__main__":
    main()
