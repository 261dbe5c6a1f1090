"""Time of analysis and surgery against depth and width: it must grow no faster than the model. And what a large one takes.

    python benchmarks/depth.py              # writes benchmarks/results/depth.md
    python benchmarks/depth.py --meta 7     # the analysis of a language model of 7 billion parameters, in numbers

A vision transformer and a residual network of 12 to 192 blocks, and of 1, 2, 4 and 8 times the width, on one thread,
without export: capture is done before. The ratio of each row to the one before is what counts. Language models (of
`transformers`, without weights: on the meta device) are analyzed in processes of their own, export included.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from typing import Any

import torch
from _record import ROOT, peak_bytes, table, write
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.capture import Captured, capture
from prunus.structure import find_structure
from prunus.structure.table import prunable_share
from prunus.surgery import cut, lift

DEPTHS = (12, 24, 48, 96, 192)
TIMES_WIDER = (1, 2, 4, 8)
ROUNDS = 4
SIZES: dict[str, dict[str, Any]] = {  # billions of parameters -> of a language model like Llama
    "1": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4},
    "7": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
}  # fmt: skip


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


def transformer(depth: int, wider: int) -> tuple[nn.Module, torch.Tensor]:
    width = 64 * wider
    blocks = (Block(width) for _ in range(depth))
    return nn.Sequential(*blocks, nn.Linear(width, 10)), torch.randn(2, 16, width)


def residual(depth: int, wider: int) -> tuple[nn.Module, torch.Tensor]:
    width = 32 * wider
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    net = nn.Sequential(nn.Conv2d(3, width, 3), *(Residual(width) for _ in range(depth)), *head)
    return net, torch.randn(2, 3, 16, 16)


KINDS = {"transformer": transformer, "residual network": residual}


def seconds(captured: Captured) -> float:
    """CPU seconds of analysis, plan and surgery, once."""
    gc.collect()
    start = time.process_time()
    structure = find_structure(captured)
    made = prunus.plan(structure, target=prunus.Target(channels=0.5))
    lift(cut(structure, structure.keep_labels(made.keep)))
    return time.process_time() - start


def growth(sizes: list[tuple[int, int]], of: int) -> tuple[list[list[str]], list[str]]:
    """Rows of a table over (depth, times wider), told by the `of`-th; and how many times as long the last takes."""
    captures = {}
    for size in sizes:
        for kind, make in KINDS.items():
            net, example = make(*size)
            captures[kind, size] = capture(net.eval(), example)
    times: dict[tuple[str, tuple[int, int]], list[float]] = {key: [] for key in captures}
    for _ in range(ROUNDS):  # taking turns: what disturbs the machine disturbs all sizes
        for key, captured in captures.items():
            times[key].append(seconds(captured))
    best = {key: min(values) for key, values in times.items()}
    rows = []
    for i, size in enumerate(sizes):
        row = [str(size[of])]
        for kind in KINDS:
            row.append(f"{best[kind, size]:.2f}")
            row.append(f"{best[kind, size] / best[kind, sizes[i - 1]]:.2f}" if i else "")
        rows.append(row)
    return rows, [f"{best[kind, sizes[-1]] / best[kind, sizes[0]]:.1f}" for kind in KINDS]


def analyzed(billions: str) -> dict[str, float]:
    """What the analysis of a large language model without weights takes, in this process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with torch.device("meta"):
        net = LlamaForCausalLM(LlamaConfig(vocab_size=32000, use_cache=False, **SIZES[billions])).eval()
        ids = torch.zeros(1, 16, dtype=torch.long)
    before, cpu, clock = peak_bytes(), time.process_time(), time.perf_counter()
    structure = prunus.analyze(net, ids)
    return {
        "params": sum(p.numel() for p in net.parameters()),
        "size_bytes": sum(p.numel() * p.element_size() for p in net.parameters()),
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - clock,
        "more_bytes": peak_bytes() - before,
        "peak_bytes": peak_bytes(),
        "share": prunable_share(structure),
    }


def language_models() -> list[list[str]]:
    """A row for each size, measured in a process of its own."""
    rows = []
    for billions in SIZES:
        command = [sys.executable, __file__, "--meta", billions]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found = json.loads(ran.stdout.splitlines()[-1])
        rows.append(
            [
                f"{found['params'] / 1e9:.1f} billion",
                f"{found['cpu_s']:.0f}",
                f"{found['more_bytes'] / 1e9:.2f} GB",
                f"{found['more_bytes'] / found['size_bytes']:.1%}",
                f"{found['peak_bytes'] / 1e9:.2f} GB",
                f"{found['share']:.1%}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--meta", choices=list(SIZES), help="only analyze a language model of so many billions"
    )
    arguments = parser.parse_args()
    if arguments.meta:
        print(json.dumps(analyzed(arguments.meta)))
        return
    torch.set_num_threads(1)
    deep, deeper = growth([(depth, 1) for depth in DEPTHS], 0)
    wide, wider = growth([(DEPTHS[0], times) for times in TIMES_WIDER], 1)
    head = [text for kind in KINDS for text in (f"{kind}, s", "against half")]
    large = ["parameters", "CPU seconds", "memory of the analysis", "of the weights' own", "most memory of the process", "removable"]  # fmt: skip
    text = f"""# Time against depth and width

{table(["blocks", *head], deep)}

CPU seconds of analysis, plan and surgery, without export, on one thread; the best of {ROUNDS} rounds in which all sizes took turns. Sixteen
times the depth takes {deeper[0]} and {deeper[1]} times as long.

{table(["times wider", *head], wide)}

{DEPTHS[0]} blocks; parameters grow with the square of the width, channels with the width. Eight times the width takes {wider[0]} and {wider[1]} times
as long.

## Large language models

{table(large, language_models())}

Of the shape of Llama, without weights (on the meta device), export included; 32-bit weights are what the memory is compared with, of which there
are none here. The memory of the process includes Python, torch and transformers."""
    print(write("depth", "python benchmarks/depth.py", text).read_text())


if __name__ == "__main__":
    main()
