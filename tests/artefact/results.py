"""Small results to save, made of the stages themselves so that each test costs little."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.capture import Captured, architecture_hash, capture
from prunus.plan import GroupPlan, Plan
from prunus.structure import find_structure
from prunus.surgery.lift import lift
from prunus.surgery.slice import slice_graph

__all__ = ["BatchOfTwo", "ConvNet", "Named", "SmallResult", "Tied", "made"]


@dataclass
class Said:
    """A report, as far as saving is concerned."""

    text: str = json.dumps({"form": "graph"})

    def to_json(self) -> str:
        return self.text


@dataclass
class SmallResult:
    """What saving needs of a result."""

    model: nn.Module
    captured: Captured
    plan: Plan
    report: Said


def made(model: nn.Module, example: Any) -> SmallResult:
    """Keep half of every group."""
    structure = find_structure(capture(model, example))
    groups = [group for group in structure.prunable if not group.outer and group.rows is None]
    keep = {group.name: np.arange(max(1, group.size // 2)) for group in groups}
    assert keep, "there is nothing to remove"
    small = slice_graph(structure, structure.keep_labels(keep))
    entries = tuple(GroupPlan(g.name, g.size, tuple(keep[g.name].tolist())) for g in groups)
    plan = Plan(architecture_hash(structure.captured), entries)
    return SmallResult(lift(small), small, plan, Said())


class ConvNet(nn.Module):
    """Convolution, norm, dropout and a shortcut; a frozen layer, two buffers of which one is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("scale", torch.full((1,), 2.0))
        self.register_buffer("shift", torch.full((1,), 0.5), persistent=False)
        self.fc.weight.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(image)))
        x = x + self.relu(self.conv2(x))
        return self.fc(self.drop(x.mean((2, 3)) * self.scale + self.shift))


class Tied(nn.Module):
    """An embedding that is the output layer too; keywords in, a dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 12)
        self.down = nn.Linear(12, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.embed(ids)
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1)
        hidden = hidden + self.down(torch.relu(self.up(hidden)))
        return {"logits": self.head(hidden), "hidden": hidden}


class BatchOfTwo(nn.Module):
    """Its forward holds for one batch size only."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.relu(self.up(x)).unbind(0)
        return self.down(torch.stack([first, second]))


@dataclass
class Named:
    """Outputs in a class of the user's own."""

    logits: Tensor
    extra: tuple[Tensor, ...]
