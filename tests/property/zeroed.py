"""A reference that shares nothing with surgery and verification: the user's own model with zeros in its weights.

Whatever a weight has for a removed channel, as producer or as consumer, is set to zero. Where no operator mixes
channels other than through a weight, that removes the channel.
"""

import numpy as np
import torch
from torch import Tensor, fx
from torch.func import functional_call

from prunus import Result
from prunus.capture import Captured
from prunus.structure import Structure

# mixes channels without a weight, so that a channel of zeros (or what an activation makes of it) still counts
MIXERS = """layer_norm rms_norm group_norm softmax log_softmax mean sum prod var std norm linalg_vector_norm max min amax
amin argmax argmin sort topk cumsum logsumexp rsqrt matmul bmm baddbmm einsum scaled_dot_product_attention addmm""".split()


def mixes(captured: Captured) -> bool:
    return any(node.op == "call_function" and _mixes(node) for node in captured.graph.nodes)


def _mixes(node: fx.Node) -> bool:
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    # by the statistics of what it is given: of a weight, say, that is standardized
    by_data = name == "batch_norm" and bool(node.args[5])
    return name in MIXERS or by_data


def mixes_channels(structure: Structure) -> bool:
    """The same, but means and the like over axes along which nothing can be removed do not count."""
    calls = [node for node in structure.captured.graph.nodes if node.op == "call_function"]
    return any(_mixes(node) and not _over_space(structure, node) for node in calls)


def _over_space(structure: Structure, node: fx.Node) -> bool:
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    if name not in ("mean", "sum", "amax", "max", "var", "std") or len(node.args) < 2:
        return False
    value = structure.values[node.args[0].name]  # type: ignore[union-attr]
    given = node.args[1]
    axes = given if isinstance(given, (list, tuple)) else [given]
    if not all(isinstance(axis, int) for axis in axes):
        return False
    return not {axis % len(value.shape) for axis in axes} & value.varying()  # type: ignore[operator]


def counts_on(result: Result) -> bool:
    """Whether something that left was constant, and counts on in the biases of what reads it, where zeros would not."""
    return any(note.startswith("constants of removed channels") for note in result.report.notes)


@torch.no_grad()
def outputs(structure: Structure, keep: np.ndarray, inputs: tuple[Tensor, ...]) -> Tensor:
    """What the original returns, in float64, with zeros for every label that is not in `keep`."""
    captured = structure.captured
    assert captured.model is not None
    weights = {captured.names[p]: tensor.detach().double().clone() for p, tensor in captured.tensors.items()}
    for place in structure.labels.places:
        gone = np.flatnonzero(~keep[place.start : place.start + place.size])
        if captured.kinds[place.placeholder] == "parameter" and len(gone):
            weights[captured.names[place.placeholder]].index_fill_(place.axis, torch.from_numpy(gone), 0)
    own = {name for name, _ in captured.model.named_parameters()}
    own |= {name for name, _ in captured.model.named_buffers()}
    model = {name: tensor for name, tensor in weights.items() if name in own}
    double = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    return functional_call(captured.model, model, double)
