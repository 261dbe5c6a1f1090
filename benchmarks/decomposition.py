"""Trained networks at fewer MACs by decomposition alone: accuracy without training, with and without calibration data.

python benchmarks/decomposition.py            # half an hour; goes on where it was stopped; writes benchmarks/results/decomposition.md
python benchmarks/decomposition.py --fresh    # forget what is measured already
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import torch
from _record import RESULTS, data, peak_bytes, table, write
from torch import Tensor, nn

import prunus
from prunus.decomposition import EVBMF
from prunus.report.latency import measure_many

KEPT = (0.8, 0.65, 0.5)
MEASURED = RESULTS / "decomposition.json"
CASES: dict[str, Callable[[Any], tuple[nn.Module, Any, Any, Callable[[nn.Module], float], str]]] = {}
RUNS = [
    ("ResNet-56", "tucker"),
    ("EfficientNet-Lite0", "svd"),
    ("ViT-S/14", "svd"),
    ("MiniLM", "svd"),
    ("ResNet-56", "tucker after l2"),
    ("ResNet-56", "cp"),
]


def case(name: str):
    def register(build):
        CASES[name] = build
        return build

    return register


def accuracy_on(images: Tensor, labels: Tensor, batch: int = 100, columns: Any = None):
    def accuracy(model: nn.Module) -> float:
        right = 0
        with torch.inference_mode():
            for x, y in zip(images.split(batch), labels.split(batch), strict=True):
                out = model(x)
                out = out if isinstance(out, Tensor) else out["logits"]
                right += int((out[:, columns] if columns else out).argmax(1).eq(y).sum())
        return right / len(labels)

    return accuracy


@case("ResNet-56")
def resnet(load: Any):
    arrays = load.cifar10()
    drawn = torch.Generator().manual_seed(0)  # the images are sorted by class
    train = arrays["x_train"][torch.randperm(50_000, generator=drawn)[:256]]
    chosen = torch.randperm(10_000, generator=drawn)[:1000]
    calibration = [load.normalize(part) for part in train.split(64)]
    test = load.normalize(arrays["x_test"][chosen])
    score = accuracy_on(test, arrays["y_test"][chosen], 250)
    return (
        load.resnet_cifar10(56),
        test[:8],
        calibration,
        score,
        "accuracy, 1,000 test images of CIFAR-10 drawn at random",
    )


def some_images(load: Any) -> Tensor:
    """64 training images, drawn at random: they are sorted by class."""
    images = load.imagenette("train")[0]
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:64]]


@case("EfficientNet-Lite0")
def efficientnet(load: Any):
    half = (0.5,) * 3
    calibration = load.normalize(some_images(load), half, half).split(32)
    images, labels = load.imagenette("val")
    test = load.normalize(images[::5], half, half)
    score = accuracy_on(test, labels[::5], 50, list(load.IMAGENETTE_INDEX))
    return (
        load.efficientnet_lite0(),
        test[:2],
        list(calibration),
        score,
        "accuracy among ten classes, 200 images of Imagenette",
    )


@case("ViT-S/14")
def vit(load: Any):
    calibration = load.normalize(some_images(load)).split(16)
    images, labels = load.imagenette("val")
    test = load.normalize(images[::5])
    return (
        load.vit_s14(),
        test[:2],
        list(calibration),
        accuracy_on(test, labels[::5], 50),
        "accuracy, 200 images of Imagenette",
    )


@case("MiniLM")
def minilm(load: Any):
    from scipy.stats import spearmanr

    net, tokenizer = load.minilm()
    one, two, scores = (part[:400] for part in load.stsb("dev"))
    train = load.stsb("train")[0][:256]

    def tokens(sentences: list[str]) -> dict[str, Tensor]:
        return dict(
            tokenizer(sentences, padding="max_length", truncation=True, max_length=32, return_tensors="pt")
        )

    def correlation(model: nn.Module) -> float:
        similar = (load.embed(model, tokenizer, one) * load.embed(model, tokenizer, two)).sum(1)
        return float(spearmanr(similar, scores).statistic)

    batches = [tokens(train[i : i + 64]) for i in range(0, 256, 64)]
    return net, tokens(train[:2]), batches, correlation, "Spearman correlation, 400 pairs of STS-B"


def run(load: Any, name: str, method: str, measured: dict[str, Any]) -> None:
    """Measure what is missing of one network and method."""
    keys = [f"{name}|{method}|{kept}|{aware}" for kept in KEPT for aware in (False, True)]
    if all(key in measured for key in keys):
        return
    try:
        net, example, calibration, score, what = CASES[name](load)
    except (PackageNotFoundError, ImportError) as error:
        print(f"Skipped {name}: the weights come in a package that is missing ({error})")
        return
    if f"{name}|original" not in measured:
        measured[f"{name}|original"] = {"score": score(net), "what": what}
    for key in keys:
        if key in measured:
            continue
        kept, aware = float(key.split("|")[2]), key.endswith("True")
        began = time.perf_counter()
        result = compressed(net, example, method, kept, calibration if aware else None)
        took = time.perf_counter() - began
        row = {"score": score(result.model), "seconds": took}
        row["macs"] = result.report.after.macs / result.report.before.macs
        if aware and kept == min(KEPT):
            row |= latencies(net, result)
        measured[key] = row
        print(key, row, flush=True)
        MEASURED.write_text(json.dumps(measured, indent=1) + "\n")


def compressed(net: nn.Module, example: Any, method: str, kept: float, calibration: Any) -> Any:
    target = prunus.Target(macs=kept)
    if method == "tucker after l2":
        half = kept**0.5  # as much from each of the two
        pruned = prunus.compress(
            net, example, method="l2", target=prunus.Target(macs=half), verify=False, data=calibration
        )
        return prunus.decompose(
            pruned, method="tucker", target=prunus.Target(macs=kept / half), data=calibration
        )
    return prunus.decompose(net, example, method=method, target=target, data=calibration)


def latencies(net: nn.Module, result: Any) -> dict[str, float]:
    """Milliseconds in torch and onnxruntime, before and after."""
    example = result.captured.example
    times = measure_many({"before": net, "after": result.model}, example)
    found = {f"torch_{name}_ms": ms for name, ms in times.items()}
    try:
        found |= {f"onnx_{name}_ms": ms for name, ms in onnx_latencies(net, result.model, example).items()}
    except Exception as error:  # noqa: BLE001  whatever the exporter raises
        print(f"not measured in onnxruntime: {type(error).__name__}: {str(error)[:200]}")
    return found


def onnx_latencies(net: nn.Module, small: nn.Module, example: Any) -> dict[str, float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("before", net), ("after", small)):
            path = Path(folder) / f"{name}.onnx"
            torch.onnx.export(
                model, example.args, str(path), kwargs=example.kwargs, dynamo=True, verbose=False
            )
            session = onnxruntime.InferenceSession(str(path), options)
            leaves = [*example.args, *example.kwargs.values()]
            feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), leaves, strict=True)}
            runs[name] = lambda session=session, feeds=feeds: session.run(None, feeds)
        best = dict.fromkeys(runs, float("inf"))
        for turn in range(12):
            for name, call in runs.items():
                began = time.perf_counter()
                call()
                best[name] = min(best[name], 1e3 * (time.perf_counter() - began)) if turn > 1 else best[name]
    return best


LARGE = {"vit_base_patch16_224": "svd", "resnet50": ("tucker", "svd")}


def large(measured: dict[str, Any]) -> None:
    """Time and memory of decomposing large networks, each in a process of its own: what a process has held once, it never forgets."""
    for name in LARGE:
        if f"large|{name}" not in measured:
            command = [sys.executable, __file__, "--large", name]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            measured[f"large|{name}"] = json.loads(ran.stdout.splitlines()[-1])
            print(name, measured[f"large|{name}"], flush=True)
            MEASURED.write_text(json.dumps(measured, indent=1) + "\n")


def decomposed(name: str) -> dict[str, float]:
    """One network of random weights at EVBMF ranks, on two threads."""
    import timm

    torch.set_num_threads(2)
    net = timm.create_model(name).eval()
    bytes_of = sum(p.numel() * p.element_size() for p in net.parameters())
    prunus.decompose(nn.Linear(64, 64), torch.randn(2, 64), ranks={"": 8})  # what loads once
    before = peak_bytes()
    began, worked = time.perf_counter(), time.process_time()
    result = prunus.decompose(net, torch.randn(1, 3, 224, 224), method=LARGE[name], ranks=EVBMF(0.3))
    took, worked = time.perf_counter() - began, time.process_time() - worked
    grown = peak_bytes() - before
    return {
        "seconds": took,
        "cpu_seconds": worked,
        "memory": grown / bytes_of,
        "replaced": sum(layer.reason is None for layer in result.report.replaced),
        "mb": bytes_of / 2**20,
    }


def document(measured: dict[str, Any]) -> str:
    rows, fast = [], []
    for name, method in RUNS:
        if f"{name}|original" not in measured:
            continue
        cells = []
        for kept in KEPT:
            plain, aware = (measured.get(f"{name}|{method}|{kept}|{w}") for w in (False, True))
            cells.append(" → ".join(f"{each['score']:.1%}" if each else "-" for each in (plain, aware)))
            if aware and "torch_before_ms" in aware:
                fast.append(latency_row(name, method, aware))
        rows.append([f"{name}, {method}", f"{measured[f'{name}|original']['score']:.1%}", *cells])
    head = [
        "without training; plain → with calibration data",
        "original",
        *(f"{kept:.0%} of the MACs" for kept in KEPT),
    ]
    notes = "; ".join(
        dict.fromkeys(
            f"{n}: {measured[f'{n}|original']['what']}" for n, _ in RUNS if f"{n}|original" in measured
        )
    )
    text = f"# Decomposition without training\n\n{table(head, rows)}\n\n{notes}. Calibration: 256 images (ResNet-56), 64 images of the training set (EfficientNet, ViT), 256 sentences (MiniLM); with it, what L2 leaves is repaired before it is decomposed.\n"
    text += f"\n{table(['at 50% of the MACs, 1 thread', 'torch', 'onnxruntime', 'decomposed in'], fast)}\n"
    big = [
        [
            k[6:],
            f"{v['mb']:.0f} MB",
            str(v["replaced"]),
            f"{v['seconds']:.0f} s ({v['cpu_seconds']:.0f} s)",
            f"{v['memory']:.1f}x",
        ]
        for k, v in measured.items()
        if k.startswith("large|")
    ]
    text += f"\n{table(['random weights, ranks EVBMF(0.3)', 'weights', 'layers replaced', 'took (of the processor)', 'peak memory, of the weights'], big)}"
    return text


def latency_row(name: str, method: str, row: dict[str, float]) -> list[str]:
    def pair(kind: str) -> str:
        if f"{kind}_before_ms" not in row:
            return "-"
        return f"{row[f'{kind}_before_ms']:.1f} → {row[f'{kind}_after_ms']:.1f} ms"

    return [f"{name}, {method}", pair("torch"), pair("onnx"), f"{row['seconds']:.0f} s"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fresh", action="store_true", help="forget what is measured already")
    parser.add_argument("--only", default="", help="networks whose names contain this")
    parser.add_argument("--large", choices=list(LARGE), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.manual_seed(0)
    if asked.large:
        print(json.dumps(decomposed(asked.large)))
        return
    load = data()
    torch.set_num_threads(1)
    measured = {} if asked.fresh or not MEASURED.is_file() else json.loads(MEASURED.read_text())
    for name, method in RUNS:
        if asked.only in name:
            run(load, name, method, measured)
    if asked.only in "large":
        large(measured)
    print(write("decomposition", "python benchmarks/decomposition.py", document(measured)).read_text())


if __name__ == "__main__":
    sys.exit(main())
