"""Tables that no layer makes: their features leave with the layer that reads them, their positions never do."""

import torch
from torch import Tensor, nn

from tests.property.form import Do
from tests.structure.families import free, held, network, pruned


def test_features_of_a_table_that_a_layer_reads() -> None:
    """Relative positions (7, 6): looked at by a layer, and what it makes is added to what the data make."""

    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(self.one(x) + self.read(self.table).mean(0))

    parts = {
        "one": nn.Linear(3, 4),
        "read": nn.Linear(6, 4),
        "last": nn.Linear(4, 2),
        "table": torch.zeros(7, 6),
    }
    structure = pruned(network(forward, torch.randn(2, 3), **parts))
    assert sorted(free(structure).values()) == [4, 6]
    (table,) = [group for group in structure.prunable if group.size == 6]
    assert {(m.parameter, m.axis) for m in table.members} == {("table", 1), ("read.weight", 1)}


def test_positions_to_which_data_are_added() -> None:
    """The data have nothing to lose along the positions (5), which a layer sums over."""

    def forward(self: Do, x: Tensor) -> Tensor:
        x = self.one(x) + self.table
        return self.last(self.mix(x.transpose(1, 2)).transpose(1, 2))

    parts = {
        "one": nn.Linear(3, 4),
        "mix": nn.Linear(5, 6),
        "last": nn.Linear(4, 2),
        "table": torch.zeros(5, 1),
    }
    structure = pruned(network(forward, torch.randn(2, 5, 3), **parts))
    assert free(structure) == {"one": 4}
    assert "output" in held(structure)["mix"]
