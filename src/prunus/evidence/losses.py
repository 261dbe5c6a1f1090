"""The loss whose gradient is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from prunus.errors import ConfigError
from prunus.evidence.batches import Batch

__all__ = ["loss_of"]

_ASK = (
    "pass loss=, a function (outputs, batch) -> scalar, averaged over the batch; or batches that carry integer class labels: "
    "(inputs, labels), or a dictionary with 'labels'"
)


def loss_of(loss: Any, outputs: Any, batch: Batch) -> Tensor:
    """The scalar loss of a batch: the user's, or the cross-entropy of the outputs with the labels in the batch.

    Raises:
        ConfigError: there are no labels, they do not fit, or the loss is no finite scalar.
    """
    if loss is None:
        return _cross_entropy(outputs, batch)
    value = loss(outputs, batch.given)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"loss must return a scalar tensor, got {got}: average over the batch")
    if not bool(torch.isfinite(value)):
        raise ConfigError(f"the loss is {float(value.detach())}: check the data and the loss")
    if not value.requires_grad:
        raise ConfigError(
            "the loss does not depend on the outputs, so it has no gradient: compute it from `outputs`"
        )
    return value.reshape(())


def _cross_entropy(outputs: Any, batch: Batch) -> Tensor:
    given = batch.given
    labels = given.get("labels") if isinstance(given, Mapping) else batch.extras[0] if batch.extras else None
    if not isinstance(labels, Tensor):
        raise ConfigError(f"this criterion needs a loss, and the batches carry no labels: {_ASK}")
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if logits is None:
        logits = next(
            x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()
        )
    if labels.is_floating_point() or labels.shape != logits.shape[:1] or logits.dim() != 2:
        raise ConfigError(
            f"labels of shape {tuple(labels.shape)} ({labels.dtype}) are no classes for outputs of shape {tuple(logits.shape)}: {_ASK}"
        )
    return F.cross_entropy(logits.float(), labels.to(logits.device))
