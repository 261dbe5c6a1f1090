"""How large an error of a kernel is at the layer's output, given second moments of its input."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.eigen import eigen

__all__ = ["Metric"]

DAMPING = 1e-4


@dataclass(frozen=True, eq=False)
class Metric:
    r"""Second moments $\Sigma$ of what a kernel meets; $E\|(W - \hat W) x\|^2 = tr((W - \hat W) \Sigma (W - \hat W)^T)$.

    Kernels are (groups, rows, inputs, taps). Without moments all inputs count alike.

    Attributes:
        second: (groups, inputs * taps, inputs * taps) moments of whole patches, or (groups, inputs, inputs) moments
            of channels, taken as independent from tap to tap; None without data.
        mean: (groups, inputs * taps) or (groups, inputs) mean of the same.
        centered: the bias takes up the mean error, so that what counts is the covariance.
        damping: share of the mean moment that is added to all, for directions that the data does not show.
    """

    second: Tensor | None = None
    mean: Tensor | None = None
    centered: bool = True
    damping: float = DAMPING
    _roots: dict[bool, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def moment(self) -> Tensor | None:
        """The covariance where the bias takes up the mean, else the second moment."""
        if self.second is None or self.mean is None or not self.centered:
            return self.second
        return self.second - self.mean[:, :, None] * self.mean[:, None, :]

    def apply(self, kernel: Tensor, *, damped: bool = True) -> Tensor:
        r"""$W \Sigma$, of the kernel's own shape."""
        moment = self.moment()
        if moment is None:
            return kernel
        moment = moment.to(kernel.dtype)
        if damped:
            moment = _damped(moment, self.damping)
        if self._whole(kernel):
            return (kernel.flatten(2) @ moment).reshape(kernel.shape)
        return torch.einsum("gtsk,gsu->gtuk", kernel, moment)

    def energy(self, kernel: Tensor, *, damped: bool = False) -> float:
        """Mean squared length of what the kernel makes of the inputs."""
        if self.second is None:
            return float(torch.linalg.vector_norm(kernel)) ** 2
        return float((self.apply(kernel, damped=damped) * kernel).sum().clamp(min=0))

    def scale(self, kernel: Tensor) -> float:
        """Mean squared length of a layer's output about its mean: what errors are relative to."""
        return Metric(self.second, self.mean, True).energy(kernel)

    def relative(self, difference: Tensor, kernel: Tensor) -> float:
        """Root of the mean squared error at the output, relative to the output's own spread."""
        error, scale = self.energy(difference), self.scale(kernel)
        return (error / scale) ** 0.5 if scale > 0 else float(error > 0)

    def whiten(self, kernel: Tensor) -> Tensor:
        """W L with L L^T the damped moment; lengths of rows are then sizes of outputs."""
        if self.second is None:
            return kernel
        if self._whole(kernel):
            root, _ = self._root(channels=False)
            return (kernel.flatten(2) @ root).reshape(kernel.shape)
        return self.whiten_channels(kernel)

    def unwhiten(self, kernel: Tensor) -> Tensor:
        """What `whiten` undoes."""
        if self.second is None:
            return kernel
        if self._whole(kernel):
            _, inverse = self._root(channels=False)
            return (kernel.flatten(2) @ inverse).reshape(kernel.shape)
        return torch.einsum("gtsk,gsu->gtuk", kernel, self._root(channels=True)[1])

    def whiten_channels(self, kernel: Tensor) -> Tensor:
        """As `whiten`, by the moments of the channels alone."""
        if self.second is None:
            return kernel
        return torch.einsum("gtsk,gsu->gtuk", kernel, self._root(channels=True, like=kernel)[0])

    def unwhiten_inputs(self, factor: Tensor) -> Tensor:
        """Rows (groups, rank, inputs) that meet whitened channels, for channels as they are."""
        if self.second is None:
            return factor
        return factor @ self._root(channels=True)[1]

    def regress(self, kernel: Tensor, features: Tensor, *, ridge: float = 0.0) -> Tensor:
        """The matrices A (groups, outputs, rank) with which A features comes closest to the kernel at the output.

        Args:
            kernel: (groups, outputs, inputs, taps).
            features: (groups, rank, inputs, taps).
            ridge: share of the mean energy of a feature that keeps A small.
        """
        seen = self.apply(features).flatten(2)
        gram = seen @ features.flatten(2).mT
        if ridge:
            gram = _damped(gram, ridge)
        cross = kernel.flatten(2) @ seen.mT
        return _solve(gram, cross)

    def bias_shift(self, difference: Tensor) -> Tensor | None:
        """(outputs,) mean of what the difference makes of the inputs; None where nobody takes it up."""
        if self.mean is None or not self.centered:
            return None
        mean = self.mean.to(difference.dtype)
        if self._whole(difference):
            return torch.einsum("gtd,gd->gt", difference.flatten(2), mean).flatten()
        return torch.einsum("gtsk,gs->gt", difference, mean).flatten()

    def _whole(self, kernel: Tensor) -> bool:
        assert self.second is not None
        return self.second.shape[-1] == kernel.shape[2] * kernel.shape[3]

    def _root(self, *, channels: bool, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """L and its inverse, of whole patches or of channels."""
        if like is not None and channels and channels not in self._roots:
            moment = self.moment()
            assert moment is not None
            inputs, taps = like.shape[2], moment.shape[-1] // like.shape[2]
            if taps > 1:
                blocks = moment.reshape(len(moment), inputs, taps, inputs, taps)
                moment = torch.einsum("gskuk->gsu", blocks) / taps
            self._roots[True] = _root_of(_damped(moment.to(torch.float64), self.damping))
        if channels not in self._roots:
            moment = self.moment()
            assert moment is not None
            self._roots[channels] = _root_of(_damped(moment.to(torch.float64), self.damping))
        return self._roots[channels]


def _damped(moment: Tensor, damping: float) -> Tensor:
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=0)
    # where the data shows nothing at all, all directions count alike
    added = torch.where(mean > 0, damping * mean, 1.0)
    return moment + added[:, None, None] * torch.eye(
        moment.shape[-1], dtype=moment.dtype, device=moment.device
    )


def _root_of(moment: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = eigen(moment)
    values = values.clamp(min=1e-12 * float(values.max().clamp(min=1e-300)))
    root = values.sqrt()
    return vectors * root[:, None, :], (vectors / root[:, None, :]).mT


def _solve(gram: Tensor, cross: Tensor) -> Tensor:
    """Cross gram^-1 by eigenvalues: features that say nothing new get no weight."""
    values, vectors = eigen(gram)
    largest = values[:, :1].clamp(min=1e-300)
    inverse = torch.where(values > 1e-11 * largest, 1 / values.clamp(min=1e-300), 0.0)
    return (cross @ vectors * inverse[:, None, :]) @ vectors.mT
