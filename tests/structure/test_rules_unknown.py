"""Operators of the user's own: what touches them is held, and they are named; the rest is pruned."""

import torch
from torch import Tensor, nn

import prunus
from tests.property.form import Do
from tests.structure.families import conv, free, held, image, network, pruned


@torch.library.custom_op("prunus_tests::swirl", mutates_args=())
def swirl(x: Tensor, amount: float) -> Tensor:
    """Any function of all channels."""
    return x.roll(1, 1) * amount


@swirl.register_fake
def _(x: Tensor, amount: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("prunus_tests::halves", mutates_args=())
def halves(x: Tensor) -> list[Tensor]:
    """A list of tensors."""
    return [part.clone() for part in x.chunk(2, 1)]


@halves.register_fake
def _(x: Tensor) -> list[Tensor]:
    return [torch.empty_like(part) for part in x.chunk(2, 1)]


NAME = "prunus_tests.swirl.default"


def test_what_touches_it_is_held_and_the_rest_is_pruned() -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        x = swirl(self.second(self.first(x).relu()), 0.5)
        return self.last(self.third(x).relu())

    parts = {"first": conv(3, 8), "second": conv(8, 6), "third": conv(6, 4), "last": conv(4, 2)}
    structure = pruned(network(forward, image(), **parts), range(2))
    assert free(structure) == {"first": 8, "third": 4}
    assert held(structure)["second"].startswith(f"meets the operator {NAME}, for which prunus has no rule")
    assert list(structure.unknown.values()) == [NAME]
    assert f"No rule for {NAME}" in str(structure)


def test_the_report_names_it() -> None:
    model = nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 6), Do("own", lambda self, x: swirl(x, 2.0)), conv(6, 2)
    )
    result = prunus.compress(model.eval(), image(), target=prunus.Target(channels=0.8))
    assert result.model[0].out_channels < 8  # type: ignore[index]
    assert result.model[2].out_channels == 6  # type: ignore[index]
    assert NAME in str(result.report.to_dict()["unknown_operators"])


def test_several_results() -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        one, two = halves(self.second(self.first(x).relu()))
        return self.last(one * two)

    parts = {"first": conv(3, 8), "second": conv(8, 6), "last": conv(3, 2)}
    structure = pruned(network(forward, image(), **parts), range(2))
    assert free(structure) == {"first": 8}
    assert "prunus_tests.halves" in held(structure)["second"]


def test_of_what_has_no_channels() -> None:
    """Nothing to hold, so nothing to say."""

    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(self.first(swirl(x, 3.0)).relu())

    structure = pruned(network(forward, image(), first=conv(3, 8), last=conv(8, 2)), range(2))
    assert free(structure) == {"first": 8}
    assert not structure.unknown
