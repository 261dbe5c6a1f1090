"""What all tests share: fixed seeds, one thread, no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

import prunus

torch.set_num_threads(1)

# the same examples on every run, so that a failure on one machine is a failure on all
settings.register_profile(
    "fixed", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _little_garbage() -> Iterator[None]:
    """Collections, of which there are many in an export, do not walk what others have left: torch alone is half a million objects."""
    prunus.analyze(torch.nn.Linear(2, 2), torch.randn(2, 2))  # whose modules come with the first export
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
