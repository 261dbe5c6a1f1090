"""Recurrent layers: hidden units of each layer and direction leave, as many of each."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.surgery.count import count_macs
from tests.property.chain import prune
from tests.property.choices import Seeded
from tests.property.form import Do
from tests.structure.families import free, held, network, pruned, structure_of

KINDS: dict[str, Any] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


def sequence(self: Do, x: Tensor) -> Tensor:
    return self.last(self.layer(self.first(x))[0])


def around(layer: nn.Module, width: int, function: Any = sequence) -> Any:
    parts = {"first": nn.Linear(3, 6), "layer": layer, "last": nn.Linear(width, 2)}
    return network(function, torch.randn(2, 5, 3), **parts)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_one_layer(kind: str, bias: bool) -> None:
    """Hidden units across all gates, and the features of the input."""
    structure = pruned(around(KINDS[kind](6, 8, bias=bias), 8), range(2))
    assert sorted(free(structure).values()) == [6, 8]
    assert list(held(structure)) == ["last"]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_layers_and_directions(kind: str, batch_first: bool) -> None:
    """Each has units of its own, and all keep equally many."""
    layer = KINDS[kind](6, 4, 2, bidirectional=True, batch_first=batch_first)
    structure = pruned(around(layer, 8), range(2))
    assert sorted(free(structure).values()) == [4, 4, 4, 4, 6]
    tied = [group for group in structure.prunable if group.size == 4]
    assert all(len(group.tied) == 3 for group in tied)


def test_layers_keep_different_units() -> None:
    made = around(nn.LSTM(6, 4, 2), 4)
    result = prune(made, Seeded(3))
    kept = [list(units) for name, units in result.kept.items() if result.structure.group(name).tied]
    assert len(kept) == 2 and kept[0] != kept[1]
    width = len(kept[0])
    assert width < 4
    assert result.module.get_parameter("layer.weight_ih_l1").shape == (4 * width, width)


def test_the_last_state() -> None:
    """What a classifier of sequences reads: the state of the last layer in both directions."""

    def forward(self: Do, x: Tensor) -> Tensor:
        _, (h, c) = self.layer(self.first(x))
        return self.last(torch.cat([h[-2], h[-1], c[-1]], -1))

    structure = pruned(around(nn.LSTM(6, 4, bidirectional=True, batch_first=True), 12, forward))
    assert sorted(free(structure).values()) == [4, 4, 6]


def test_a_state_that_is_learned() -> None:
    """It has one axis for all layers: a unit leaves all of them."""

    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x), self.start.expand(-1, 5, -1).contiguous())[0])

    parts = {"first": nn.Linear(3, 6), "layer": nn.GRU(6, 4, 2), "last": nn.Linear(4, 2)}
    made = network(forward, torch.randn(2, 5, 3), **parts, start=torch.randn(2, 1, 4))
    assert sorted(free(pruned(made)).values()) == [4, 6]


def test_an_encoder_hands_its_state_to_a_decoder() -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        return self.last(self.decoder(x.flip(1), state)[0])

    parts = {"encoder": nn.LSTM(3, 6, batch_first=True), "decoder": nn.LSTM(3, 6, batch_first=True)}
    made = network(forward, torch.randn(2, 5, 3), **parts, last=nn.Linear(6, 2))
    assert list(free(pruned(made)).values()) == [6]


def test_one_layer_after_the_other() -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        y = self.two(self.one(x)[0])[0]
        return self.last(y + self.skip(x))

    parts = {"one": nn.GRU(3, 6), "two": nn.LSTM(6, 4), "skip": nn.Linear(3, 4), "last": nn.Linear(4, 2)}
    made = network(forward, torch.randn(5, 2, 3), **parts)
    assert sorted(free(pruned(made)).values()) == [4, 6]


def test_projections_are_held() -> None:
    structure = pruned(around(nn.LSTM(6, 8, proj_size=4), 4), range(1))
    assert not structure.prunable
    assert "recurrent layer with projections" in held(structure)["first"]


def test_one_hidden_unit_stays() -> None:
    structure = structure_of(around(nn.GRU(6, 1), 1))
    assert "first" not in free(structure) or free(structure)["first"] == 6
    assert all("layer" not in group.producers for group in structure.prunable)


def test_operations_are_predicted() -> None:
    made = around(nn.LSTM(6, 4, 2, bidirectional=True), 8)
    result = prune(made, Seeded(2))
    costs = prunus.allocation.CostModel(result.structure)
    assert costs.original.macs == count_macs(result.captured)


def test_the_class_of_the_model() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 6), nn.Linear(8, 2)
            self.layer = nn.LSTM(6, 4, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(x))[0])

    model = Tagger().eval()
    result = prunus.compress(model, torch.randint(9, (2, 5)), target=prunus.Target(channels=0.5))
    assert result.report.verification["passed"]
    assert result.model.get_parameter("layer.weight_hh_l0").shape == (8, 2)


CELLS: dict[str, Any] = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "tanh": nn.RNNCell,
    "relu": lambda *sizes: nn.RNNCell(*sizes, nonlinearity="relu"),
}


@pytest.mark.parametrize("kind", CELLS)
def test_step_by_step(kind: str) -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        state = None
        for i in range(2):
            state = self.cell(self.first(x[:, i]), state)
        return self.last(state[0] if isinstance(state, tuple) else state)

    parts = {"first": nn.Linear(3, 6), "cell": CELLS[kind](6, 4), "last": nn.Linear(4, 2)}
    made = network(forward, torch.randn(2, 2, 3), **parts)
    structure = pruned(made, range(2))
    assert sorted(free(structure).values()) == [4, 6]
    assert prunus.allocation.CostModel(structure).original.macs == count_macs(structure.captured)
