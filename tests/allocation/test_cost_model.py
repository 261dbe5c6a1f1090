"""Predicted costs equal what is counted after surgery, exactly, on networks with every kind of coupling."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.allocation import CostModel
from prunus.surgery.count import count_macs, count_params, count_size_bytes
from tests.allocation.nets import NETS, network


def flops_of(model: nn.Module, x: torch.Tensor) -> int:
    """Floating point operations of one sample, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // len(x)


def bytes_of(model: nn.Module) -> int:
    tensors = {t.data_ptr(): t for t in model.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize("name", NETS)
def test_the_original_costs_what_is_counted(name: str) -> None:
    model, x = network(name)
    structure = prunus.analyze(model, x)
    cost = CostModel(structure).original
    assert cost.params == count_params(model) == sum(p.numel() for p in model.parameters())
    assert cost.size_bytes == count_size_bytes(model) == bytes_of(model)
    assert cost.macs == count_macs(structure.captured)
    assert 2 * cost.macs == flops_of(model, x)


@pytest.mark.parametrize("name", NETS)
def test_what_is_predicted_is_counted_afterwards(name: str) -> None:
    model, x = network(name)
    structure = prunus.analyze(model, x)
    costs = CostModel(structure)
    seen = set()
    for seed, target in enumerate(
        [prunus.Target(channels=0.3), prunus.Target(channels=0.7), prunus.Target(macs=0.85)]
    ):
        made = prunus.plan(structure, method=prunus.Random(seed), target=target)
        assert made.groups, "nothing is removed, so nothing is tested"
        cost = costs(structure.keep_labels(made.keep))
        result = prunus.apply(model, made, example_inputs=x)
        small = result.model.eval()
        assert cost.params == count_params(small) == sum(p.numel() for p in small.parameters())
        assert cost.size_bytes == count_size_bytes(small) == bytes_of(small)
        assert cost.macs == count_macs(result.captured)
        assert 2 * cost.macs == flops_of(small, x)
        after = result.report.after
        assert (after.params, after.macs, after.size_bytes) == (cost.params, cost.macs, cost.size_bytes)
        assert cost.params < costs.original.params and cost.macs < costs.original.macs
        seen.add(cost)
    assert len(seen) > 1


def test_outer_units_cost_what_is_counted() -> None:
    model, x = network("packed attention")
    structure = prunus.analyze(model, x)
    made = prunus.plan(structure, method=prunus.ByIndex(remove={"qkv[rows]": [1], "add": [0, 5]}))
    cost = CostModel(structure)(structure.keep_labels(made.keep))
    result = prunus.apply(model, made)
    assert cost.params == sum(p.numel() for p in result.model.parameters())
    assert cost.macs == count_macs(result.captured)
    # 14 wide, three heads of four
    assert cost.params == (6 * 14 + 14) + (14 * 36 + 36) + (12 * 14 + 14) + (14 * 3 + 3)


def test_a_batch_that_is_fixed_is_counted_in_full() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.reshape(4, 6))

    structure = prunus.analyze(Fixed(), torch.randn(4, 6))
    assert structure.captured.batch is None
    assert CostModel(structure).original.macs == 4 * 6 * 10


def test_buffers_that_are_not_saved_cost_no_bytes() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 10)
            self.register_buffer("mask", torch.ones(10, dtype=torch.float64), persistent=False)
            self.register_buffer("scale", torch.ones(10, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * self.mask.float() * self.scale.float()

    cost = CostModel(prunus.analyze(Masked(), torch.randn(4, 6))).original
    assert cost.params == 70 and cost.size_bytes == 70 * 4 + 10 * 8
