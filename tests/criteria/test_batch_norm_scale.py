"""The weights of the batch norms behind the layers that make a channel, and an error where there are none."""

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.criteria import BatchNormScale, Views
from prunus.errors import ConfigError
from tests.allocation.nets import Residual, network


def scores_of(model: nn.Module, x: Tensor, group: str) -> list[float]:
    structure = prunus.analyze(model, x)
    return BatchNormScale().score(Views(structure).group(structure.group(group))).tolist()


def test_coupled_layers_add_their_scales() -> None:
    model, x = network("residual")
    assert isinstance(model, Residual)
    with torch.no_grad():
        model.bn.weight[::2].neg_()
    a, b, inside = (n.weight.tolist() for n in (model.bn, model.bn2, model.bn1))
    assert scores_of(model, x, "add") == pytest.approx([abs(p) + abs(q) for p, q in zip(a, b, strict=True)])
    assert scores_of(model, x, "conv1") == pytest.approx([abs(p) for p in inside])


def test_a_depthwise_layer_adds_its_own() -> None:
    model, x = network("separable")
    a, b = (model.get_parameter(name).tolist() for name in ("1.weight", "4.weight"))
    assert scores_of(model, x, "conv2d") == pytest.approx(
        [abs(p) + abs(q) for p, q in zip(a, b, strict=True)]
    )


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_layers_and_transposed_layers(kind: type[nn.Conv2d]) -> None:
    model = nn.Sequential(kind(3, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([3.0, -1, 2, 0, -5, 4]))
    x = torch.randn(2, 3, 5, 5)
    assert scores_of(model, x, "0") == [3, 1, 2, 0, 5, 4]
    made = prunus.plan(prunus.analyze(model, x), method="bn_scale", target=prunus.Target(channels=0.5))
    assert made.keep == {"0": (0, 4, 5)} and made.method == "bn_scale"


def test_a_unit_of_several_channels_adds_theirs() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1)
    ).eval()
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.arange(12.0))
    assert scores_of(model, torch.randn(2, 3, 5, 5), "0") == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 8 + 9 + 10 + 11]


def test_a_layer_without_one_is_named() -> None:
    model, x = network("concatenated")
    structure = prunus.analyze(model, x)
    with pytest.raises(ConfigError) as caught:
        prunus.plan(structure, method="bn_scale", target=prunus.Target(channels=0.5))
    assert str(caught.value) == (
        "bn_scale: group 'left' has no batch normalization with weights right behind left. "
        "Leave it alone with hold=['left'], or use another method, such as 'l2'."
    )


def test_a_norm_without_weights_is_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 2, 1)).eval()
    with pytest.raises(ConfigError, match="no batch normalization with weights right behind 0"):
        scores_of(model, torch.randn(2, 3, 4, 4), "0")


def test_what_has_none_can_be_held() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1),
    ).eval()  # fmt: skip
    structure = prunus.analyze(model, torch.randn(2, 3, 4, 4))
    made = prunus.plan(structure, method="bn_scale", hold=["5"], target=prunus.Target(channels=0.5))
    assert {name: len(keep) for name, keep in made.keep.items()} == {"0": 4}
