"""Time of analysis and surgery against depth: it must grow no faster than the graph.

    python benchmarks/depth.py        # writes benchmarks/results/depth.md

A vision transformer and a residual network of 12, 24, 48 and 96 blocks, on one thread, without export: capture is done
before. The ratio of each row to the one before is what counts.
"""

from __future__ import annotations

import gc
import time

import torch
from _record import table, write
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.capture import Captured, capture
from prunus.structure import find_structure
from prunus.surgery import cut, lift

DEPTHS = (12, 24, 48, 96)
ROUNDS = 7


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


def seconds(captured: Captured) -> float:
    """CPU seconds of analysis, plan and surgery, once."""
    gc.collect()
    start = time.process_time()
    structure = find_structure(captured)
    made = prunus.plan(structure, target=prunus.Target(channels=0.5))
    lift(cut(structure, structure.keep_labels(made.keep)))
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    captures = {}
    for depth in DEPTHS:
        for kind, make in (("transformer", transformer), ("residual", residual)):
            net, example = make(depth)
            captures[kind, depth] = capture(net.eval(), example)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in captures}
    for _ in range(ROUNDS):  # taking turns: what disturbs the machine disturbs all depths
        for key, captured in captures.items():
            times[key].append(seconds(captured))
    best = {key: min(values) for key, values in times.items()}
    rows = []
    for i, depth in enumerate(DEPTHS):
        row = [str(depth)]
        for kind in ("transformer", "residual"):
            row.append(f"{best[kind, depth]:.2f}")
            row.append(f"{best[kind, depth] / best[kind, DEPTHS[i - 1]]:.2f}" if i else "")
        rows.append(row)
    grown = [f"{best[k, DEPTHS[-1]] / best[k, DEPTHS[0]]:.1f}" for k in ("transformer", "residual")]
    head = [
        "blocks",
        "transformer, s",
        "against half the depth",
        "residual network, s",
        "against half the depth",
    ]
    text = f"""# Time against depth

{table(head, rows)}

CPU seconds of analysis, plan and surgery, without export, on one thread; the best of {ROUNDS} rounds in which all depths took turns. Eight
times the depth takes {grown[0]} and {grown[1]} times as long."""
    print(write("depth", "python benchmarks/depth.py", text).read_text())


if __name__ == "__main__":
    main()
