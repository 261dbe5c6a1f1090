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
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from types import ModuleType
from typing import Any

from _record import RESULTS, ROOT, module_of, table, write

SECONDS, MEMORY_BYTES = 300, 14 << 30
STORE = RESULTS / "zoo.jsonl"


def definitions() -> ModuleType:
    """The module that builds the architectures."""
    return module_of(ROOT.parent / "shared" / "zoo" / "zoo.py", "definitions of architectures")


def measure(name: str, compare: bool) -> dict[str, Any]:
    """One model: what could be captured, removed, verified, written back, and the CPU seconds that it took."""
    import torch

    import prunus
    from prunus.api import execute
    from prunus.capture import capture
    from prunus.structure import find_structure
    from prunus.structure.table import prunable_share

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    spec = next(s for s in definitions().get_specs() if s.name == name)
    net = spec.build()
    args, kwargs = spec.inputs()
    row: dict[str, Any] = {"name": name, "family": spec.family, "stage": "forward"}
    try:
        with torch.no_grad():
            net(*args, **kwargs)
        row["stage"] = "capture"
        clock = time.process_time
        t = clock()
        captured = capture(net, prunus.Inputs(tuple(args), dict(kwargs)))
        row["capture_s"] = clock() - t
        row["stage"] = "structure"
        t = clock()
        structure = find_structure(captured)
        row |= {"structure_s": clock() - t, "share": prunable_share(structure)}
        row["unknown"] = sorted({str(op) for op in structure.unknown.values()})
        row["stage"] = "prune"
        t = clock()
        result = execute(structure, prunus.plan(structure, target=prunus.Target(channels=0.5)))
        row["prune_s"] = clock() - t
        report = result.report
        row |= {
            "params": report.after.params / report.before.params,
            "form": report.form,
            "reason": report.form_reason,
            "error": (report.verification or {})["max_relative_error"],
        }
        row |= {"kept_form": "class", "kept_reason": ""} if report.form == "class" else _kept(captured)
        row["stage"] = "done"
    except Exception as error:  # noqa: BLE001  (a failure of any kind is a result)
        row |= {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:240] if str(error) else ''}"}
        row["own_error"] = isinstance(error, prunus.PrunusError)
    if compare and row["stage"] != "forward":
        from _peer import torch_pruning_s

        kept = spec.find_heads(net, args, kwargs)
        row["torch_pruning_s"] = torch_pruning_s(net, tuple(args), dict(kwargs), kept)
    return row


def _kept(captured: Any) -> dict[str, str]:
    """What comes back when the user insists on the own class."""
    import prunus
    from prunus.api import execute
    from prunus.structure import find_structure
    from prunus.surgery import with_class_ties

    try:
        structure = with_class_ties(find_structure(captured, keep_class=True))
        report = execute(structure, prunus.plan(structure, target=prunus.Target(channels=0.5))).report
    except prunus.PrunusError as error:
        return {"kept_form": "failed", "kept_reason": str(error).splitlines()[0][:240]}
    return {"kept_form": report.form, "kept_reason": report.form_reason, "kept_params": report.after.params / report.before.params}  # fmt: skip


def run(name: str, compare: bool) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--only", name, *(["--compare", "torch-pruning"] if compare else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return {"name": name, "stage": "time", "failed": f"took more than {SECONDS} s"}
    if ran.returncode == 0:
        return json.loads(ran.stdout.splitlines()[-1])
    last = (ran.stderr.strip() or f"exit {ran.returncode}").splitlines()[-1]
    return {"name": name, "stage": "crash", "failed": last[:240]}


def summary(rows: list[dict[str, Any]]) -> str:
    lines = []
    for zoo in dict.fromkeys(row["name"].split("/")[0] for row in rows):
        mine = [row for row in rows if row["name"].startswith(f"{zoo}/")]
        good = [row for row in mine if "failed" not in row]
        if not good:
            continue
        peer = [row for row in mine if row.get("torch_pruning_s") is not None]
        lines.append([
            zoo, str(len(mine)), str(len(good)), f"{statistics.median(1 - r['params'] for r in good):.0%}",
            f"{statistics.median(r['share'] for r in good):.1%}", str(sum(r["form"] == "class" for r in good)),
            f"{statistics.median(r['capture_s'] for r in good):.1f} s", f"{statistics.median(r['structure_s'] + r['prune_s'] for r in good):.1f} s",
            str(len(peer)) if any("torch_pruning_s" in r for r in mine) else "not run",
        ])  # fmt: skip
    head = [
        "zoo",
        "models",
        "pruned, verified",
        "parameters removed",
        "in removable units",
        "own class",
        "capture",
        "the rest",
    ]
    return table([*head, "Torch-Pruning's result runs"], lines)


def report(rows: list[dict[str, Any]]) -> str:
    causes = Counter(f"{row['stage']}: {row['failed'][:110]}" for row in rows if "failed" in row)
    forms = Counter(_shortened(row["reason"]) for row in rows if row.get("form") == "graph")
    cells = []
    for row in sorted(rows, key=lambda row: row["name"]):
        if "failed" in row:
            cells.append([row["name"], f"failed ({row['stage']})", "", "", "", ""])
            continue
        times = f"{row['capture_s']:.1f} + {row['structure_s']:.1f} + {row['prune_s']:.1f}"
        cells.append(
            [
                row["name"],
                row["form"],
                f"{row['params']:.3f}",
                f"{row['share']:.3f}",
                f"{row['error']:.0e}",
                times,
            ]
        )
    failures = "\n".join(f"- {count} x {cause}" for cause, count in causes.most_common()) or "- none"
    reasons = "\n".join(f"- {count} x {reason}" for reason, count in forms.most_common(20)) or "- none"
    return f"""# A zoo at half of its channels

{summary(rows)}

`Target(channels=0.5)`, L2, random weights, one thread. Medians; times are CPU seconds; the rest is analysis, plan, surgery, write-back and
verification.

## Failures

{failures}

## Why a graph module came back

{reasons}

## Models

{table(["model", "came back as", "parameters left", "share of parameters in removable units", "error", "capture + structure + rest, s"], cells)}"""


def _shortened(reason: str) -> str:
    return reason.split(": `", 1)[-1].replace("`", "")[:150]


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
    arguments = parser.parse_args()
    if arguments.only:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        print(json.dumps(measure(arguments.only, bool(arguments.compare))))
        return
    rows = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []
    done = {row["name"]: row for row in rows}
    wanted = names(arguments)
    for i, name in enumerate(wanted):
        if name not in done or (arguments.again and "failed" in done[name]):
            done[name] = run(name, bool(arguments.compare))
            with STORE.open("a") as file:
                file.write(json.dumps(done[name]) + "\n")
        state = done[name].get("failed") or f"{done[name]['form']}, {done[name]['share']:.1%} removable"
        print(f"{i + 1}/{len(wanted)} {name}: {state}", flush=True)
    print(write("zoo", "python benchmarks/zoo.py", report(list(done.values()))).read_text()[:3000])


if __name__ == "__main__":
    main()
