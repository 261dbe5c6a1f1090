"""How long scoring takes: all groups of large networks, on one thread."""

import time

import pytest
import torch

import prunus
from prunus.criteria import score_groups


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "vit_base_patch16_224"])
def test_scoring_large_networks(name: str) -> None:
    timm = pytest.importorskip("timm")
    structure = prunus.analyze(timm.create_model(name).eval(), torch.randn(2, 3, 224, 224))
    free = [g for g in structure.prunable if not g.outer]
    for method, most in ((prunus.L2Norm(), 1.0), (prunus.GeometricMedian(), 5.0)):
        times = []
        for _ in range(2):
            began = time.perf_counter()
            score_groups(structure, method, free, prunus.Options())
            times.append(time.perf_counter() - began)
        assert min(times) < most, f"{type(method).__name__}: {min(times):.2f} s"
