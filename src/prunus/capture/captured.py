"""The result of a capture, and all that later stages know about the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from prunus.capture.parts import Partial
from prunus.capture.shapes import Shapes
from prunus.capture.twins import Twin
from prunus.inputs import Inputs

__all__ = ["Captured"]


@dataclass(frozen=True)
class Captured:
    """A model as a graph of ATen calls in which parameters, buffers and constants are ordinary values.

    The graph is not decomposed and not functionalised: convolutions, norms and attention are single calls,
    and in-place operators stay in place.

    Attributes:
        graph: Placeholders (one for each parameter, buffer, constant and leaf of the inputs), then calls,
            then one output node whose ``args[0]`` is a flat tuple. ``node.meta`` keeps ``val`` (fake
            tensors), ``nn_module_stack`` and ``stack_trace``. ``get_attr`` nodes occur only as the bodies
            of control flow operators (``while_loop`` and the like), which no later stage looks into; both branches
            of a ``cond`` are part of the graph.
        tensors: Placeholder name -> the user's own tensor (not a copy).
        names: Placeholder name -> qualified name in the model, such as ``layer1.0.conv1.weight``; constants
            get a unique name of that form.
        kinds: Placeholder name -> ``"parameter"``, ``"buffer"`` or ``"constant"``.
        aliases: Qualified name -> the other qualified names of the same tensor (tied weights).
        inputs: Placeholders of the inputs, one for each leaf of ``in_spec`` in its order. A leaf that is no
            tensor (None, a number, a string) has a placeholder without users whose ``val`` is that constant.
        in_spec: Pytree of ``(args, kwargs)``.
        out_spec: Pytree of what ``forward`` returns.
        example: The example inputs as given.
        run_inputs: The inputs that the graph was captured with: the example, with a batch of 1 repeated to 2. Where only parts
            could be captured, larger dynamic batches are cut to 2.
        others: Further examples of the sizes of ``run_inputs``.
        shapes: What the inputs have to look like: which sizes are free, which are fixed.
        batch: Size of the dynamic batch in ``run_inputs``, or None when the graph holds for one batch size.
        static_reason: Why the batch is not dynamic; None when it is.
        model: The user's model (what a wrapper such as ``DataParallel`` or ``torch.compile`` holds, not the
            wrapper); None when the source was an exported program.
        left_out: Outputs that torch cannot take apart, such as a cache of keys and values. The graph returns
            None in their place.
        packed: The model packs sequences, and the graph holds as though all had full length: only the user's own class packs.
        partial: What is known besides when only parts of the model could be captured: then ``model`` calls these parts
            one after another on ``run_inputs``, and is not what the user passed.
        unsettled: Nodes of a model made by surgery at which only numbers can tell whether the operands fit.
        twins: Placeholder -> tensors on the same memory that the model's code holds besides.
        outputs: What the user says of each leaf of the output, see `with_outputs`: ``"keep"``, ``"free"`` (it may get narrower)
            or ``"drop"`` (the graph returns None in its place); empty where all keep their shapes.
    """

    graph: torch.fx.Graph
    tensors: dict[str, Tensor]
    names: dict[str, str]
    kinds: dict[str, str]
    aliases: dict[str, tuple[str, ...]]
    inputs: tuple[str, ...]
    in_spec: TreeSpec
    out_spec: TreeSpec
    example: Inputs
    run_inputs: Inputs
    batch: int | None
    others: tuple[Inputs, ...] = ()
    shapes: Shapes = field(default_factory=Shapes)
    model: nn.Module | None = None
    static_reason: str | None = None
    left_out: tuple[str, ...] = ()
    packed: bool = False
    partial: Partial | None = None
    unsettled: tuple[str, ...] = ()
    twins: dict[str, tuple[Twin, ...]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()

    @property
    def owner(self) -> nn.Module | None:
        """The user's whole model; None when the source was an exported program."""
        return self.partial.whole if self.partial else self.model

    def output_state(self, leaf: int) -> str:
        """What the user says of one leaf of the output."""
        return self.outputs[leaf] if self.outputs else "keep"

    @property
    def is_program(self) -> bool:
        """Whether the graph computes what the model does: not where it holds parts alone, or packed sequences."""
        return self.partial is None and not self.packed

    def with_(self, **changes: Any) -> Captured:
        """Return a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def input_dependent(self) -> set[torch.fx.Node]:
        """Values that change with the inputs, or whose shape does."""
        found: set[torch.fx.Node] = set()
        inputs = set(self.inputs)
        for node in self.graph.nodes:
            if node.name in inputs or any(operand in found for operand in node.all_input_nodes):
                found.add(node)
        return found
