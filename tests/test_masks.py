"""From masks to a plan and back."""

import dataclasses

import pytest
import torch
import torch.nn.utils.prune as masks
from torch import nn

import prunus
from tests.allocation.nets import network


def masked(net: nn.Module, plan: prunus.Plan, structure: prunus.Structure, attached: bool) -> nn.Module:
    """The network with the plan's masks on the weights, as `torch.nn.utils.prune` puts them there."""
    for name, mask in plan.masks(structure).items():
        path, _, attribute = name.rpartition(".")
        module = net.get_submodule(path)
        if not path or isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            continue
        masks.custom_from_mask(module, attribute, mask)
        if not attached:
            masks.remove(module, attribute)
    return net


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("name", ["residual", "packed attention", "grouped"])
def test_a_plan_and_its_masks_say_the_same(name: str, attached: bool) -> None:
    torch.manual_seed(0)
    net, x = network(name)
    structure = prunus.analyze(net, x)
    plan = prunus.plan(structure, method="random", target=prunus.Target(channels=0.5))
    assert plan.keep
    found = prunus.Plan.from_masks(masked(net, plan, structure, attached).eval(), x)
    assert [g.keep for g in found.groups] == [g.keep for g in plan.groups], (
        "names are those of the masked graph"
    )
    assert attached or found == dataclasses.replace(plan, method="masks", target={}, allocation="")


def test_masks_are_where_small_weights_are_cut() -> None:
    torch.manual_seed(0)
    net, x = network("residual")
    structure = prunus.analyze(net, x)
    plan = prunus.plan(structure, ratio=0.5)
    small = prunus.apply(net, plan).model
    for name, mask in plan.masks(net).items():
        kept = small.get_parameter(name)
        assert torch.equal(net.get_parameter(name)[mask], kept.flatten()), name


def test_heads_that_are_zero_leave_as_heads() -> None:
    torch.manual_seed(0)
    net, x = network("packed attention")
    structure = prunus.analyze(net, x)
    (heads,) = [group for group in structure.prunable if group.outer]
    plan = prunus.plan(structure, method=prunus.ByIndex(remove={heads.name: [1]}))
    assert prunus.Plan.from_masks(masked(net, plan, structure, False).eval(), x).keep == plan.keep


def test_rows_with_fewest_zeros_decide_and_one_unit_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)).eval()
    with torch.no_grad():
        for row in (0, 1, 2, 6):
            net[1].weight[row] = 0
    x = torch.randn(2, 3, 4, 4)
    assert prunus.Plan.from_masks(net, x).keep == {"1": (1, 2, 3, 4, 5, 7)}
    net[0].weight.data.zero_()
    assert all(prunus.Plan.from_masks(net, x).keep.values())


def test_masks_of_another_architecture() -> None:
    plan = prunus.Plan.from_masks(*network("residual"))
    with pytest.raises(prunus.PlanError, match="another architecture"):
        plan.masks(prunus.analyze(*network("packed attention")))
