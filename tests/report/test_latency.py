"""Latency: the median of warm runs, taken in turns, with nothing changed afterwards."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.inputs import Inputs
from prunus.report.latency import measure_latency_ms, measure_many


class Sleeper(nn.Module):
    """Takes a known time; notes the circumstances of every call in a log."""

    def __init__(self, name: str, log: list[Any], seconds: list[float]) -> None:
        super().__init__()
        self.inner = nn.Dropout()
        self.name, self.log, self.seconds = name, log, list(seconds)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        time.sleep(self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0])
        self.log.append(
            (self.name, self.training, self.inner.training, torch.is_grad_enabled(), torch.get_num_threads())
        )
        return x * scale


def test_the_median_of_warm_runs() -> None:
    # slow while it warms up, and an outlier later: a mean, or timing from the first run on, would show it
    slow_start = [0.05, 0.05, 0.05, 0.004, 0.08, 0.004]
    latency_ms = measure_latency_ms(Sleeper("a", [], slow_start), torch.randn(2), repeats=9)
    assert 4 <= latency_ms < 30


def test_modules_take_turns() -> None:
    log: list[Any] = []
    modules = {"a": Sleeper("a", log, [0.0]), "b": Sleeper("b", log, [0.003])}
    times_ms = measure_many(modules, torch.randn(2), repeats=4)
    order = "".join(name for name, *_ in log)
    assert order[-8:] == "abbaabba"
    assert list(times_ms) == ["a", "b"]
    assert times_ms["b"] >= 3 > times_ms["a"]


def test_circumstances_and_that_they_are_restored() -> None:
    log: list[Any] = []
    module = Sleeper("a", log, [0.0])
    module.inner.eval()
    threads = torch.get_num_threads()
    measure_latency_ms(module, torch.randn(2), repeats=2, threads=3)
    assert set(log) == {("a", False, False, False, 3)}
    assert torch.get_num_threads() == threads
    assert module.training and not module.inner.training
    assert torch.is_grad_enabled()


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no")


def test_restored_after_an_error() -> None:
    threads = torch.get_num_threads()
    module = Breaks()
    with pytest.raises(RuntimeError, match="no"):
        measure_latency_ms(module, torch.randn(2), threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert module.training


def test_keyword_inputs() -> None:
    assert (
        measure_latency_ms(Sleeper("a", [], [0.0]), Inputs((torch.randn(2),), {"scale": 2.0}), repeats=1) >= 0
    )


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"threads": 0}])
def test_nonsense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"at least 1"):
        measure_latency_ms(nn.Identity(), torch.randn(2), **wrong)


def test_a_wider_network_is_slower() -> None:
    nets = {str(width): nn.Sequential(*(nn.Linear(width, width) for _ in range(4))) for width in (64, 512)}
    times_ms = {
        name: measure_latency_ms(net, torch.randn(64, int(name)), repeats=5) for name, net in nets.items()
    }
    assert times_ms["512"] > 3 * times_ms["64"]
