"""Small networks in which channels are coupled in different ways, with inputs that fit them."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two layers make the channels that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 9, 3), nn.Conv2d(3, 10, 3)
        self.joined, self.head = nn.Conv2d(19, 11, 3), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x).relu(), self.right(x).sigmoid()], 1)
        return self.head(self.joined(both).relu().mean((2, 3)))


class PackedAttention(nn.Module):
    """Queries, keys and values from one layer."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.inner = nn.Linear(6, width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return self.head((x + self.proj(y)).mean(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x + self.down(F.gelu(self.up(x)))).mean(1)


class Language(nn.Module):
    """The table of the embedding is the weight of the last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(20, 12), nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 18), nn.Linear(18, 12)
        self.last = nn.Linear(12, 20, bias=False)
        self.last.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return self.last(x + self.down(F.gelu(self.up(self.norm(x)))))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 2, 1)
    )


def separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(),
        nn.Conv2d(10, 10, 3, groups=10, bias=False), nn.BatchNorm2d(10), nn.ReLU6(),
        nn.Conv2d(10, 14, 1), nn.ReLU(), nn.Conv2d(14, 2, 1),
    )  # fmt: skip


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 9, 3), nn.ReLU(), nn.ConvTranspose2d(9, 8, 2, stride=2), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )


def shuffled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(8, 9, 3), nn.ReLU(), nn.Conv2d(9, 2, 1)
    )


def layers(*widths: int) -> nn.Module:
    """Linear layers with rectifiers between."""
    made: list[nn.Module] = []
    for a, b in pairwise(widths):
        made += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*made[:-1])


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "residual": (Residual, image),
    "concatenated": (Concatenated, image),
    "grouped": (grouped, image),
    "separable": (separable, image),
    "transposed": (transposed, image),
    "shuffled": (shuffled, image),
    "packed attention": (PackedAttention, lambda: torch.randn(2, 5, 6)),
    "attention": (Attention, lambda: torch.randn(2, 5, 16)),
    "language": (Language, lambda: torch.randint(0, 20, (2, 7))),
    "linear": (lambda: layers(6, 16, 9, 3), lambda: torch.randn(4, 6)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode whose batch norms have seen something, and its input."""
    make, example = NETS[name]
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
            nn.init.normal_(module.bias)  # pyright: ignore[reportArgumentType]
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2)
    return model, example()
