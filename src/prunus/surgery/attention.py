"""Dropout inside fused attention, which a graph of a network in evaluation mode shows as absent."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.preserve import left_as_found
from prunus.surgery.recipe import Recipe, bound_arguments

__all__ = ["FusedAttention", "attention_recipes"]


class FusedAttention(nn.Module):
    """Scaled dot-product attention with dropout of the attention weights in training.

    Args:
        dropout_p: Probability that a weight is dropped in training.
        is_causal: As in `torch.nn.functional.scaled_dot_product_attention`, like the next two.
        scale: Factor on the scores.
        enable_gqa: Whether several heads of the queries share one of the keys and values.
    """

    def __init__(self, dropout_p: float, is_causal: bool, scale: float | None, enable_gqa: bool) -> None:
        super().__init__()
        self.dropout_p, self.is_causal, self.scale, self.enable_gqa = dropout_p, is_causal, scale, enable_gqa

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend: ``(..., queries, width)``, ``(..., keys, width)``, ``(..., keys, value width)``."""
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask,
            self.dropout_p if self.training else 0.0,
            self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"dropout_p={self.dropout_p}, is_causal={self.is_causal}, scale={self.scale}"


def attention_recipes(small: Captured, path_of: Callable[[fx.Node], str]) -> dict[fx.Node, Recipe]:
    """Recipes for the fused attention calls that drop attention weights in training.

    Which do is found by running the model once in training mode on tensors without data. Where that fails (a
    forward that looks at values, or no model), the calls stay as they are in evaluation.
    """
    target = torch.ops.aten.scaled_dot_product_attention.default
    calls = [node for node in small.graph.nodes if node.op == "call_function" and node.target is target]
    if not calls or small.model is None:
        return {}
    seen = _dropout_in_training(small.model, small)
    recipes: dict[fx.Node, Recipe] = {}
    for node in calls:
        probabilities = seen.get(path_of(node), set())
        a = bound_arguments(node)
        if len(probabilities) == 1 and a["dropout_p"] == 0.0 and max(probabilities) > 0:
            settings = {name: a[name] for name in ("is_causal", "scale", "enable_gqa")}
            settings["dropout_p"] = max(probabilities)
            inputs = (a["query"], a["key"], a["value"], a["attn_mask"])
            recipes[node] = Recipe(FusedAttention, settings, inputs=inputs, always=True)
    return recipes


def _dropout_in_training(model: nn.Module, small: Captured) -> dict[str, set[float]]:
    """Path of a module -> the dropout probabilities of the fused attention calls that its forward makes."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, Tensor) else value

    state = {name: fake(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    args, kwargs = pytree.tree_map(fake, (small.run_inputs.args, small.run_inputs.kwargs))
    with left_as_found(model), _paths(model) as path, mode, torch.no_grad(), _Attentions(path) as attentions:
        for module in model.modules():
            module.training = True
        try:
            torch.func.functional_call(model, state, args, kwargs)
        except Exception:  # noqa: BLE001  the forward of training may do what tensors without data cannot
            return {}
    return attentions.seen


@contextmanager
def _paths(model: nn.Module) -> Iterator[list[str]]:
    """The paths of the modules whose forward is running, the innermost last."""
    names = {id(module): name for name, module in model.named_modules()}
    running = [""]

    def enter(module: nn.Module, inputs: Any) -> None:
        running.append(names.get(id(module), running[-1]))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


class _Attentions(TorchFunctionMode):
    def __init__(self, path: list[str]) -> None:
        super().__init__()
        self.path = path
        self.seen: dict[str, set[float]] = defaultdict(set)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.seen[self.path[-1]].add(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
        elif func is F.multi_head_attention_forward:  # what it calls is out of the mode's sight
            self.seen[self.path[-1]].add(args[10] if kwargs.get("training", True) else 0.0)
        return func(*args, **kwargs)
