"""Parts that are empty, as the rest of a rotary embedding that covers whole heads is."""

import torch
from torch import Tensor, nn

import prunus


class Rest(nn.Module):
    """Turns the first channels, and passes the rest, of which there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = 8
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        first, rest = y[..., : self.turned], y[..., self.turned :]
        return self.two(torch.cat([first.sigmoid(), rest], -1))


def test_an_empty_part_is_no_obstacle() -> None:
    torch.manual_seed(0)
    result = prunus.compress(Rest().eval(), torch.randn(3, 4), target=prunus.Target(channels=0.5))
    assert result.report.after.params == 5 * 4 + 2 * 5
    assert (result.report.verification or {})["max_relative_error"] < 1e-9
