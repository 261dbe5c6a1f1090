"""Known convolutional networks, half of their channels gone, against their own weights with zeros.

The second reference shares nothing with surgery and verification, and holds where only weights (and convolutions) mix
channels: for networks without attention, and without norms over channels. The networks come from a folder of definitions
next to the repository; without it these tests are skipped.
"""

import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.api import execute
from prunus.structure import Structure
from tests.property import zeroed

FILE = Path(prunus.__file__).parents[3] / "shared" / "zoo" / "zoo.py"
SECONDS = (
    900  # for all of them together; those that are not reached are skipped, and others come first next time
)
NETWORKS = """
tv/resnet18 tv/squeezenet1_1 tv/mobilenet_v2 tv/mobilenet_v3_small tv/mnasnet0_5 tv/regnet_y_400mf tv/shufflenet_v2_x0_5 timm/repvgg_a0
timm/seresnet18 timm/resnetblur18 timm/resnetv2_18 timm/dla46x_c timm/mobilenetv4_conv_small timm/mobilenet_edgetpu_100 timm/lcnetv2_small
timm/semnasnet_050 timm/spnasnet_100 timm/efficientnet_lite0 timm/gernet_s timm/ghostnetv3_050 timm/hardcorenas_b timm/regnety_002
timm/ese_vovnet19b_slim_dw timm/resnext26ts timm/ecaresnet26t timm/cspnext_tiny timm/hgnetv2_b0 timm/rexnet_100 timm/mobilenetv3_large_100
timm/mixnet_s timm/nf_resnet50 timm/res2net50_26w_4s timm/fbnetv3_b timm/legacy_xception timm/xception41p timm/regnetz_b16 timm/cspresnext50
timm/darknetaa53 timm/inception_v4 tv/alexnet tv/densenet121 tv/googlenet tv/efficientnet_b0 tv/inception_v3 tv/vgg11_bn
""".split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FILE.is_file(), reason=f"needs definitions of architectures: {FILE} does not exist"
    ),
]
started: list[float] = []


@pytest.fixture(scope="module")
def specs() -> Iterator[dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("zoo_of_tests", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
        yield {spec.name: spec for spec in module.get_specs()}
    torch.set_num_threads(threads)
    del sys.modules[spec.name]


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_channels_are_as_if_they_were_zeros(name: str, specs: dict[str, Any]) -> None:
    started.append(time.monotonic())
    if started[-1] - started[0] > SECONDS:
        pytest.skip(f"{SECONDS} seconds are over")
    if name not in specs:
        pytest.skip("not among the definitions")
    model = specs[name].build()
    args, kwargs = specs[name].inputs()
    if kwargs or not all(isinstance(x, torch.Tensor) for x in args):
        pytest.skip("inputs are not tensors alone")
    structure = prunus.analyze(model, tuple(args))
    if zeroed.mixes_channels(structure):
        pytest.skip("an operator other than a layer mixes channels")
    result = execute(structure, prunus.plan(structure, target=prunus.Target(channels=0.5)), verify=False)
    assert result.report.after.params < result.report.before.params
    assert difference(structure, result, tuple(args)) <= 1e-5


def difference(structure: Structure, result: prunus.Result, inputs: tuple[torch.Tensor, ...]) -> float:
    """From the original with zeros, in float64, relative to the largest output."""
    expected = leaves(zeroed.outputs(structure, structure.keep_labels(dict(result.plan.keep)), inputs))
    double = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    with torch.no_grad():
        found = leaves(result.model.double()(*double))
    scale = max(float(y.abs().max()) for y in expected)
    return max(float((x - y).abs().max()) for x, y in zip(found, expected, strict=True)) / scale


def leaves(output: Any) -> list[torch.Tensor]:
    """The tensors of an output, in order."""
    return [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]
