"""A result is right at other sizes than the example's, or refuses them; never silently wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.surgery import axes_written_as_numbers
from tests.property import zeroed
from tests.property.form import Do, randomize


def bags(self: Do, x: Tensor) -> Tensor:
    """The offsets of the bags follow from the length."""
    return self.last(self.first(self.bag(x)).relu().view(-1, 4, 2).sum(2))


def mean_by_hand(self: Do, x: Tensor) -> Tensor:
    y = self.first(x).relu()
    return self.last((y.sum((2, 3)) / (x.shape[2] * x.shape[3])).view(-1, 4, 2).sum(2))


def pyramid(self: Do, x: Tensor) -> Tensor:
    y = self.first(x)
    low = F.max_pool2d(y, 2)
    return self.last((y + F.interpolate(low, size=y.shape[2:])).unflatten(1, (4, 2)).sum(2))


def tokens(self: Do, x: Tensor) -> Tensor:
    n, length, _ = x.shape
    heads = self.first(x).view(n, length, 2, 4).transpose(1, 2)
    weights = (heads @ heads.transpose(2, 3) / length).softmax(3)
    return self.last((weights @ heads).transpose(1, 2).reshape(n, length, 8).unflatten(2, (4, 2)).sum(3))


def padded(self: Do, x: Tensor) -> Tensor:
    y = F.pad(self.first(x), (0, 0, 0, -x.shape[1] % 4))
    return self.last(y.view(x.shape[0], -1, 4, 8).mean(2).unflatten(2, (4, 2)).sum(3))


Case = tuple[Callable[[], nn.Module], Tensor, list[Tensor]]
IMAGES = [(1, 16, 16), (3, 8, 12), (2, 24, 8)]


def made(name: str) -> Case:
    first, last = nn.Linear(5, 8), nn.Linear(4, 3)
    if name == "bags":
        bag = nn.EmbeddingBag(20, 6, mode="mean")
        others = [torch.randint(0, 20, size) for size in ((4, 5), (1, 9), (2, 2))]
        return (
            Do("bags", bags, bag=bag, first=nn.Linear(6, 8), last=last),
            torch.randint(0, 20, (4, 6)),
            others,
        )
    if name in ("mean_by_hand", "pyramid"):
        last = last if name == "mean_by_hand" else nn.Conv2d(4, 3, 1)
        model = Do(name, globals()[name], first=nn.Conv2d(3, 8, 3, padding=1), last=last)
        return model, torch.randn(2, 3, 16, 16), [torch.randn(n, 3, h, w) for n, h, w in IMAGES]
    sizes = ((1, 6), (3, 4), (2, 9))
    return (
        Do(name, globals()[name], first=first, last=last),
        torch.randn(2, 6, 5),
        [torch.randn(*s, 5) for s in sizes],
    )


@pytest.mark.parametrize("name", ["bags", "mean_by_hand", "pyramid", "tokens", "padded"])
def test_graphs_are_right_at_every_size_that_the_original_takes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example, others = made(name)
    model = randomize(model, 0).eval()
    result = prunus.compress(model, example, target=prunus.Target(channels=0.5))
    result.save(tmp_path / "out")
    loaded = prunus.load(tmp_path / "out")
    keep = result.structure.keep_labels(result.plan.keep)  # type: ignore[union-attr]
    checked = 0
    for x in (example, *others):
        expected: Any = zeroed.outputs(result.structure, keep, (x,)).float()  # type: ignore[arg-type]
        for small in (result.model, loaded):
            try:
                got = small(x)
            except prunus.InputError:
                continue
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked >= 6


class Remembers(nn.Module):
    """Does something else while it is exported, unless the length is six."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scale = 1.0 if torch.compiler.is_exporting() else x.shape[1] / 6
        return self.last(self.first(x * scale).relu().unflatten(2, (4, 2)).sum(3))


def test_a_graph_that_is_not_the_model_elsewhere_is_bound_to_the_example() -> None:
    torch.manual_seed(0)
    model, x = Remembers().eval(), torch.randn(2, 6, 5)
    result = prunus.compress(model, x, target=prunus.Target(channels=0.5))
    assert result.report.form == "graph"
    result.model(x)
    with pytest.raises(prunus.InputError, match="Axis 1 of the input x has size 4"):
        result.model(torch.randn(2, 4, 5))


def test_a_batch_that_is_merged_with_channels_and_cut_is_fixed() -> None:
    def merged(self: Do, x: Tensor) -> Tensor:
        y = self.first(x).flatten(0, 1)  # (N * 8,)
        return self.last(y[8:].view(-1, 4, 2).sum(2).relu())

    model = Do("merged", merged, first=nn.Linear(5, 8), last=nn.Linear(4, 3)).eval()
    structure = prunus.analyze(model, torch.randn(2, 5))
    assert structure.captured.shapes.sizes == ((2, 5),)
    assert not axes_written_as_numbers(structure)


def test_wrong_kinds_of_inputs_are_refused() -> None:
    torch.manual_seed(0)
    model, x, _ = made("bags")
    result = prunus.compress(model.eval(), x, target=prunus.Target(channels=0.5))
    for wrong in (torch.randn(4, 6), torch.ones(4, 6, 1, dtype=torch.long), [1, 2]):
        with pytest.raises(prunus.InputError):
            result.model(wrong)


def test_a_saved_class_refuses_what_its_graph_does_not_hold_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6, 2)).eval()
    result = prunus.compress(net, torch.randn(2, 3, 8), target=prunus.Target(channels=0.5))
    result.save(tmp_path / "out")
    loaded = prunus.load(tmp_path / "out")
    x = torch.randn(1, 3, 8)
    torch.testing.assert_close(loaded(x), result.model(x))
    with pytest.raises(prunus.InputError, match=r"size\(2\)|Axis 2"):
        loaded(torch.randn(2, 3, 9))


@pytest.mark.slow
def test_the_onnx_file_has_the_same_free_axes(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, example, others = made("pyramid")
    result = prunus.compress(model.eval(), example, target=prunus.Target(channels=0.5))
    result.save(tmp_path / "out", onnx=True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    name = session.get_inputs()[0].name
    for x in others:
        got = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
        torch.testing.assert_close(got, result.model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(Exception, match=r"(?i)dimension"):
        session.run(None, {name: torch.randn(1, 4, 8, 8).numpy()})
