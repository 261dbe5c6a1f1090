"""Padding of what is laid out in rows: rows leave with what was padded to them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from tests.property.form import Do, randomize

# what is done to (N, 12), the width of the result, and how many units can leave
CASES: list[tuple[Callable[[Tensor], Tensor], int, set[int]]] = [
    (lambda v: F.pad(v.view(-1, 3, 2, 2), (1, 1, 1, 1)).mean((2, 3)), 3, {3}),
    (lambda v: F.pad(v.view(-1, 3, 4), (1, 1)).flatten(1), 18, {3}),
    (lambda v: F.pad(v.view(-1, 3, 4).relu(), (0, 2)).sum(1), 6, {3}),
    (lambda v: F.pad(v.view(-1, 3, 4), (-1, 2)).amax(2), 3, {3}),
    (lambda v: F.pad(v.view(-1, 3, 4), (0, 0, 1, 1)).flatten(1), 20, set()),
]


@pytest.mark.parametrize(("pad", "width", "units"), CASES)
def test_rows_leave_with_what_was_padded(
    pad: Callable[[Tensor], Tensor], width: int, units: set[int]
) -> None:
    parts = {"first": nn.Linear(5, 12), "last": nn.Linear(width, 3)}
    model = randomize(Do("padded", lambda self, x: self.last(pad(self.first(x))), **parts), 1).eval()
    structure = prunus.analyze(model, torch.randn(3, 5))
    assert {group.size for group in structure.prunable} == units
    for kept in ([0], [0, 2]) if units else ():
        plan = prunus.plan(structure, method=prunus.ByIndex(keep={structure.prunable[0].name: kept}))
        result = prunus.apply(model, plan, example_inputs=torch.randn(3, 5))
        assert result.report.after.params < result.report.before.params
