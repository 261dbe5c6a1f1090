"""What each part of the repair is worth: the error of the outputs with one or several of them switched off.

    python benchmarks/recovery_parts.py                  # half an hour on a quiet machine; writes benchmarks/results/recovery_parts.md
    python benchmarks/recovery_parts.py --only minilm    # prints; writes nothing

Networks are cut and repaired on training inputs without labels, and judged on other training inputs: nothing here has seen what the
tables of accuracy are judged on, so that parts can be chosen by it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from typing import Any
from unittest.mock import patch

import torch
from _record import data, table, write
from torch import Tensor, nn

import prunus
from prunus.api import execute
from prunus.criteria import OBS
from prunus.evidence import collect

EVERYTHING = ("compensate", "batch_norm")
# what stands in the place of a part: module or class, attribute, replacement
OFF: dict[str, tuple[Callable[[], Any], str, Any]] = {
    "mixtures": (lambda: sys.modules["prunus.recovery.recover"], "mix_heads", lambda *_: []),
    "widths": (lambda: OBS, "mixes", False),
    "logits": (lambda: sys.modules["prunus.recovery.recover"], "narrowed", lambda *_: {}),
    "clipped": (lambda: sys.modules["prunus.recovery.layers"], "_clip", lambda *_: None),
}
# what a row is called, which parts are off, and the steps
CONVOLUTIONS: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("no repair", (), ()),
    ("batch normalizations alone", (), ("batch_norm",)),
    ("compensation, targets in front of each ReLU", ("clipped",), ("compensate",)),
    ("compensation", (), ("compensate",)),
    ("all", (), EVERYTHING),
]
HEADS: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("no repair", (), ()),
    ("heads keep channels, logits as cut", ("mixtures", "widths", "logits"), EVERYTHING),
    ("heads keep channels", ("mixtures", "widths"), EVERYTHING),
    ("mixtures, in widths for channels", ("widths",), EVERYTHING),
    ("all", (), EVERYTHING),
]


@dataclass(frozen=True)
class Subject:
    """A trained network, how much of it stays, and inputs.

    Attributes:
        title: of the network.
        macs: share that stays.
        method: that chooses channels.
        net: trained.
        repaired_on: batches for evidence and repair.
        judged_on: other batches.
        outputs: (..., outputs) what counts of what the network returns for a batch.
        ways: what is measured.
    """

    title: str
    macs: float
    method: str
    net: nn.Module
    repaired_on: list[Any]
    judged_on: list[Any]
    outputs: Callable[[Any, Any], Tensor]
    ways: list[tuple[str, tuple[str, ...], tuple[str, ...]]]


def shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def resnet56(load: Any) -> Subject:
    images = load.cifar10()["x_train"]
    order = shuffled(len(images))
    parts = [
        [load.normalize(x) for x in images[some].split(128)] for some in (order[:1024], order[1024:3072])
    ]
    return Subject("ResNet-56", 0.5, "obs", load.resnet_cifar10(56), *parts, lambda out, _: out, CONVOLUTIONS)


def vit(load: Any) -> Subject:
    images = load.imagenette("train")[0]
    order = shuffled(len(images))

    def normalized(some: Tensor) -> list[Tensor]:
        return [load.normalize(x, load.IMAGENET_MEAN, load.IMAGENET_STD) for x in images[some].split(32)]

    half = len(order) // 2
    parts = [normalized(order[:half]), normalized(order[half:])]
    return Subject("ViT-S/14", 0.7, "obs", load.vit_s14(), *parts, _logits, HEADS)


def minilm(load: Any) -> Subject:
    net, tokenizer = load.minilm()
    first, second, _ = load.stsb("train")
    every = [*first, *second]
    order = shuffled(len(every)).tolist()

    def tokens(some: list[int]) -> list[dict[str, Tensor]]:
        kind = {"padding": "max_length", "max_length": 32, "truncation": True, "return_tensors": "pt"}
        rows = [[every[i] for i in some[at : at + 32]] for at in range(0, len(some), 32)]
        return [dict(tokenizer(sentences, **kind)) for sentences in rows]

    def embeddings(out: Any, batch: Any) -> Tensor:
        hidden = out if isinstance(out, Tensor) else out["last_hidden_state"]
        return hidden[batch["attention_mask"].bool()]

    parts = [tokens(order[:512]), tokens(order[512:1024])]
    ways = [way for way in HEADS if "widths" not in way[1]]
    ways[1:1] = [
        ("heads keep channels, logits as cut", ("mixtures", "logits"), EVERYTHING),
        ("heads keep channels", ("mixtures",), EVERYTHING),
    ]
    return Subject("MiniLM", 0.6, "l2", net, *parts, embeddings, ways)


SUBJECTS: dict[str, Callable[[Any], Subject]] = {"resnet56": resnet56, "vit": vit, "minilm": minilm}


def _logits(out: Any, _: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out["logits"]


@contextmanager
def without(parts: tuple[str, ...]) -> Iterator[None]:
    """Inside the block, these parts of the repair are switched off."""
    with ExitStack() as stack:
        for part in parts:
            owner, name, instead = OFF[part]
            stack.enter_context(patch.object(owner(), name, instead))
        yield


@torch.inference_mode()
def error(subject: Subject, net: nn.Module) -> float:
    """Mean square error of the outputs, relative to their variance over the samples."""

    def of(model: nn.Module, batch: Any) -> Tensor:
        given = model(**batch) if isinstance(batch, dict) else model(batch)
        return subject.outputs(given, batch).double()

    wanted = torch.cat([of(subject.net, batch) for batch in subject.judged_on])
    found = torch.cat([of(net, batch) for batch in subject.judged_on])
    return float((found - wanted).square().mean() / wanted.var(0, correction=0).mean())


def rows_of(subject: Subject) -> Iterator[list[str]]:
    first = subject.repaired_on[0]
    example = {k: v[:2] for k, v in first.items()} if isinstance(first, dict) else first[:2]
    structure = prunus.analyze(subject.net, example)
    needs = OBS().needs if subject.method == "obs" else ()
    evidence = collect(structure, needs, subject.repaired_on) if needs else None
    for said, parts, steps in subject.ways:
        with without(parts):
            made = prunus.plan(
                structure, method=subject.method, target=prunus.Target(macs=subject.macs), data=evidence
            )
            small = execute(
                structure, made, verify=False, data=subject.repaired_on if steps else None, steps=steps
            )
        yield [f"{subject.title}, {subject.macs:g} of the MACs, `{subject.method}`", said, f"{error(subject, small.model):.4f}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=list(SUBJECTS), help="some networks; nothing is written")
    named = parser.parse_args().only
    load = data()
    rows, samples = [], []
    for name in named or SUBJECTS:
        torch.manual_seed(0)
        try:
            subject = SUBJECTS[name](load)
        except PackageNotFoundError as missing:
            print(f"Skipped {name}: the weights come in a package; pip install {missing.name}")
            continue
        counts = [
            sum(len(next(iter(b.values())) if isinstance(b, dict) else b) for b in batches)
            for batches in (subject.repaired_on, subject.judged_on)
        ]
        samples.append(f"{subject.title} on {counts[0]:,} and {counts[1]:,}")
        for row in rows_of(subject):
            print(*row, sep=" | ", flush=True)
            rows.append(row)
    if named or len(samples) < len(SUBJECTS):
        return
    text = f"""# What each part of the repair is worth

{table(["network", "repair", "error of the outputs"], rows)}

Error: mean square, relative to the variance of the outputs over the samples; logits of the image networks, embeddings of MiniLM's tokens.
Repaired on training inputs without labels and judged on others of them: {"; ".join(samples)}. One draw. L2 is ranked globally; `obs` is
allocated by knapsack, where mixtures are off from errors of channels. For a network without batch normalization "all" is compensation alone."""
    print(write("recovery_parts", "python benchmarks/recovery_parts.py", text).read_text())


if __name__ == "__main__":
    main()
