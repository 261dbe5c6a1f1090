"""`prunus demo`: train a small network on real images, prune it to a quarter, tune it, save it."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.allocation import Target
from prunus.api import Result, compress
from prunus.artefact import load
from prunus.errors import ArtefactError, ConfigError
from prunus.report import print_report
from prunus.report.latency import measure_many

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["DemoResult", "run_demo"]

KEPT_MACS = 0.25
EPOCHS, TUNE_EPOCHS = 30, 10
_BATCH = 64
_LATENCY_BATCH = 64  # images in the forward pass that is timed
_SEED = 0


@dataclass(frozen=True)
class DemoResult:
    """What the demo has measured.

    Attributes:
        accuracy: share of the test images that are right: of the original, after surgery, after tuning.
        latency_ms: one forward pass of 64 images on one thread, of the same three.
        result: of the compression; its model is the tuned one.
        difference: largest difference between the outputs of the tuned model and of the one loaded again.
        directory: where it was saved.
        seconds: the whole demo.
    """

    accuracy: tuple[float, float, float]
    latency_ms: tuple[float, float, float]
    result: Result
    difference: float
    directory: Path
    seconds: float


class _Block(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for images of 8 x 8 pixels: a stem, and three stages of two blocks."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(_Block(width, width, 1), _Block(width, width, 1))
        self.stage2 = nn.Sequential(_Block(width, 2 * width, 2), _Block(2 * width, 2 * width, 1))
        self.stage3 = nn.Sequential(_Block(2 * width, 4 * width, 2), _Block(4 * width, 4 * width, 1))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) images -> (N, 10) logits."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class _Digits:
    """Images (N, 1, 8, 8) and digits (N,), for training and held out."""

    train: Tensor
    train_digits: Tensor
    test: Tensor
    test_digits: Tensor


def run_demo(
    directory: str | Path = "prunus-demo",
    *,
    epochs: int = EPOCHS,
    tune_epochs: int = TUNE_EPOCHS,
    console: Console | None = None,
) -> DemoResult:
    """Train, prune, tune, save and load a residual network on scikit-learn's handwritten digits.

    Takes under a minute or two on two cores, and gives the same networks in every run on one machine.

    Args:
        directory: where the result is saved. A folder from an earlier demo is replaced, any other is refused.
        epochs: of training.
        tune_epochs: of training after the surgery.
        console: where to print; by default the standard output.

    Raises:
        ConfigError: scikit-learn is not installed.
        ArtefactError: the folder holds something else, or cannot be written.
    """
    from rich.console import Console

    console = console or Console()
    began = time.perf_counter()
    directory = Path(directory)
    _require_own(directory)
    digits = _load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        console.rule("[bold]prunus demo")
        count = len(digits.train) + len(digits.test)
        console.print(
            f"A residual network on {count:,} real images of handwritten digits (8 x 8 pixels, from "
            f"scikit-learn), {len(digits.test)} of them held out for testing.\n",
            highlight=False,
        )
        net = DigitNet()
        with _progress(console) as progress:
            _train(net, digits, epochs, 0.1, progress, "train the original")
            before = _accuracy(net, digits)
            step = progress.add_task(f"prune to {KEPT_MACS:.0%} of the MACs", total=1, note="")
            example = digits.test[:_LATENCY_BATCH]
            result = compress(net, example, method="l2", target=Target(macs=KEPT_MACS))
            cut = copy.deepcopy(result.model)
            pruned = _accuracy(cut, digits)
            progress.update(step, advance=1, note=f"accuracy {pruned:.1%}")
            _train(result.model, digits, tune_epochs, 0.02, progress, "tune the small one")
    tuned = _accuracy(result.model, digits)
    times = measure_many({"before": net, "cut": cut, "tuned": result.model}, example)
    saved = result.save(directory, overwrite=True)
    difference = _difference(result.model, load(saved), digits.test)
    done = DemoResult(
        accuracy=(before, pruned, tuned),
        latency_ms=(times["before"], times["cut"], times["tuned"]),
        result=result,
        difference=difference,
        directory=saved,
        seconds=time.perf_counter() - began,
    )
    _show(done, console)
    return done


def _require_own(directory: Path) -> None:
    """Look before minutes of training: what is not from prunus is never overwritten."""
    if directory.is_dir() and (not any(directory.iterdir()) or (directory / "artefact.json").is_file()):
        return
    if directory.exists():
        raise ArtefactError(
            f"{directory} exists and is not from an earlier demo. Move it, or name another folder."
        )


def _load_digits() -> _Digits:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConfigError(
            "The demo trains on images from scikit-learn, which is not installed: pip install 'prunus[demo]'"
        ) from error
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(images, digits, test_size=0.25, random_state=_SEED, stratify=digits)
    train, test = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in parts[:2])
    train_digits, test_digits = (torch.tensor(part, dtype=torch.long) for part in parts[2:])
    return _Digits(train, train_digits, test, test_digits)


def _train(net: nn.Module, digits: _Digits, epochs: int, rate: float, progress: Progress, name: str) -> None:
    """Stochastic gradient descent with a falling rate, on images shifted by up to a pixel."""
    task = progress.add_task(name, total=epochs, note="")
    steps = epochs * (len(digits.train) // _BATCH)
    optimizer = torch.optim.SGD(net.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2), pct_start=0.2)
    for _ in range(epochs):
        net.train()
        for chosen in torch.randperm(len(digits.train)).split(_BATCH):
            if len(chosen) < _BATCH:
                continue
            loss = F.cross_entropy(net(_shifted(digits.train[chosen])), digits.train_digits[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.update(task, advance=1, note=f"accuracy {_accuracy(net, digits):.1%}")
    net.eval()


def _shifted(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels both ways, zeros moving in."""
    padded = F.pad(images, (1, 1, 1, 1))
    count = len(images)
    rows = torch.randint(0, 3, (count, 1)) + torch.arange(8)
    columns = torch.randint(0, 3, (count, 1)) + torch.arange(8)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


