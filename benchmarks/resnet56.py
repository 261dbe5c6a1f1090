"""ResNet-56 on CIFAR-10, half of its multiply-accumulates: accuracy before, after surgery, after three epochs.

python benchmarks/resnet56.py            # an hour or less on two cores; writes benchmarks/results/resnet56.md
python benchmarks/resnet56.py --smoke    # a minute; writes nothing
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from _record import data, table, write
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.report.latency import measure_many

KEPT_MACS = 0.5
EPOCHS, BATCH, RATE, DECAY = 3, 128, 0.05, 5e-4


def augmented(images: Tensor) -> Tensor:
    """Random crops of images padded by four pixels, half of them mirrored; (N, 3, 32, 32) uint8."""
    count, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    rows = torch.randint(0, 9, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 9, (count, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def tune(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    normalize,
    rate: float = RATE,
    loss_of=lambda outputs, inputs, labels: F.cross_entropy(outputs, labels),
    batch: int = BATCH,
    decay: float = DECAY,
) -> None:
    """Plain stochastic gradient descent with momentum and a cosine schedule."""
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=decay, nesterov=True)
    steps = epochs * math.ceil(len(images) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        net.train()
        began, total = time.perf_counter(), 0.0
        for chosen in torch.randperm(len(images)).split(batch):
            inputs = normalize(augmented(images[chosen]))
            loss = loss_of(net(inputs), inputs, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        took = time.perf_counter() - began
        print(f"epoch {epoch + 1}: loss {total / len(images):.3f}, {took:.0f} s", flush=True)
    net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a few images, nothing written")
    smoke = parser.parse_args().smoke
    load = data()
    torch.manual_seed(0)
    arrays = load.cifar10()
    if smoke:
        arrays = {name: array[: 1280 if "train" in name else 1000] for name, array in arrays.items()}
    net = load.resnet_cifar10(56)
    example = load.normalize(arrays["x_test"][:64])

    def accuracy(model: nn.Module) -> float:
        return load.accuracy(model, arrays["x_test"], arrays["y_test"])

    before = accuracy(net)
    began = time.perf_counter()
    result = prunus.compress(net, example, method="l2", target=prunus.Target(macs=KEPT_MACS))
    took = time.perf_counter() - began
    surgery = accuracy(result.model)
    print(f"{before:.4f} -> {surgery:.4f}, {took:.1f} s", flush=True)
    tune(result.model, arrays["x_train"], arrays["y_train"], 1 if smoke else EPOCHS, load.normalize)
    tuned = accuracy(result.model)
    times = measure_many({"before": net, "after": result.model}, example)
    report = result.report
    one, two = report.before, report.after
    rows = [
        [
            "original",
            f"{one.macs / 1e6:.1f} M",
            f"{one.params:,}",
            f"{times['before']:.0f} ms",
            f"{before:.2%}",
        ],
        [
            "after surgery",
            f"{two.macs / 1e6:.1f} M",
            f"{two.params:,}",
            f"{times['after']:.0f} ms",
            f"{surgery:.2%}",
        ],
        [f"after {EPOCHS} epochs of tuning", "", "", "", f"{tuned:.2%}"],
    ]
    verified = report.verification or {}
    text = f"""# ResNet-56 on CIFAR-10, {KEPT_MACS:.0%} of the MACs

{table(["ResNet-56 on CIFAR-10", "MACs", "parameters", "64 images, 1 thread", "test accuracy"], rows)}

Channels by `l2`, `Target(macs={KEPT_MACS})`; compressed in {took:.1f} s, verification included (error
{verified.get("max_relative_error", float("nan")):.0e} of the outputs' scale). The model came back as
{"its own class" if report.form == "class" else "a graph module"}. Tuning: SGD with momentum, learning rate {RATE} falling to 0,
weight decay {DECAY}, batches of {BATCH}, random crops and mirror images. Accuracy is on all 10,000 test images, which were used for
nothing else."""
    if smoke:
        print(text)
    else:
        print(write("resnet56", "python benchmarks/resnet56.py", text).read_text())


if __name__ == "__main__":
    main()
