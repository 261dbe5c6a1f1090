"""Values that do not fit into memory wait in files: the same numbers, with less memory."""

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.capture import capture
from prunus.errors import ConfigError
from prunus.recovery import recover
from prunus.recovery.footprint import Footprint, footprint, shared_out
from prunus.recovery.lane import Lane
from prunus.recovery.store import spill_folder
from tests.recovery.test_recover import Residual, removed, smooth

REMOVED = {"conv1": [1], "inner1": [0, 3, 5, 7]}


def alive() -> int:
    """Bytes of all dense tensors that there are: others are of other tests."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        dense = type(thing) in (Tensor, nn.Parameter) and thing.layout == torch.strided
        if dense and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("resident", [0, 1])
def test_the_same_numbers_with_less_memory(
    resident: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    torch.manual_seed(0)
    model = Residual().eval()
    data = smooth(32, batches=4, size=24)
    structure, small, keep = removed(model, data[0][:2], REMOVED)
    start, most, files = alive(), {"memory": 0, "disk": 0}, {"memory": 0, "disk": 0}

    def run(where: str, budget: int) -> tuple:
        def look(_: object) -> None:
            most[where] = max(most[where], alive() - start)
            files[where] = max(files[where], len(list(tmp_path.rglob("*.pt"))))

        return recover(structure, small, keep, data, progress=look, budget_bytes=budget)

    free, at_ease = run("memory", 10**12)
    assert at_ease.disk_bytes == 0 and files["memory"] == 0
    bounded, pressed = run("disk", 0 if resident == 0 else most["memory"] * 3 // 4)
    assert pressed.disk_bytes > 0 and files["disk"] >= 2
    assert most["disk"] < (0.4 if resident == 0 else 0.9) * most["memory"]
    assert pressed.repairs == at_ease.repairs and pressed.left == at_ease.left
    assert all(torch.equal(free.tensors[name], bounded.tensors[name]) for name in free.tensors)
    assert not list(tmp_path.glob("prunus-*"))


def test_the_files_are_gone_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    torch.manual_seed(0)
    data = smooth(8)
    structure, small, keep = removed(Residual().eval(), data[0][:2], REMOVED)

    def fail(_: object) -> None:
        assert list(tmp_path.rglob("*.pt"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(structure, small, keep, data, progress=fail, budget_bytes=0)
    assert not list(tmp_path.glob("prunus-*"))


def test_no_room_on_the_disk_is_said_before() -> None:
    with (
        pytest.raises(ConfigError, match=r"needs 1000000000.0 GB .* TMPDIR"),
        spill_folder(10**18),
    ):
        pass


class InPlace(nn.Module):
    """Writes to values, to views of values and to what the caller passed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        y = self.first(x)
        half = y[:, :3]
        self.seen.add_(1)
        z = self.second(y)
        half.relu_()
        return torch.relu_(z) + y + self.seen + x


def test_views_stay_views_in_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = InPlace().eval()
    data = [torch.randn(5, 6) for _ in range(3)]
    expected: list[Tensor] = [
        model(x.clone()) - torch.arange(i, i + 1) for i, x in enumerate(data)
    ]  # the buffer counts
    model.seen.zero_()
    captured = capture(model, data[0].clone())
    before = [x.clone() for x in data]
    results = []
    for folder in (None, tmp_path):
        lane = Lane(captured, captured.tensors, [(x,) for x in data], folder, resident=0)
        for node in lane.nodes:
            if node.op == "call_function":
                for i in range(len(data)):
                    with lane.batch(i, node, inclusive=True):
                        pass
        output = lane.nodes[-1]
        got = []
        for i in range(len(data)):
            with lane.batch(i, output, inclusive=False) as values:
                got.append(values[output.args[0][-1]].clone())  # type: ignore[index]
        results.append(got)
    for plain, stored, wanted in zip(*results, expected, strict=True):
        assert torch.equal(plain, stored) and torch.allclose(plain, wanted, atol=1e-6)
    assert all(torch.equal(x, y) for x, y in zip(data, before, strict=True))
    assert torch.equal(model.seen, torch.zeros(6))


def test_the_estimate_is_what_it_takes() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    data = smooth(32, batches=3, size=24)
    captured = capture(model, data[0][:2])
    by_name = {node.name: node for node in captured.graph.nodes}
    stops = [n for n in by_name.values() if n.target is torch.ops.aten.conv2d.default]
    start = alive()
    lane = Lane(captured, captured.tensors, [(x.clone(),) for x in data])
    most = 0
    for node in stops:
        for i in range(3):
            with lane.batch(i, node, inclusive=True):
                pass
        most = max(most, alive() - start)
    estimate = 3 * footprint(captured, [(node, True) for node in stops], 32).kept
    assert most <= estimate <= 1.3 * most


def test_batches_stay_in_memory_as_far_as_it_goes() -> None:
    needs = [Footprint(kept=10, peak=15)] * 4
    cpu = torch.device("cpu")
    assert shared_out(needs, 55, cpu).resident == 4 and shared_out(needs, 55, cpu).disk_bytes == 0
    assert shared_out(needs, 54, cpu).resident == 3 and shared_out(needs, 54, cpu).disk_bytes == 10
    assert shared_out(needs, 0, cpu).resident == 0 and shared_out(needs, 0, cpu).disk_bytes == 40
    assert shared_out(needs, None, cpu).resident == 4  # half of what is free here is more than 55 bytes
