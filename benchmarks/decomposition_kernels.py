"""Tucker and CP of trained kernels: fit, size of the components and time, next to TensorLy.

python benchmarks/decomposition_kernels.py    # ten minutes; writes benchmarks/results/decomposition_kernels.md
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from _record import data, table, write
from torch import Tensor, nn

from prunus.decomposition.als import decomposed
from prunus.decomposition.tucker import hooi

KERNELS, STARTS = 20, 10


def kernels() -> dict[str, Tensor]:
    """Convolution kernels of trained networks, (outputs, inputs, taps) float64, evenly from all of their depth."""
    load = data()
    found = {}
    for depth in (20, 56):
        for path, layer in load.resnet_cifar10(depth).named_modules():
            if isinstance(layer, nn.Conv2d) and layer.in_channels > 3:
                found[f"ResNet-{depth} {path}"] = layer.weight.detach().double().flatten(2)
    names = list(found)
    chosen = [names[round(i * (len(names) - 1) / (KERNELS - 1))] for i in range(KERNELS)]
    return {name: found[name] for name in chosen}


def timed(work: Callable[[], object]) -> tuple[object, float]:
    """What it returns, and seconds: the best of three, as other work on the machine only adds."""
    best, result = float("inf"), None
    for _ in range(3):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return result, best


def fit_of(kernel: Tensor, product: Tensor) -> float:
    return 1 - float((kernel - product).norm() / kernel.norm())


def cp_row(kernel: Tensor, rank: int) -> tuple[float, float, float, float, float, float]:
    """Fits of both, sizes of the largest components of both, seconds of both for one start."""
    import tensorly
    from tensorly.decomposition import parafac

    tensorly.set_backend("pytorch")
    shape = (kernel.shape[2],)
    ours, own_s = timed(lambda: decomposed(kernel, shape, rank))
    own_fit = fit_of(kernel, torch.einsum("tr,sr,kr->tsk", *ours.factors))
    best, sizes, seconds = -1.0, [], []
    for start in range(STARTS):
        init = "svd" if start == 0 else "random"
        began = time.perf_counter()
        weights, factors = parafac(kernel, rank, init=init, random_state=start, n_iter_max=100, tol=1e-8)
        seconds.append(time.perf_counter() - began)
        fit = fit_of(kernel, torch.einsum("r,tr,sr,kr->tsk", weights, *factors))
        if fit > best:
            best = fit
            norms = weights.abs() * torch.stack([f.norm(dim=0) for f in factors]).prod(0)
            sizes = [float(norms.max() / kernel.norm())]
    return own_fit, best, ours.largest, sizes[0], own_s, statistics.median(seconds)


def tucker_row(kernel: Tensor, rank_in: int, rank_out: int) -> tuple[float, float, float, float]:
    """Fits and seconds of both."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    (u_out, u_in), own_s = timed(lambda: [u[0] for u in hooi(kernel[None], rank_in, rank_out)])

    def onto(a: Tensor, b: Tensor) -> float:
        return fit_of(kernel, torch.einsum("tu,sv,usk->tvk", a @ a.T, b @ b.T, kernel).reshape(kernel.shape))

    def theirs() -> object:
        return partial_tucker(kernel, [rank_out, rank_in], modes=[0, 1], init="svd", n_iter_max=100, tol=1e-8)

    ((_, (a, b)), _), their_s = timed(theirs)
    return onto(u_out, u_in), onto(a, b), own_s, their_s


def main() -> None:
    if importlib.util.find_spec("tensorly") is None:
        print("Skipped: this benchmark compares with TensorLy; pip install tensorly")
        return
    torch.set_num_threads(1)
    cp, tucker = [], []
    for name, kernel in kernels().items():
        outputs, inputs, _ = kernel.shape
        cp.append(cp_row(kernel, inputs))
        tucker.append(tucker_row(kernel, inputs // 2, outputs // 2))
        print(name, tuple(kernel.shape), *(f"{x:.4f}" for x in (*cp[-1], *tucker[-1])), flush=True)
    own, their, size, their_size, own_s, their_s = zip(*cp, strict=True)
    rows = [
        [
            "CP, rank = inputs",
            f"{statistics.mean(own):.4f} / {statistics.mean(their):.4f}",
            f"{min(a / b for a, b in zip(own, their, strict=True)) - 1:+.2%}",
            f"{max(size):.1f} / {max(their_size):.1f}",
            f"{1e3 * statistics.median(own_s):.1f} / {1e3 * statistics.median(their_s):.1f} ms",
            f"{statistics.median(b / a for a, b in zip(own_s, their_s, strict=True)):.1f}x",
        ]
    ]
    own, their, own_s, their_s = zip(*tucker, strict=True)
    rows.append(
        [
            "Tucker-2, half of both",
            f"{statistics.mean(own):.4f} / {statistics.mean(their):.4f}",
            f"{min(a - b for a, b in zip(own, their, strict=True)):+.1e}",
            "",
            f"{1e3 * statistics.median(own_s):.1f} / {1e3 * statistics.median(their_s):.1f} ms",
            f"{statistics.median(b / a for a, b in zip(own_s, their_s, strict=True)):.1f}x",
        ]
    )
    head = [
        f"{KERNELS} kernels of ResNet-20 and ResNet-56",
        "mean fit",
        "worst difference",
        "largest component",
    ]
    head += ["median time", "faster by"]
    text = f"""# Kernels of trained networks: prunus / TensorLy

{table(head, rows)}

Fit: 1 - error / length of the kernel. CP: prunus, which is deterministic, against the best of {STARTS} starts of TensorLy (`parafac`,
one by SVD, the others random; 100 iterations, tolerance 1e-8); the time is that of prunus in all against one start. The size of the largest component
is relative to the kernel's. Tucker: against `partial_tucker` (100 iterations, tolerance 1e-8). One thread."""
    print(write("decomposition_kernels", "python benchmarks/decomposition_kernels.py", text).read_text())


if __name__ == "__main__":
    main()
