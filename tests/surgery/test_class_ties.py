"""With `keep_class`, numbers that the class has only once stay one number, and the class comes back at any target."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus


class Attention(nn.Module):
    """One attribute for the width of queries, keys and values; the values' weights are larger, so they would stay wider."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 4, 8
        self.embed, self.head = nn.Linear(5, 32), nn.Linear(32, 3)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head(x + self.out(y.reshape(*x.shape[:-1], -1)))


class Halves(nn.Module):
    """Splits into equal parts, of which each goes through a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.stem, self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), self.width, 1)
        return torch.cat([self.one(a), self.two(b)], 1)


def uneven(model: nn.Module, larger: str) -> nn.Module:
    """Weights with which a ranking keeps more of one part than of the other."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1, 1)
    with torch.no_grad():
        weight = model.get_parameter(larger)
        half = len(weight) // 2
        weight[:half] *= torch.linspace(1, 9, half).view(-1, *(1,) * (weight.dim() - 1))
    return model.eval()


CASES = [
    (Attention, "v.weight", torch.randn(2, 6, 5)),
    (Halves, "stem.weight", torch.randn(2, 3, 4, 4)),
]


@pytest.mark.parametrize(("make", "larger", "x"), CASES, ids=["attention", "halves"])
def test_the_class_comes_back_only_with_ties(make: type[nn.Module], larger: str, x: Tensor) -> None:
    model = uneven(make(), larger)
    target = prunus.Target(macs=0.6)
    free = prunus.compress(model, x, target=target, keep_class=False)
    assert free.report.form == "graph", "this case needs ties"
    tied = prunus.compress(model, x, target=target, keep_class=True)
    assert tied.report.form == "class", tied.report.form_reason
    assert type(tied.model) is make
    assert tied.report.after.macs <= 0.6 * tied.report.before.macs


def test_ties_are_constraints_that_plans_are_checked_against() -> None:
    x = torch.randn(2, 6, 5)
    structure = prunus.analyze(uneven(Attention(), "v.weight"), x, keep_class=True)
    made = {group.producers: group for group in structure.prunable if group.rows is not None}
    queries, values = made["q", "k"], made["v",]
    assert values.name in queries.tied and queries.name in values.tied
    with pytest.raises(prunus.PrunusError, match="they must agree"):
        prunus.plan(structure, method=prunus.ByIndex(keep={values.name: [0, 8, 16, 24]}))


class Rotary(Attention):
    """Queries and keys lose pairs of channels, values single ones: one attribute cannot follow both."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = (z.sin() + torch.cat([-z.chunk(2, -1)[1], z.chunk(2, -1)[0]], -1).cos() for z in (q, k))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head(x + self.out(y.reshape(*x.shape[:-1], -1)))


def test_what_no_tie_can_say_is_held_with_the_attribute() -> None:
    structure = prunus.analyze(uneven(Rotary(), "v.weight"), torch.randn(2, 6, 5), keep_class=True)
    held = {group.producers: group.held for group in structure.groups if group.held}
    assert held["v",] == "must keep the size that head_dim states"
    assert prunus.analyze(Rotary().eval(), torch.randn(2, 6, 5)).group("v").held is None
