"""Verification asks for the original's outputs: their shapes, not only what is kept of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.structure.labels import Labels


class Two(nn.Module):
    """Two outputs, one of which feeds the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x).relu()
        return {"hidden": hidden, "out": self.second(hidden)}


NETWORKS: dict[str, Any] = {
    "layers": lambda: (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6)), torch.randn(3, 5)),
    "maps": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)),
        torch.randn(2, 3, 9, 9),
    ),
    "dictionary": lambda: (Two(), torch.randn(3, 5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_that_have_lost_channels_are_no_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    monkeypatch.setattr(Labels, "hold", lambda *_, **__: None)
    with pytest.raises(prunus.VerificationError, match="the original's is"):
        prunus.compress(model.eval(), x, target=prunus.Target(channels=0.5))


@pytest.mark.parametrize("name", ["layers", "maps"])
def test_outputs_keep_their_shapes(name: str) -> None:
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    model.eval()
    result = prunus.compress(model, x, target=prunus.Target(channels=0.5))
    before, after = (torch.utils._pytree.tree_flatten(m(x)) for m in (model, result.model))
    assert before[1] == after[1] and [t.shape for t in before[0]] == [t.shape for t in after[0]]
