"""The loss whose gradient is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from prunus.errors import ConfigError
from prunus.evidence.batches import Batch

__all__ = ["checked_loss", "loss_of"]

_ASK = (
    "pass loss=, a function (outputs, batch) -> scalar or a module such as nn.CrossEntropyLoss(), averaged over the batch; or "
    "batches that carry integer class labels: (inputs, labels), or a dictionary with 'labels'"
)


def checked_loss(loss: Any) -> None:
    """Refuse what is no loss.

    Raises:
        ConfigError: it cannot be called, or is a class.
    """
    if isinstance(loss, type):
        raise ConfigError(f"loss is the class {loss.__name__}: pass an object, loss=nn.{loss.__name__}()")
    if loss is not None and not callable(loss):
        raise ConfigError(f"loss is a {type(loss).__name__}: {_ASK}")


def loss_of(loss: Any, outputs: Any, batch: Batch) -> Tensor:
    """The scalar loss of a batch: the user's, or the cross-entropy of the outputs with the labels in the batch.

    Modules and the functions of `torch.nn.functional` are called with the outputs' main tensor and the labels, anything else
    with the outputs and the batch as it came.

    Raises:
        ConfigError: there are no labels, they do not fit, the loss itself raises, or it is no finite scalar.
    """
    if loss is None:
        return _cross_entropy(outputs, batch)
    value = _called(loss, outputs, batch)
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


def _called(loss: Any, outputs: Any, batch: Batch) -> Any:
    takes_labels = isinstance(loss, nn.Module) or getattr(loss, "__module__", "") == F.__name__
    given = (_main(outputs), _labels(batch)) if takes_labels else (outputs, batch.given)
    if takes_labels and given[1] is None:
        raise ConfigError(f"{_name(loss)} needs labels, and the batches carry none: {_ASK}")
    if isinstance(given[1], Tensor) and takes_labels:
        given = (given[0], given[1].to(given[0].device))
    try:
        return loss(*given)
    except Exception as error:
        what = "(outputs, labels)" if takes_labels else "(outputs, batch)"
        raise ConfigError(
            f"loss fails when it is called with {what} of the first batch: {type(error).__name__}: {error}. "
            f"There, outputs are {_said(given[0])}, and the other is {_said(given[1])}. A function of labels is passed as "
            "loss=lambda outputs, batch: f(outputs, batch[1])"
        ) from error


def _name(loss: Any) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dictionary with {', '.join(map(str, value))}"
    return f"a {type(value).__name__}"


def _main(outputs: Any) -> Any:
    """The tensor that a loss is of: the logits, or the first of floating point."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    floating = (x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point())
    return next(floating) if logits is None else logits


def _labels(batch: Batch) -> Tensor | None:
    labels = batch.given.get("labels") if isinstance(batch.given, Mapping) else None
    if labels is None:
        labels = batch.extras[0] if batch.extras else None
    try:
        return None if labels is None else torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):  # names, for example
        return None


def _cross_entropy(outputs: Any, batch: Batch) -> Tensor:
    labels = _labels(batch)
    if labels is None:
        raise ConfigError(f"this criterion needs a loss, and the batches carry no labels: {_ASK}")
    logits = _main(outputs)
    if labels.is_floating_point() or labels.shape != logits.shape[:1] or logits.dim() != 2:
        raise ConfigError(
            f"labels of shape {tuple(labels.shape)} ({labels.dtype}) are no classes for outputs of shape {tuple(logits.shape)}: {_ASK}"
        )
    return F.cross_entropy(logits.float(), labels.to(logits.device))
