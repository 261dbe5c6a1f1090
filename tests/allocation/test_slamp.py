"""Layer-adaptive scores: a loop, a vector worked by hand, and what must not matter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunus
from prunus.allocation import layer_adaptive
from prunus.criteria import L2Norm, Options, Views
from prunus.errors import PlanError
from tests.allocation.nets import layers

energies = st.lists(st.integers(1, 10**6), min_size=1, max_size=30, unique=True)


def by_loop(energy: list[float]) -> list[float]:
    """Share of those that are no weaker; all different."""
    return [a / sum(b for b in energy if b >= a) for a in energy]


def test_by_hand() -> None:
    assert layer_adaptive(np.array([1.0, 2, 3, 4])).tolist() == pytest.approx([1 / 10, 2 / 9, 3 / 7, 1])
    assert layer_adaptive(np.array([4.0, 1, 3, 2])).tolist() == pytest.approx([1, 1 / 10, 3 / 7, 2 / 9])


@settings(max_examples=60, deadline=None)
@given(energies)
def test_scores_are_those_of_a_loop(energy: list[int]) -> None:
    assert layer_adaptive(np.array(energy, float)).tolist() == pytest.approx(
        by_loop(list(map(float, energy)))
    )


@settings(max_examples=60, deadline=None)
@given(energies, st.integers(1, 1000), st.randoms())
def test_properties(energy: list[int], scale: int, random: object) -> None:
    values = np.array(energy, float)
    scores = layer_adaptive(values)
    assert scores.max() == 1 and (scores > 0).all()
    assert (np.argsort(scores) == np.argsort(values)).all(), "the order within a layer stays"
    assert layer_adaptive(values * scale).tolist() == pytest.approx(scores.tolist())
    shuffled = np.random.default_rng(0).permutation(len(values))
    assert layer_adaptive(values[shuffled]).tolist() == pytest.approx(scores[shuffled].tolist())


def test_single_weights_as_in_the_paper() -> None:
    weight = torch.randn(40, dtype=torch.float64)
    squares = weight.square().sort()
    suffix = squares.values.flip(0).cumsum(0).flip(0)
    expected = torch.empty(40, dtype=torch.float64)
    expected[squares.indices] = squares.values / suffix
    np.testing.assert_allclose(layer_adaptive(weight.square().numpy()), expected.numpy())


@pytest.mark.parametrize("energy", [[0.0, 0, 0], [0.0, 0, 1], [2.0, 2, 2]])
def test_equal_and_empty_energies(energy: list[float]) -> None:
    scores = layer_adaptive(np.array(energy))
    assert np.isfinite(scores).all() and sorted(scores)[-1] == 1


def network() -> prunus.Structure:
    torch.manual_seed(1)
    return prunus.analyze(layers(20, 30, 60, 15, 5).eval(), torch.randn(3, 20))


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.7])
def test_the_choice_is_the_one_made_by_hand(ratio: float) -> None:
    structure = network()
    views = Views(structure)
    ranked = []
    for group in structure.prunable:
        squares = [float(s) ** 2 for s in L2Norm().score(views.group(group))]
        ranked += [(score, group.name, u) for u, score in enumerate(by_loop(squares))]
    gone = sorted(ranked)[: math.ceil(ratio * 105 - 1e-9)]
    made = prunus.plan(structure, ratio=ratio, allocation="slamp", floors=0.0)
    for group in structure.prunable:
        lost = {u for _, name, u in gone if name == group.name}
        assert set(range(group.size)) - set(made.keep.get(group.name, range(group.size))) == lost


def test_no_layer_is_emptied_however_little_stays() -> None:
    made = prunus.plan(network(), ratio=0.95, allocation="slamp", floors=0.0)
    assert all(len(keep) >= 1 for keep in made.keep.values()) and sum(map(len, made.keep.values())) == 5


def test_the_scale_of_a_layer_does_not_matter() -> None:
    model, x = layers(20, 30, 60, 15, 5).eval(), torch.randn(3, 20)
    options = Options(layer_norm="none", policy="average")
    before = prunus.plan(prunus.analyze(model, x), ratio=0.5, allocation="slamp", options=options).keep
    ranked = prunus.plan(prunus.analyze(model, x), ratio=0.5, allocation="global", options=options).keep
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(100)
    structure = prunus.analyze(model, x)
    assert prunus.plan(structure, ratio=0.5, allocation="slamp", options=options).keep == before
    assert prunus.plan(structure, ratio=0.5, allocation="global", options=options).keep != ranked


def test_negative_scores_are_refused() -> None:
    with pytest.raises(PlanError, match=r"slamp needs scores of at least 0, and group '0' has negative ones"):
        prunus.plan(network(), ratio=0.5, allocation="slamp", options=Options(layer_norm="standard_score"))
