"""How long scoring takes: all groups of large networks, beside the bare products of their filters with each other."""

import time

import pytest
import torch

import prunus
from prunus.criteria import score_groups


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "vit_base_patch16_224"])
def test_scoring_large_networks(name: str) -> None:
    timm = pytest.importorskip("timm")
    structure = prunus.analyze(timm.create_model(name).eval(), torch.randn(2, 3, 224, 224), dynamic="none")
    free = [g for g in structure.prunable if not g.outer]
    model = structure.captured.model
    assert model is not None
    weights = [p.detach().flatten(1) for p in model.parameters() if p.dim() > 1]

    def products() -> None:
        for weight in weights:
            torch.mm(weight, weight.T)

    def seconds(work: object) -> float:
        began = time.process_time()
        work() if callable(work) else score_groups(structure, work, free, prunus.Options())  # type: ignore[arg-type]
        return time.process_time() - began

    rounds = [
        (seconds(products), seconds(prunus.L2Norm()), seconds(prunus.GeometricMedian())) for _ in range(3)
    ]
    bare, norms, medians = map(min, zip(*rounds, strict=True))
    assert norms < bare, f"L2: {norms:.2f} s, products {bare:.2f} s"
    assert medians < 5 * bare, f"geometric median: {medians:.2f} s, products {bare:.2f} s"
