"""Time of analysis and surgery against depth: it must grow no faster than the graph.

    python benchmarks/depth.py        # writes benchmarks/results/depth.md

A vision transformer and a residual network of 12, 24, 48 and 96 blocks, on one thread, without export: capture is done
before. The ratio of each row to the one before is what counts.
"""

from __future__ import annotations

import platform
import time
from datetime import date
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.capture import capture
from prunus.structure import find_structure
from prunus.surgery import cut, lift

DEPTHS = (12, 24, 48, 96)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, 4), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def transformer(depth: int) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(*(Block(64) for _ in range(depth)), nn.Linear(64, 10)), torch.randn(2, 16, 64)


def residual(depth: int) -> tuple[nn.Module, torch.Tensor]:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(nn.Conv2d(3, 32, 3), *(Residual(32) for _ in range(depth)), *head), torch.randn(
        2, 3, 16, 16
    )


def seconds(net: nn.Module, example: torch.Tensor) -> float:
    captured = capture(net.eval(), example)
    times = []
    for _ in range(3):
        start = time.process_time()
        structure = find_structure(captured)
        made = prunus.plan(structure, target=prunus.Target(channels=0.5))
        lift(cut(structure, structure.keep_labels(made.keep)))
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# Time against depth",
        "",
        f"`python benchmarks/depth.py`, {date.today()}, torch {torch.__version__}, Python {platform.python_version()}; one thread, CPU seconds for "
        "analysis, plan and surgery (best of three).",
        "",
        "| blocks | transformer s | against half the depth | residual network s | against half the depth |",
        "|---|---|---|---|---|",
    ]
    last: tuple[float, float] | None = None
    seconds(*transformer(2))  # one-time imports
    for depth in DEPTHS:
        now = seconds(*transformer(depth)), seconds(*residual(depth))
        ratios = [f"{a / b:.2f}" for a, b in zip(now, last, strict=True)] if last else ["", ""]
        lines.append(f"| {depth} | {now[0]:.2f} | {ratios[0]} | {now[1]:.2f} | {ratios[1]} |")
        print(lines[-1], flush=True)
        last = now
    (Path(__file__).parent / "results" / "depth.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
