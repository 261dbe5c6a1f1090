"""A layer that packs queries, keys and values, whose parts keep different shapes."""

import pytest
import torch
from torch import Tensor, nn

import prunus


class Talking(nn.Module):
    """Attention whose heads are mixed before the values are summed up: heads of values leave without those of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 12), nn.Linear(4, 3)
        self.mixed = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.mixed((q @ k.transpose(-2, -1)).softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("head", [0, 1])
def test_as_many_units_in_fewer_heads(head: int) -> None:
    model, x = Talking().eval(), torch.randn(2, 5, 6)
    structure = prunus.analyze(model, x)
    matched = next(g for g in structure.groups if g.node == "matmul" and g.rows is not None)
    heads = next(
        g for g in structure.groups if g.outer and any(m.parameter == "out.weight" for m in g.members)
    )
    keep = {matched.name: [0, 2], heads.name: [head]}
    # one of two queries in both heads, and both values of one head
    result = prunus.compress(model, x, method=prunus.ByIndex(keep=keep))
    rows = [0, 2, 4, 6, 8 + 2 * head, 9 + 2 * head]
    with torch.no_grad():
        dense = Talking().eval()
        dense.load_state_dict(model.state_dict())
        gone = [i for i in range(12) if i not in rows]
        dense.qkv.weight[gone] = 0
        dense.qkv.bias[gone] = 0
        dense.out.weight[:, [2 * (1 - head), 2 * (1 - head) + 1]] = 0
        torch.testing.assert_close(result.model(x), dense(x))
    assert result.model.get_submodule("qkv").weight.shape == (6, 6)
