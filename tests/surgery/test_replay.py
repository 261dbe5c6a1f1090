"""The second run on labels: what meets must fit, and weights follow the order in which labels arrive."""

import numpy as np
import pytest
import torch
from torch import nn

from prunus.capture import capture
from prunus.errors import SurgeryError
from prunus.structure import Structure, find_structure
from prunus.surgery import compare, cut, lift, replay, slice_graph


class Shuffled(nn.Module):
    """Channels in rows, transposed: rows that keep different channels come out in another order than they went in."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.make, self.side = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.norm.running_mean.uniform_(-1, 1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.read = nn.Conv2d(16, 5, 1)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.make(x)
        n, _, h, w = y.shape
        y = y.view(n, 4, 4, h, w).transpose(1, 2).reshape(n, 16, h, w)
        if self.residual:
            y = y + self.side(x)
        return self.read(self.depth(self.norm(y)))


def shuffled(residual: bool) -> tuple[Structure, np.ndarray]:
    torch.manual_seed(0)
    structure = find_structure(capture(Shuffled(residual).eval(), torch.randn(2, 3, 5, 5)))
    (group,) = structure.prunable
    assert group.rows is not None and group.rows.shape == (4, 4)
    chosen = [(0, 2), (1, 3), (0, 1), (2, 3)]  # different channels in every row
    keep = np.concatenate([np.sort(row[list(pair)]) for row, pair in zip(group.rows, chosen, strict=True)])
    return structure, structure.keep_labels({group.name: keep})


@pytest.fixture(autouse=True)
def rows_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows that are merged across keep different channels, which the solver otherwise avoids."""
    monkeypatch.setattr("prunus.structure.layout._is_row_major", lambda track: True)


@pytest.mark.parametrize("residual", [False, True])
def test_weights_are_gathered_in_the_order_in_which_labels_arrive(residual: bool) -> None:
    structure, keep = shuffled(residual)
    sliced = slice_graph(structure, keep)
    small = replay(structure, sliced, keep)
    moved = [name for name in small.tensors if not torch.equal(small.tensors[name], sliced.tensors[name])]
    assert moved, "this case needs a gather"
    checked = compare(structure.captured, structure.tracks, torch.from_numpy(keep), lift(small), small)
    assert checked.max_relative_error < 1e-12


def test_gathering_keeps_parameters_trainable_and_twice_is_once() -> None:
    structure, keep = shuffled(True)
    small = cut(structure, keep)
    for name, kind in small.kinds.items():
        assert isinstance(small.tensors[name], nn.Parameter) == (kind == "parameter")
    assert replay(structure, slice_graph(structure, keep), keep).tensors.keys() == small.tensors.keys()


def test_a_wrong_shape_is_found_before_any_number_is_computed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 5)).eval()
    structure = find_structure(capture(net, torch.randn(2, 3, 2, 2)))
    (group,) = structure.prunable
    keep = structure.keep_labels({group.name: [0, 1, 2, 5]})
    small = slice_graph(structure, keep)
    assert replay(structure, small, keep) is small
    flatten = next(n for n in small.graph.nodes if "flatten" in str(n.target))
    flatten.meta["val"] = torch.empty(2, 12, device="meta")
    with pytest.raises(SurgeryError, match="labels that are left make"):
        replay(structure, small, keep)
