"""Ranks from spectra: planted ranks are found at every scale, either way round, and the free energy is least there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from prunus.decomposition.evbmf import evbmf_rank, free_energy
from prunus.decomposition.ranks import EVBMF, Energy, as_rule, rounded
from prunus.errors import ConfigError


def planted(rank: int, rows: int = 64, columns: int = 576, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    signal = random.normal(size=(rows, rank)) @ random.normal(size=(rank, columns))
    return signal / max(rank, 1) ** 0.5 + 0.1 * random.normal(size=(rows, columns))


@pytest.mark.parametrize("scale", [1, 1e-2, 1e-3, 1e6])
@pytest.mark.parametrize("rank", [0, 5, 10, 40])
def test_planted_ranks_at_any_scale(rank: int, scale: float) -> None:
    for seed in range(3):
        matrix = scale * planted(rank, seed=seed)
        for turned in (matrix, matrix.T):
            assert evbmf_rank(np.linalg.svd(turned, compute_uv=False), *turned.shape) == rank


def test_the_variance_is_where_the_free_energy_is_least() -> None:
    """Against scipy from many starts, on matrices without a clear rank."""
    random = np.random.default_rng(1)
    for rows, columns in ((20, 60), (32, 32), (48, 50)):
        decay = np.exp(-np.arange(rows) / 6)[:, None]
        matrix = decay * random.normal(size=(rows, columns)) + 0.05 * random.normal(size=(rows, columns))
        singular = np.linalg.svd(matrix, compute_uv=False)
        squares = singular**2 / (singular**2).mean()

        def energy(log: float, squares=squares, rows=rows, columns=columns) -> float:
            return float(free_energy(squares, np.array([np.exp(log)]), rows, columns)[0])

        top = np.log(squares.sum() / (rows * columns))
        alpha = rows / columns
        tau = 2.5129 * alpha**0.5
        bar = (1 + tau) * (1 + alpha / tau)
        most = min(int(np.ceil(rows / (1 + alpha))) - 1, rows - 1)
        low = np.log(max(squares[most] / (columns * bar), squares[most:].mean() / columns))
        edges = np.linspace(low, top, 200)
        found = [
            minimize_scalar(energy, bounds=(a, b), method="bounded", options={"xatol": 1e-10})
            for a, b in itertools.pairwise(edges)
        ]
        best = min(found, key=lambda each: each.fun)
        wanted = int((squares > columns * np.exp(best.x) * bar).sum())
        assert evbmf_rank(singular, rows, columns) == wanted
        assert 0 < wanted < rows


def test_dead_channels_and_nothing() -> None:
    matrix = planted(10)
    matrix[20:] = 0
    assert EVBMF().rank(torch.from_numpy(matrix)) == 10
    assert EVBMF().rank(torch.zeros(5, 9)) == 1
    assert evbmf_rank(np.zeros(5), 5, 9) == 0
    low = planted(10) * 0 + np.ones((64, 576))
    assert evbmf_rank(np.linalg.svd(low, compute_uv=False), 64, 576) == 1


def test_calibration() -> None:
    random = np.random.default_rng(2)
    signal = 5 * np.linalg.qr(random.normal(size=(64, 32)))[0] @ random.normal(size=(32, 576))
    matrix = torch.from_numpy(signal + 0.1 * random.normal(size=(64, 576)))
    ranks = {c: EVBMF(c).rank(matrix) for c in (0, 0.2, -0.2, 1, -1)}
    assert ranks == {0: 32, 0.2: 38, -0.2: 26, 1: 64, -1: 1}


def test_energy() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    assert [Energy(kept).rank(matrix) for kept in (0.5, 9 / 14, 0.9, 13 / 14, 0.99, 1)] == [1, 1, 2, 2, 3, 3]
    assert Energy().rank(torch.zeros(3, 4)) == 1


WRONG = [lambda: EVBMF(1.5), lambda: EVBMF(True), lambda: Energy(0), lambda: as_rule("x"), lambda: as_rule(3)]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_rules(wrong) -> None:
    with pytest.raises(ConfigError):
        wrong()


def test_rounding() -> None:
    assert rounded((5, 9), (16, 12), 8, 1) == (8, 12)
    assert rounded((1,), (64,), 1, 0.25) == (16,)
    assert rounded((1,), (64,), 1, 3) == (3,)
