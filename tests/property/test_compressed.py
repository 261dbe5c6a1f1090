"""A thousand random networks through the whole of prunus: analysis, plan, surgery, write-back, verification.

Attention in many forms, recurrent layers, convolutions of all kinds, splits and shuffles, nested and side by side. Where only
weights mix channels, the result is also compared with the user's own model with zeros in its weights, which shares
nothing with surgery and verification.

    pytest -m slow tests/property/test_compressed.py -n 2
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import prunus
from prunus.api import execute
from prunus.structure import Structure
from prunus.surgery.precision import OnePrecision
from tests.property import plans, zeroed
from tests.property.choices import Drawn, Pick
from tests.property.networks import Network, build

PARTS, CASES = 20, 50
# without shrinking, which takes minutes: what is printed is enough to draw the same network again
OPTIONS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}
COMPARED = 0.1  # at least this share of the cases has no mixers: the second reference has seen something


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """One thread, and no log of what is traced: both cost more than the work."""
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    yield
    torch.set_num_threads(threads)
    logging.disable(level)


def wanted(pick: Pick, structure: Structure) -> prunus.Plan:
    """A random legal choice of units, or what a criterion chooses for a random target."""
    kind = pick.one_of(("choice", "channels", "params", "macs"))
    options: dict[str, Any] = {"method": pick.one_of(("random", "l2")), "seed": pick.integer(0, 9)}
    options["multiple_of"] = pick.one_of((1, 1, 2))
    share = pick.one_of((0.3, 0.5, 0.8))
    if kind != "choice":
        try:
            return prunus.plan(structure, target=prunus.Target(**{kind: share}), **options)
        except prunus.TargetError:  # out of reach, which is an answer
            pass
    kept = plans.plan(pick, structure)
    while structure.emptied(structure.keep_labels(kept)):  # at least one must stay everywhere
        name, _ = kept.popitem()
        kept = {each: units for each, units in kept.items() if each not in structure.group(name).tied}
    if not kept:
        kept = {group.name: np.arange(group.size) for group in structure.prunable}
    return prunus.plan(structure, method=prunus.ByIndex(keep={k: v.tolist() for k, v in kept.items()}))


def check(pick: Pick) -> bool:
    """One network; returns whether the second reference applied."""
    network = build(pick)
    keep_class = pick.one_of((False, False, True))
    # other sizes: see test_graphs
    structure = prunus.analyze(network.model, network.inputs, keep_class=keep_class, dynamic="none")
    if not structure.prunable:
        return False
    made = wanted(pick, structure)
    result = execute(structure, made)
    verification = result.report.verification
    assert verification is not None and verification["passed"]
    if zeroed.counts_on(result) or zeroed.mixes(structure.captured):
        return False
    error = difference(network, structure, result)
    assert error <= 1e-5, f"differs by {error:.1e} of the outputs' scale from the original with zeros"
    return True


def difference(network: Network, structure: Structure, result: prunus.Result) -> float:
    """Of the result from the original with zeros in its weights, in float64, relative to the largest output."""
    expected = zeroed.outputs(structure, structure.keep_labels(dict(result.plan.keep)), network.inputs)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in network.inputs)
    # states that a forward makes for itself are of single precision in the graph
    with torch.no_grad(), OnePrecision(torch.float64):
        found = result.model.double()(*inputs)
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_compressed_networks_compute_what_they_should(part: int) -> None:
    compared = []

    @seed(part)
    @settings(max_examples=CASES, **OPTIONS)
    @given(st.data())
    def cases(data: st.DataObject) -> None:
        compared.append(check(Drawn(data.draw)))

    cases()
    assert sum(compared) >= COMPARED * len(compared)


def test_the_second_reference_finds_what_is_wrong() -> None:
    """A result whose weights are of other channels than the plan says differs from it."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    network = Network(model, (torch.randn(3, 4),))
    structure = prunus.analyze(model, network.inputs)
    first, second = (
        execute(structure, prunus.plan(structure, method=prunus.ByIndex(keep={"0": kept})))
        for kept in ([0, 1, 2], [5, 6, 7])
    )
    assert difference(network, structure, first) <= 1e-5
    assert difference(network, structure, replace(second, plan=first.plan)) > 1e-3
