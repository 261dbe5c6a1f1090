"""What the cut network must compute: the original graph on numbers, masked.

This shares nothing with the code that slices: it knows labels and the meaning of operators, no indices to
gather. A removed position may hold anything; it is masked by whatever could carry it into a kept one.
Movement and elementwise operators cannot, so they run as they are.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.errors import VerificationError
from prunus.inputs import Inputs
from prunus.surgery.masks import Masks, check_fits, fill, varies
from prunus.surgery.place import place_of
from prunus.surgery.precision import OnePrecision, at_precision, is_bitcast
from prunus.surgery.reference_norms import NORMS, weight_norm
from prunus.surgery.reference_operators import is_transparent, spatial_axes
from prunus.surgery.reference_reductions import NEUTRAL, STATISTICS, attention, neutral, reduced_axes

__all__ = ["Interpreter", "masked_outputs"]


def masked_outputs(
    captured: Captured, tracks: dict[str, Any], keep: Tensor, inputs: Inputs, dtype: torch.dtype
) -> list[Any]:
    """Outputs of the original network with everything that is not kept masked.

    Args:
        captured: The original network.
        tracks: Node name -> its label tensors, for inputs of the shapes of ``captured.run_inputs``.
        keep: One boolean for each label: does what carries it stay.
        inputs: Inputs of exactly those shapes.
        dtype: Precision of all floating point computation, ``torch.float64`` or ``torch.float32``.

    Returns:
        The leaves of the output pytree. Normalisations, softmax and means run over what is kept only.
    """
    interpreter = Interpreter(captured, inputs, dtype, Masks(tracks, keep))
    for _ in interpreter.steps():
        pass
    return interpreter.outputs


class Interpreter:
    """Runs a captured graph node by node on real numbers, masked or (without masks) as it is.

    The tensors of the model and of the inputs are never written to.
    """

    def __init__(
        self, captured: Captured, inputs: Inputs, dtype: torch.dtype, masks: Masks | None = None
    ) -> None:
        self.captured = captured
        self.dtype = dtype
        self.masks = masks or Masks({}, torch.empty(0))
        self.outputs: list[Any] = []
        self._sources = {**captured.tensors, **_leaves_by_name(captured, inputs)}
        self._values: dict[fx.Node, Any] = {}
        self._writes = any(_is_mutable(node.target) for node in captured.graph.nodes)

    @torch.no_grad()
    def load(self, name: str) -> Any:
        """The tensor behind a placeholder at the precision of this run; a copy if it may be written to."""
        given = self._sources.get(name)
        value = at_precision(given, self.dtype)
        if isinstance(value, Tensor):
            value = value.clone() if value is given and self._writes else value.detach()
        return value

    def steps(self) -> Iterator[tuple[fx.Node, Any]]:
        """Run, yielding every call with its value right after it. Values are freed after their last use."""
        graph = self.captured.graph
        last = _last_uses(graph)
        for node in graph.nodes:
            if node.op == "output":
                self.outputs = list(self._read(node.args[0]))
            elif node.op != "placeholder":  # those are loaded when first used
                with torch.no_grad():
                    try:
                        self._values[node] = self._step(node)
                    except (RuntimeError, TypeError) as error:
                        error.add_note(f"at {place_of(node)}")
                        raise
                yield node, self._values[node]
            for done in last.get(node, ()):
                self._values.pop(done, None)

    def _step(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return getattr(self.captured.graph.owning_module, str(node.target))
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            return target(*self._read(node.args), **self._read(node.kwargs))  # type: ignore[operator]
        # the mode brings fast depthwise convolutions; elsewhere it would cost more than it brings
        with OnePrecision(self.dtype) if "conv" in target._schema.name else nullcontext():
            result = self._operator(node, target)
        return pytree.tree_map(lambda x: at_precision(x, self.dtype), result)

    def _operator(self, node: fx.Node, target: torch._ops.OpOverload) -> Any:
        name = target._schema.name.removeprefix("aten::")
        if name.startswith("_assert"):
            return None
        by_data = name in ("batch_norm", "instance_norm") and self._uses_data(node, target)
        masks = self._masks_of(node, target)
        if not by_data and (not masks or is_transparent(target)):
            return target(*self._arguments(target, node.args), **self._arguments(target, node.kwargs))
        a = dict(self._arguments(target, _bind(node, target)))
        if name in NORMS:
            return NORMS[name](a, masks)
        if name in STATISTICS:
            result = STATISTICS[name](a, masks)
            return _call(target, a) if result is None else result
        if name in NEUTRAL:
            if varies(masks["self"], reduced_axes(a, a["self"].dim())):
                a["self"] = fill(a["self"], masks["self"], neutral(name, a))
            return _call(target, a)
        if name == "scaled_dot_product_attention":
            return _call(target, attention(a, masks))
        if name in ("_weight_norm", "_weight_norm_interface"):
            weight = weight_norm(a, masks, node.args[1].meta["val"].dtype)  # type: ignore[union-attr]
            if weight is None:
                return _call(target, a)
            return weight if name == "_weight_norm" else (weight, None)  # nothing reads such a norm
        return _call(target, _zeroed(target, a, masks, spatial_axes(name)))

    # ------------------------------------------------------------------ arguments
    def _read(self, arguments: Any) -> Any:
        return map_arg(arguments, self._value)

    def _value(self, node: fx.Node) -> Any:
        if node not in self._values:
            self._values[node] = self.load(node.name)
        return self._values[node]

    def _arguments(self, target: Any, arguments: Any) -> Any:
        """Arguments with nodes replaced by their values, and types by that of this run."""
        values = self._read(arguments)
        if is_bitcast(target):
            return values
        return map_aggregate(values, self._type)

    def _type(self, value: Any) -> Any:
        return at_precision(value, self.dtype) if isinstance(value, torch.dtype) else value

    def _masks_of(self, node: fx.Node, target: torch._ops.OpOverload) -> dict[str, Any]:
        """Argument name -> mask (or masks, for a list of tensors), for those that are partly removed."""
        found: dict[str, Any] = {}
        for name, argument in _bind(node, target).items():
            if isinstance(argument, fx.Node):
                mask = self._mask_of(argument)
                if mask is not None:
                    found[name] = mask
            elif isinstance(argument, list | tuple):
                masks = [self._mask_of(x) if isinstance(x, fx.Node) else None for x in argument]
                if any(mask is not None for mask in masks):
                    found[name] = masks
        return found

    def _mask_of(self, node: fx.Node) -> Tensor | None:
        mask = self.masks.of(node.name)
        if mask is not None:
            check_fits(mask, self._value(node), node.name)
        return mask

    def _uses_data(self, node: fx.Node, target: torch._ops.OpOverload) -> bool:
        a = _bind(node, target)
        return bool(a.get("training", a.get("use_input_stats", False)))


def _bind(node: fx.Node, target: torch._ops.OpOverload) -> dict[str, Any]:
    """The node's arguments by the names of the operator's schema, defaults filled in."""
    schema = target._schema.arguments
    bound = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    bound.update((argument.name, value) for argument, value in zip(schema, node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def _call(target: torch._ops.OpOverload, a: dict[str, Any]) -> Any:
    schema = target._schema.arguments
    positional = [a[argument.name] for argument in schema if not argument.kwarg_only]
    return target(
        *positional, **{argument.name: a[argument.name] for argument in schema if argument.kwarg_only}
    )


def _zeroed(
    target: torch._ops.OpOverload, a: dict[str, Any], masks: dict[str, Any], spatial: int
) -> dict[str, Any]:
    """Arguments with removed positions of floating point operands as zeros."""

    def zeroed(value: Any, mask: Any) -> Any:
        if isinstance(mask, list):
            return [zeroed(*pair) for pair in zip(value, mask, strict=True)]
        if mask is None or not (value.is_floating_point() or value.is_complex()):
            return value
        # pooling and resizing do not mix what lies along the leading axes
        if spatial and not varies(mask, range(value.dim() - spatial, value.dim())):
            return value
        return fill(value, mask)

    written = {x.name for x in target._schema.arguments if x.alias_info is not None and x.alias_info.is_write}
    return {name: value if name in written else zeroed(value, masks.get(name)) for name, value in a.items()}


def _is_mutable(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the nodes whose values nobody needs after it."""
    done: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for used in (node, *node.all_input_nodes):
            if used not in seen:
                seen.add(used)
                done.setdefault(node, []).append(used)
    return done


def _leaves_by_name(captured: Captured, inputs: Inputs) -> dict[str, Any]:
    leaves, spec = pytree.tree_flatten((inputs.args, inputs.kwargs))
    if len(leaves) != len(captured.inputs):
        raise VerificationError(
            f"The model was captured with {len(captured.inputs)} input values {captured.in_spec}, and is now "
            f"to run on {len(leaves)}: {spec}."
        )
    return dict(zip(captured.inputs, leaves, strict=True))
