"""Networks that the tests name on the command line."""

from typing import Any

import torch
from torch import Tensor, nn

IMAGE = (1, 3, 12, 12)


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


def build() -> nn.Module:
    return Net()


def build_with_inputs() -> tuple[nn.Module, Tensor]:
    return Net(), torch.randn(IMAGE)


class Words(nn.Module):
    """Takes indices and, by keyword, flags."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.embed(ids) * mask.unsqueeze(-1))))


class Zoo:
    net = Net()


def build_number() -> Any:
    return 3


def build_broken() -> nn.Module:
    raise ValueError("the data is not there")


not_callable = 3
