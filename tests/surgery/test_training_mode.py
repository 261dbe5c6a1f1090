"""A result is in the mode in which the original was, as class and as graph, and trains."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus


class Folded(nn.Module):
    """Written numbers in the forward keep this class from coming back."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.1))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().view(-1, 4, 4).sum(1))


FORMS: dict[str, Any] = {
    "class": lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)),
    "graph": Folded,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_the_result_is_in_the_original_s_mode(form: str, training: bool) -> None:
    torch.manual_seed(0)
    model = FORMS[form]().train(training)
    result = prunus.compress(model, torch.randn(4, 8), target=prunus.Target(channels=0.5))
    assert result.report.form == form
    assert {module.training for module in result.model.modules()} == {training}


def test_layers_that_were_frozen_stay_so() -> None:
    torch.manual_seed(0)
    model = Folded().train()
    model.body[1].eval()
    result = prunus.compress(model, torch.randn(4, 8), target=prunus.Target(channels=0.5))
    assert result.model.training and not result.model.get_submodule("body.1").training
    assert result.model.get_submodule("body.2").training
