"""Which part of a reshape shrinks: the channels of every head, or heads; and heads in the table of layers."""

import pytest
import torch

import prunus
from prunus.allocation import contained
from prunus.errors import ConfigError
from tests.allocation.nets import network

HEADS = prunus.Options(reshape_channel_axis=-2)


@pytest.fixture
def structure() -> prunus.Structure:
    return prunus.analyze(*network("packed attention"))


def heads_of(structure: prunus.Structure) -> prunus.Group:
    (heads,) = [g for g in structure.prunable if g.outer]
    return heads


def test_what_heads_contain(structure: prunus.Structure) -> None:
    heads = heads_of(structure)
    inside = contained(structure, [heads])
    assert inside == {g.name for g in structure.prunable if g.rows is not None} and len(inside) == 2
    assert contained(structure, []) == set()


@pytest.mark.parametrize("axis", [0, -2])
def test_heads_leave_whole(structure: prunus.Structure, axis: int) -> None:
    options = prunus.Options(reshape_channel_axis=axis)
    made = prunus.plan(structure, ratio=0.5, options=options)
    assert {name: len(keep) for name, keep in made.keep.items()} == {"add": 8, heads_of(structure).name: 2}
    net, x = network("packed attention")
    result = prunus.apply(net, made, example_inputs=x)
    assert result.model.get_parameter("qkv.weight").shape == (24, 8)
    assert made.options == {"reshape_channel_axis": axis}


@pytest.mark.parametrize("axis", [1, -1])
def test_or_channels_of_every_head(structure: prunus.Structure, axis: int) -> None:
    made = prunus.plan(structure, ratio=0.5, options=prunus.Options(reshape_channel_axis=axis))
    assert made.keep == prunus.plan(structure, ratio=0.5).keep
    assert heads_of(structure).name not in made.keep


def test_the_head_of_least_norm_goes(structure: prunus.Structure) -> None:
    net, x = network("packed attention")
    with torch.no_grad():
        for part in range(3):
            net.qkv.weight[16 * part + 8 : 16 * part + 12] *= 0.01  # type: ignore[union-attr, operator]
        net.proj.weight[:, 8:12] *= 0.01  # type: ignore[union-attr, operator]
    found = prunus.analyze(net, x)
    made = prunus.plan(found, ratio=0.25, options=HEADS, hold=["inner"])
    assert made.keep[heads_of(found).name] == (0, 1, 3)


@pytest.mark.parametrize(
    "target", [prunus.Target(macs=0.6), prunus.Target(params=0.6), prunus.Target(channels=0.5)]
)
@pytest.mark.parametrize("allocation", ["uniform", "global", "slamp", "isomorphic"])
def test_targets_are_met_by_heads(
    structure: prunus.Structure, target: prunus.Target, allocation: str
) -> None:
    net, x = network("packed attention")
    result = prunus.compress(net, x, target=target, allocation=allocation, options=HEADS)
    if target.unit != "channels":
        before, after = (getattr(t, target.unit) for t in (result.report.before, result.report.after))
        assert after <= target.fraction * before
    assert not any(g.rows is not None and g.name in result.plan.keep for g in structure.prunable)


def test_heads_have_rows_of_their_own(structure: prunus.Structure) -> None:
    heads, table = heads_of(structure), structure.layers()
    table[heads.name].kept = 3
    pairs = next(row for row in table if "scaled_dot" in row.group)
    pairs.kept = 8
    made = prunus.plan(structure, table=table)
    assert {name: len(keep) for name, keep in made.keep.items()} == {heads.name: 3, pairs.group: 8}
    net, x = network("packed attention")
    small = prunus.apply(net, made, example_inputs=x).model
    assert sum(p.numel() for n, p in small.named_parameters() if "qkv" in n and "weight" in n) == 16 * (
        2 * 3 * 2 + 3 * 4
    )
    assert prunus.plan(structure, ratio={heads.name: 0.25, pairs.group: 0.5}).keep == made.keep


def test_data_speaks_about_heads(structure: prunus.Structure) -> None:
    for method in ("nuclear_norm", "flap", "snp"):
        made = prunus.plan(structure, method=method, ratio=0.5, options=HEADS, data=[torch.randn(8, 5, 6)])
        assert len(made.keep[heads_of(structure).name]) == 2


def test_other_axes_are_refused() -> None:
    with pytest.raises(ConfigError, match="reshape_channel_axis=2 is none of 0, 1, -1, -2"):
        prunus.Options(reshape_channel_axis=2)


def test_a_recommended_table_is_a_plan_to_edit(structure: prunus.Structure) -> None:
    made = prunus.plan(structure, ratio=0.5, allocation="slamp")
    table = structure.layers().filled(made.keep)
    assert {row.group: row.kept for row in table if row.kept is not None} == {
        g: len(k) for g, k in made.keep.items()
    }
    assert prunus.plan(structure, table=table).allocation == "manual"
    row = next(row for row in table if row.kept is not None)
    row.kept = row.channels
    assert row.group not in prunus.plan(structure, table=table).keep


def test_a_step_larger_than_the_layer_leaves_it_alone(structure: prunus.Structure) -> None:
    options = prunus.Options(step_size=64)
    with pytest.raises(prunus.TargetError, match=r"channels=0\.999 removes nothing: in groups of at most 16"):
        prunus.plan(structure, ratio=0.001, options=options)
    with pytest.raises(prunus.TargetError, match=r"cannot be met|cannot be reached"):
        prunus.plan(structure, ratio=0.5, options=options)
    with pytest.raises(prunus.TargetError, match="cannot be reached"):
        prunus.plan(structure, target=prunus.Target(macs=0.5), options=options)