@torch.inference_mode()
def _accuracy(net: nn.Module, digits: _Digits) -> float:
    net.eval()
    return float((net(digits.test).argmax(1) == digits.test_digits).float().mean())


@torch.inference_mode()
def _difference(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    return float((one(images) - other(images)).abs().max())


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]:16}"),
        TimeElapsedColumn(),
        console=console,
    )


def _show(done: DemoResult, console: Console) -> None:
    """The report, the three models side by side, and what was saved."""
    from rich import box
    from rich.table import Table

    console.print()
    print_report(done.result.report, console)
    report = done.result.report
    before, after = report.before, report.after
    table = Table(box=box.ROUNDED, title="What it came to", title_style="bold", title_justify="left")
    table.add_column("")
    for name in ("original", "after surgery", "after tuning"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("test accuracy", *(f"{value:.1%}" for value in done.accuracy), style="bold")
    table.add_row("MACs per image", f"{before.macs:,}", *[f"{after.macs:,}"] * 2)
    table.add_row("parameters", f"{before.params:,}", *[f"{after.params:,}"] * 2)
    table.add_row(f"ms for {_LATENCY_BATCH} images", *(f"{value:.2f}" for value in done.latency_ms))
    console.print(table)
    console.print(
        f"{done.latency_ms[0] / done.latency_ms[2]:.1f} times as fast, on one thread.\n", highlight=False
    )
    console.print(f"Saved in [bold]{done.directory}[/]:", highlight=False)
    for file in sorted(done.directory.iterdir()):
        console.print(f"  {file.name:20}{file.stat().st_size:>10,} bytes", markup=False, highlight=False)
    console.print(
        f"Loaded again with prunus.load: outputs differ by {done.difference:.0e} at most. "
        f"{done.seconds:.0f} s in all.",
        highlight=False,
    )
