"""Operators that torch makes of others, and tables that are made whole: channels leave as they would without them."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.capture import capture
from prunus.structure.composite import with_parts
from tests.property.form import Do
from tests.structure.families import free, network, pruned
from tests.structure.sweep import outcome, side_by_side

SQUARE = torch.linspace(-1, 1, 64).view(8, 8)
POINTS = torch.linspace(-1, 2, 40).view(5, 8)

MADE_OF_OTHERS: Mapping[str, Any] = {
    "tensordot": lambda v: torch.tensordot(v, SQUARE, dims=([1], [0])),
    "inner": lambda v: torch.inner(v, POINTS),
    "outer": lambda v: torch.outer(v[0], v[1]).sum(0, True),
    "ger": lambda v: torch.ger(v[0], POINTS[0]).sum(0, True),
    "addr": lambda v: torch.addr(v[2], v[0], v[1]).sum(0, True),
    "kron": lambda v: torch.kron(v, torch.ones(1, 2)),
    "vecdot": lambda v: torch.linalg.vecdot(v, POINTS[0])[:, None],
    "broadcast tensors": lambda v: torch.broadcast_tensors(v, v[:1])[1] * v,
    "cosine similarity": lambda v: F.cosine_similarity(v[:, None], POINTS[None], dim=-1),
    "pairwise distance": lambda v: F.pairwise_distance(v[:, None], POINTS[None]),
    "renormed rows": lambda v: torch.renorm(v, 2, 0, 1.0),
    "trapezoid": lambda v: torch.trapezoid(v, dim=0)[None],
    "ellipsis": lambda v: torch.einsum("...i,ji->...j", v, POINTS),
    "implicit result": lambda v: torch.einsum("bi,ji", v, POINTS),
    "diagonal": lambda v: torch.einsum("bii->bi", v[:, :, None] * v[:, None]),
}
TABLES: Mapping[str, Any] = {
    "identity": lambda v: v @ (torch.eye(8) + 0.1),
    "part of an identity": lambda v: v @ torch.eye(8, 6),
    "window": lambda v: v * torch.hann_window(8),
    "ramp": lambda v: v * torch.linspace(0, 1, 8),
    "one hot": lambda v: v @ F.one_hot(torch.arange(8) % 3, 3).float(),
    "constant": lambda v: v * torch.full((8,), 2.0),
}


@pytest.mark.parametrize("functions", [MADE_OF_OTHERS, TABLES], ids=["composites", "tables"])
def test_all_of_them_lose_channels(functions: Mapping[str, Any]) -> None:
    made = side_by_side(functions, torch.linspace(-2, 2, 15).view(3, 5), lambda: nn.Linear(5, 8))
    assert outcome(pruned(made, range(2)), functions) == dict.fromkeys(functions, "")


def test_a_matrix_that_is_added_to_the_identity_leaves_with_its_rows_and_columns() -> None:
    """A predicted matrix, as in networks for point clouds."""

    def forward(self: Do, x: Tensor) -> Tensor:
        x = self.first(x)
        matrix = self.predict(x.relu().amax(1)).view(-1, 8, 8) + torch.eye(8)
        return self.last((x @ matrix).amax(1))

    parts = {"first": nn.Linear(3, 8), "predict": nn.Linear(8, 64), "last": nn.Linear(8, 2)}
    sizes = free(pruned(network(forward, torch.randn(2, 5, 3), **parts)))
    assert sorted(sizes.values()) == [8, 8]


def test_a_graph_without_such_operators_is_left_as_it_is() -> None:
    plain = capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4))
    assert with_parts(plain) is plain


def test_parts_are_at_the_line_of_the_call() -> None:
    made = network(
        lambda self, x: torch.outer(self.first(x)[0], x[0]), torch.randn(2, 4), first=nn.Linear(4, 3)
    )
    captured = capture(made.model, made.inputs)
    (call,) = (node for node in captured.graph.nodes if "outer" in node.name)
    graph = with_parts(captured).graph
    parts = [node for node in graph.nodes if node.meta.get("stack_trace") == call.meta["stack_trace"]]
    assert len(parts) > 1
    assert not [node for node in graph.nodes if "outer" in node.name]
    assert call in captured.graph.nodes  # what was captured stays
