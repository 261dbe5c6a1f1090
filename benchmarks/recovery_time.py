"""What choosing channels by `obs` and repairing takes, against forward passes over the same images.

    python benchmarks/recovery_time.py                  # an hour on two cores; writes benchmarks/results/recovery_time.md
    python benchmarks/recovery_time.py --only ResNet-50

Networks of torchvision with random weights (nothing here depends on them), 1,024 photographs of 224 pixels, half of the
multiply-accumulates: the whole call of `prunus.compress`, and the plain forward passes before and after it in the same process.
Each network has a process of its own, so that the most memory it has held is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _record import ROOT, data, peak_bytes, table, write
from torch import Tensor, nn

import prunus

NETWORKS = {"ResNet-50": "resnet50", "ViT-B/16": "vit_b_16"}
BATCH, SHARE, PART = 32, 0.5, 4


def seconds(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock and of all processors that a call takes, and what it gives."""
    wall, processor = time.perf_counter(), time.process_time()
    given = run()
    return time.perf_counter() - wall, time.process_time() - processor, given


def measure(title: str, images: int) -> dict[str, Any]:
    import torchvision

    load = data()
    train, judged = load.imagenette("train")[0], load.imagenette("val")[0]
    batches = [load.normalize(x) for x in torch.cat([train, judged])[:images].split(BATCH)]
    torch.manual_seed(0)
    net: nn.Module = getattr(torchvision.models, NETWORKS[title])().eval()

    @torch.inference_mode()
    def forward(some: list[Tensor]) -> None:
        for x in some:
            net(x)

    def compress(some: list[Tensor] = batches) -> prunus.Result:
        return prunus.compress(net, some[0][:2], target=prunus.Target(macs=SHARE), data=some)

    # glibc gives large blocks back to the system at once, until some have been freed: a new process makes half as many forward
    # passes a second as one that has done this for a while, and compared with those, repair would look twice as fast
    compress(batches[:2])
    some = batches[: max(1, len(batches) // PART)]

    def passes() -> tuple[float, float]:
        wall, processor, _ = seconds(lambda: forward(some))
        return wall * len(batches) / len(some), processor * len(batches) / len(some)

    rounds = [passes()]
    before = peak_bytes()
    wall, processor, result = seconds(compress)
    rounds.append(passes())
    report = result.report
    return {
        "title": title, "images": sum(map(len, batches)), "forward_s": [p[0] for p in rounds],
        "forward_cpu_s": [p[1] for p in rounds], "compress_s": wall, "compress_cpu_s": processor,
        "repair_s": report.recovery["seconds"], "bytes_before": before, "bytes_most": peak_bytes(),
        "macs": report.after.macs / report.before.macs,
    }  # fmt: skip


def report(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        passes, processor = (sum(row[name]) / 2 for name in ("forward_s", "forward_cpu_s"))
        cells.append([
            row["title"], f"{row['images']:,}", f"{passes:.0f} s", f"{row['compress_s']:.0f} s", f"{row['repair_s']:.0f} s",
            f"{row['compress_s'] / passes:.1f}x", f"{row['compress_cpu_s'] / processor:.1f}x",
            f"{row['bytes_before'] / 2**30:.1f} GiB", f"{row['bytes_most'] / 2**30:.1f} GiB",
        ])  # fmt: skip
    head = ["network", "images", "forward passes", "compress", "of it repair"]
    head += ["compress / forward", "by processor time", "memory before", "most memory"]
    return f"""# What repair takes

{table(head, cells)}

`prunus.compress(net, x, target=Target(macs={SHARE}), data=images)` with everything that it does by default: export, evidence of `obs`,
scores, knapsack, repair, verification. The forward passes are those of the original over the same images (a quarter of them,
times four), {BATCH} at a time, without gradients; mean of one round before and one after. All come after a first call with
{2 * BATCH} images, which settles the memory allocator: in a new process these forward passes take up to twice as long. Weights are
random; times do not depend on them. "Memory before" is the most that was held until then: the images, and the first call."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=NETWORKS, help="one network; writes nothing")
    parser.add_argument("--images", type=int, default=1024)
    arguments = parser.parse_args()
    data()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.images)))
        return
    rows = []
    for title in NETWORKS:
        command = [sys.executable, __file__, "--only", title, "--images", str(arguments.images)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    print(write("recovery_time", "python benchmarks/recovery_time.py", report(rows)).read_text())


if __name__ == "__main__":
    main()
