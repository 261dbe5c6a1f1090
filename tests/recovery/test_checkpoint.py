"""A repair that was killed goes on where it was."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import ConfigError

from .test_recover import Residual, smooth

recovering = importlib.import_module("prunus.recovery.recover")
checkpoints = importlib.import_module("prunus.recovery.checkpoint")


class KilledError(Exception):
    pass


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many layers were fitted, and how many passes over the data were made for the criterion."""
    calls = {"fits": 0, "passes": 0}

    def counting(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(recovering, "compensate", counting("fits", recovering.compensate))
    monkeypatch.setattr(checkpoints, "collect", counting("passes", checkpoints.collect))
    return calls


def run(
    model: nn.Module, data: list[torch.Tensor], folder: Path | None, kill_after: int | None = None
) -> prunus.Result:
    done = 0

    def progress(state: Any) -> None:
        nonlocal done
        done += state.batches > 0
        if kill_after is not None and done > kill_after:
            raise KilledError

    return prunus.compress(
        model,
        data[0][:2],
        target=prunus.Target(macs=0.5),
        data=data,
        checkpoint=folder,
        progress=progress,
        allow_bias=True,
    )


def test_it_goes_on_where_it_was(tmp_path: Path, counted: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, data = Residual().eval(), smooth(16)
    wanted = run(model, data, None).model.state_dict()
    whole = counted["fits"]
    assert whole >= 3 and counted["passes"] == 0

    counted.update(fits=0)
    folder = tmp_path / "noted"
    with pytest.raises(KilledError):
        run(model, data, folder, kill_after=len(data) + 1)
    before, counted["fits"] = counted["fits"], 0
    assert 0 < before < whole and counted["passes"] == 1
    result = run(model, data, folder)
    assert counted["fits"] == whole - before and counted["passes"] == 1
    found = result.model.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    assert result.report.recovery is not None and len(result.report.recovery["repairs"]) >= whole - 1
    assert not folder.exists()


def test_other_weights_or_data_start_anew(tmp_path: Path, counted: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, data = Residual().eval(), smooth(16)
    with pytest.raises(KilledError):
        run(model, data, tmp_path, kill_after=len(data) + 1)
    with torch.no_grad():
        model.head.weight.mul_(2)
    run(model, data, tmp_path)
    run(model, [x + 1 for x in data], tmp_path)
    assert counted["passes"] == 3


def test_a_damaged_file_counts_as_none(tmp_path: Path, counted: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, data = Residual().eval(), smooth(16)
    with pytest.raises(KilledError):
        run(model, data, tmp_path, kill_after=len(data) + 1)
    first, counted["fits"] = counted["fits"], 0
    noted = sorted(tmp_path.glob("*/repair-*/*.safetensors"))
    assert len(noted) >= first
    for file in noted:
        file.write_bytes(b"nothing")
    assert run(model, data, tmp_path).report.recovery is not None
    assert counted["fits"] > first


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file: pass the path of a folder"):
        run(Residual().eval(), smooth(8), tmp_path / "file")
