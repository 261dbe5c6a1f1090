"""What the factors lose: the least there is, and what is said to be lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.decomposition import CP, SVD, Method, SpatialSVD, Tucker
from prunus.decomposition.als import LARGEST, als, decomposed, sliced
from prunus.decomposition.geometry import geometry_of, kernel_of
from prunus.decomposition.metric import Metric
from prunus.decomposition.steps import product
from prunus.decomposition.tucker import hooi
from prunus.eigen import eigen, eigenvalues, one_thread, singular


def correlated(rows: int, size: int) -> torch.Tensor:
    """(rows, size) samples whose channels depend on each other and do not average to zero."""
    mix = torch.randn(size, size, dtype=torch.float64) @ torch.diag(torch.logspace(0, -2, size).double())
    return torch.randn(rows, size, dtype=torch.float64) @ mix + torch.randn(size).double()


@pytest.mark.parametrize("centered", [False, True])
def test_whitened_svd_loses_the_spectrum_that_is_cut_off(centered: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 20, dtype=torch.float64)
    x = correlated(500, 12)
    geometry = geometry_of(layer)
    kernel = kernel_of(layer.weight, geometry)
    metric = Metric((x.T @ x / 500)[None], x.mean(0)[None], centered, damping=0.0)
    curve = SVD().curve(kernel, geometry, metric)
    for rank in (1, 4, 11):
        difference = kernel - product(SVD().steps(kernel, geometry, (rank,), metric), geometry)
        error = x @ difference[0, :, :, 0].T
        if centered:
            error = error - error.mean(0)
        achieved = float((error**2).sum() / 500)
        moment = x.T @ x / 500 - (torch.outer(x.mean(0), x.mean(0)) if centered else 0)
        root = torch.linalg.cholesky(moment)
        cut = float((torch.linalg.svdvals(layer.weight.detach() @ root)[rank:] ** 2).sum())
        total = float((torch.linalg.svdvals(layer.weight.detach() @ root) ** 2).sum())
        assert achieved == pytest.approx(cut, rel=1e-6)
        assert curve.lost[rank - 1] * total == pytest.approx(cut, rel=1e-6)
        plain = kernel - product(SVD().steps(kernel, geometry, (rank,), Metric()), geometry)
        assert metric.energy(plain) > 1.01 * achieved


@pytest.mark.parametrize("method", [SVD("pointwise"), Tucker(), CP(), CP(separable=True), SpatialSVD()], ids=repr)  # fmt: skip
def test_moments_make_less_error_at_the_output(method: Method) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 12, 3)
    geometry, kernel = geometry_of(layer), kernel_of(layer.weight, geometry_of(layer))
    patches = correlated(2000, 72)
    metric = Metric((patches.T @ patches / 2000)[None], patches.mean(0)[None])
    ranks = tuple(max(1, full // 3) for full in method.full(geometry))
    aware = kernel - product(method.steps(kernel, geometry, ranks, metric), geometry)
    plain = kernel - product(method.steps(kernel, geometry, ranks, Metric()), geometry)
    assert metric.energy(aware) < 0.8 * metric.energy(plain)


@pytest.mark.parametrize("method", [SVD(), SVD("pointwise"), Tucker(), CP(), CP(separable=True), SpatialSVD()], ids=repr)  # fmt: skip
def test_curves_say_what_is_lost(method: Method) -> None:
    torch.manual_seed(2)
    geometry = geometry_of(nn.Conv2d(12, 16, 3))
    kernel = torch.randn(1, 16, 12, 9, dtype=torch.float64)
    kernel[0, :, :, :4] += 3 * torch.randn(16, 1, 1) * torch.randn(1, 12, 1)
    curve = method.curve(kernel, geometry, Metric())
    full, total = method.full(geometry), float((kernel**2).sum())
    assert (curve.ranks >= 1).all() and (curve.ranks <= full).all()
    for index in range(0, len(curve.ranks), max(1, len(curve.ranks) // 6)):
        ranks = tuple(int(rank) for rank in curve.ranks[index])
        made = product(method.steps(kernel, geometry, ranks, Metric()), geometry)
        lost = float(((kernel - made) ** 2).sum()) / total
        # Tucker and CP are improved further when they are made
        assert lost <= curve.lost[index] + 1e-9
        assert lost >= 0.4 * curve.lost[index] - 0.02


def test_iteration_is_no_worse_than_truncation() -> None:
    torch.manual_seed(3)
    kernel = torch.randn(1, 20, 14, 9, dtype=torch.float64)
    u_out, u_in = hooi(kernel, 5, 7)
    eye = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(u_in[0].T @ u_in[0], eye, rtol=0, atol=1e-10)
    kept = float((torch.einsum("gtsk,gtb,gsa->gabk", kernel, u_out, u_in) ** 2).sum())
    left = torch.linalg.svd(kernel[0].flatten(1), full_matrices=False)[0][:, :7]
    right = torch.linalg.svd(kernel[0].transpose(0, 1).flatten(1), full_matrices=False)[0][:, :5]
    truncated = float((torch.einsum("tsk,tb,sa->abk", kernel[0], left, right) ** 2).sum())
    assert kept > truncated


def test_low_rank_kernels_are_found_again() -> None:
    torch.manual_seed(4)
    geometry = geometry_of(nn.Conv2d(10, 12, 3))
    core = torch.randn(4, 3, 9).double()
    kernel = torch.einsum("bak,tb,sa->tsk", core, torch.randn(12, 4).double(), torch.randn(10, 3).double())[None]  # fmt: skip
    made = product(Tucker().steps(kernel, geometry, (3, 4), Metric()), geometry)
    torch.testing.assert_close(made, kernel, rtol=0, atol=1e-9)
    factors = [torch.randn(n, 3).double() for n in (12, 10, 9)]
    kernel = torch.einsum("tr,sr,kr->tsk", *factors)[None]
    made = product(CP().steps(kernel, geometry, (3,), Metric()), geometry)
    assert float((made - kernel).norm() / kernel.norm()) < 1e-3


def test_a_tensor_at_the_border_does_not_diverge() -> None:
    """Its rank is 3, but tensors of rank 2 come as close as one likes, with components that grow without bounds."""
    torch.manual_seed(5)
    a, b, c = (torch.linalg.qr(torch.randn(n, 2).double())[0].T for n in (8, 7, 9))

    def outer(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.einsum("t,s,k->tsk", x, y, z)

    tensor = outer(a[0], b[0], c[1]) + outer(a[0], b[1], c[0]) + outer(a[1], b[0], c[0])
    found = als(sliced(tensor, (9,), 2), tensor, (9,), sweeps=2000)
    assert found.largest <= LARGEST
    assert found.error < 0.65
    made = torch.einsum("tr,sr,kr->tsk", *found.factors)
    assert float((made - tensor).norm() / tensor.norm()) == pytest.approx(found.error, rel=1e-6)
    lengths = [factor.norm(dim=0) for factor in found.factors]
    torch.testing.assert_close(lengths[0], lengths[1])
    random = [torch.randn(n, 2).double() for n in (8, 7, 9)]
    assert als(random, tensor, (9,), sweeps=2000).largest <= LARGEST


def test_eigenvalues_are_taken_on_one_thread() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        with pytest.raises(ValueError), one_thread():
            raise ValueError
        matrix = torch.randn(2, 5, 9, dtype=torch.float64)
        gram = matrix @ matrix.mT
        values, vectors = eigen(gram)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, gram)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix) ** 2)
    torch.testing.assert_close(values, eigenvalues(gram))


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_sweeps_in_single_precision_lose_hardly_more(scale: float) -> None:
    torch.manual_seed(6)
    decay = torch.logspace(0, -1.5, 24).double()
    kernel = scale * torch.randn(1, 24, 18, 9, dtype=torch.float64) * decay[None, :, None, None]
    lost = []
    for tolerance in (1e-12, 1e-4):
        u_out, u_in = hooi(kernel, 6, 8, tolerance)
        for basis in (u_out, u_in):
            torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[-1]).double()[None])
        core = torch.einsum("gtsk,gtb,gsa->gabk", kernel, u_out, u_in)
        lost.append(1 - float(core.norm() ** 2 / kernel.norm() ** 2))
    assert lost[0] <= lost[1] + 1e-12
    assert lost[1] < 1.005 * lost[0]
    assert lost[0] > 0.05


def test_singular_triples_multiply_out_to_the_matrix() -> None:
    torch.manual_seed(7)
    for rows, columns in ((6, 11), (11, 6), (7, 7)):
        matrix = torch.randn(3, rows, columns, dtype=torch.float64)
        matrix[1, -2:] = 0  # of lower rank
        u, s, vh = singular(matrix)
        torch.testing.assert_close(u * s[:, None] @ vh, matrix)
        torch.testing.assert_close(s, torch.linalg.svdvals(matrix), rtol=1e-6, atol=1e-6)


def test_a_descent_can_be_gone_on_with() -> None:
    """What two starts have tried is not done again, and more sweeps fit better."""
    torch.manual_seed(8)
    tensor = torch.randn(12, 10, 9, dtype=torch.float64)
    start = sliced(tensor, (9,), 10)
    errors = [als(start, tensor, (9,), sweeps=sweeps).error for sweeps in (1, 4, 20, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]
    found = decomposed(tensor, (9,), 10)
    assert found.error <= 1.02 * errors[-1]
    made = torch.einsum("tr,sr,kr->tsk", *found.factors)
    assert float((made - tensor).norm() / tensor.norm()) == pytest.approx(found.error, rel=1e-9)
    nothing = als(start, torch.zeros_like(tensor), (9,))
    assert nothing.error == nothing.largest == 0
    assert not any(factor.any() for factor in nothing.factors)
