"""Labels written by hand, so that the reference is tested without the code that finds them."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunus.capture import Captured, capture, size_of
from prunus.inputs import Inputs
from prunus.surgery.masks import Masks, fill
from prunus.surgery.precision import OnePrecision
from prunus.surgery.reference import masked_outputs
from prunus.surgery.verify import compare


class Hand:
    """A captured model and the labels put on its nodes."""

    def __init__(self, model: nn.Module, *inputs: Any) -> None:
        self.captured: Captured = capture(model.eval(), inputs)
        self.tracks: dict[str, tuple[Tensor, ...]] = {}
        self._nodes = {node.name: node for node in self.captured.graph.nodes}
        self._keep = [True]  # label 0 is never removed

    @property
    def keep(self) -> Tensor:
        return torch.tensor(self._keep)

    def labels(self, size: int, removed: set[int]) -> Tensor:
        """New labels for the indices of one axis."""
        first = len(self._keep)
        self._keep += [index not in removed for index in range(size)]
        return torch.arange(first, first + size)

    def put(self, labels: Tensor, names: str, *axes: int) -> None:
        """Add a track to nodes: the labels vary along the axes given, in their order."""
        for name in names.split():
            shape = size_of(self._nodes[name])
            wanted = [axis % len(shape) for axis in axes]
            assert math.prod(shape[axis] for axis in wanted) == labels.numel(), (name, shape)
            view = [shape[axis] if axis in wanted else 1 for axis in range(len(shape))]
            self.tracks[name] = (*self.tracks.get(name, ()), labels.reshape(view).expand(shape))


def kept(size: int, removed: set[int]) -> Tensor:
    return torch.tensor([index for index in range(size) if index not in removed])


def give(module: Any, source: Any, out: Tensor | None = None, into: Tensor | None = None) -> None:
    """Set a module's parameters and buffers to those of another, sliced along the first and second axis."""
    theirs = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    for name, mine in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
        value = theirs[name].detach()
        if value.dim() and out is not None:
            value = value[out]
        if value.dim() > 1 and into is not None:
            value = value[:, into]
        assert mine.shape == value.shape, (name, mine.shape, value.shape)
        mine.data = value.clone()


def shake(model: nn.Module) -> nn.Module:
    """Random values for everything that starts at one or zero, so that a mix-up of channels shows."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor)
    return model.eval()


def poison(hand: Hand) -> dict[str, Tensor]:
    """The model's tensors, with NaN in all that is removed."""
    masks = Masks(hand.tracks, hand.keep)
    tensors = {}
    for name, tensor in hand.captured.tensors.items():
        mask = masks.of(name)
        tensors[name] = tensor if mask is None else fill(tensor.detach(), mask, float("nan"))
    return tensors


def assert_equal(hand: Hand, small: nn.Module, *inputs: Tensor, one_precision: bool = False) -> None:
    """The masked original and the small network agree to rounding, and removal does change the output."""
    captured = hand.captured
    wide = Inputs(tuple(x.double() for x in inputs), {})
    got = masked_outputs(captured, hand.tracks, hand.keep, wide, torch.float64)[0]
    with torch.no_grad(), OnePrecision(torch.float64) if one_precision else nullcontext():
        wanted = small.eval().double()(*wide.args)
    assert got.dtype == torch.float64
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))
    poisoned = captured.with_(tensors=poison(hand))
    assert torch.equal(got, masked_outputs(poisoned, hand.tracks, hand.keep, wide, torch.float64)[0])
    everything = masked_outputs(captured, {}, hand.keep, wide, torch.float64)[0]
    assert not torch.allclose(everything, wanted, rtol=1e-3, atol=1e-3)
    result = compare(captured, hand.tracks, hand.keep, small.float())
    assert result.passed and result.dtype == "float64" and result.inputs_checked == 2
    assert result.max_relative_error < 1e-12
