"""How much the outputs change with what each layer reads: gradients of random projections of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from prunus.evidence.interpret import Look, Pass

__all__ = ["PROBED", "probe"]

_LEAST = 0.1
PROBED = 256  # samples; the estimate is a mean over them and all their positions


def probe(
    pass_: Pass,
    leaves: Mapping[str, Any],
    seen: Mapping[tuple[fx.Node, fx.Node], Callable[[Tensor, Tensor], None]],
    look: Look | None = None,
    before: Look | None = None,
) -> None:
    """One batch forth and back, for `sum(v * outputs)` with normal random `v`, outputs of unit variance.

    Args:
        pass_: of the whole graph.
        leaves: input placeholder -> value.
        seen: (reader, operand) -> is called with the operand and the gradient there, through that reader alone.
        look, before: see `Pass.run`.
    """

    def replace(reader: fx.Node, operand: fx.Node, value: Any) -> Any:
        look = seen.get((reader, operand))
        if look is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        alias = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        given = value.detach()
        alias.register_hook(lambda gradient: look(given, gradient))
        return alias

    with torch.enable_grad():
        outputs = [
            x
            for x in pass_.run(leaves, look or _nothing, replace, before)
            if isinstance(x, Tensor) and x.requires_grad
        ]
        if not outputs:
            return
        generator = torch.Generator().manual_seed(0)
        projected = []
        for x in outputs:
            v = torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
            projected.append((v * x).sum() / x.detach().std().clamp(min=1e-12))
        torch.stack([p.float() for p in projected]).sum().backward()


def row_weights(gradient: Tensor) -> Tensor:
    """(rows,) what errors in each row count: the square of the gradient there, and a tenth of its mean for all.

    Few rows may carry nearly all of it: in the last block of a classifying transformer, one token does.

    Args:
        gradient: (..., rows, channels); what is in front counts as channels.
    """
    squares = gradient.square().sum(-1)
    squares = squares.reshape(-1, squares.shape[-1]).sum(0)
    return squares + _LEAST * squares.mean()


def _nothing(node: fx.Node, value: Any) -> None:
    pass
