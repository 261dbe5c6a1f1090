"""The three flows, the options of scores and numbers, and calibration data, from the outside."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import prunus
from prunus.plan import Plan
from tests.cli.test_commands import BUILD, run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).standard_normal((20, 3, 12, 12)).astype(np.float32))
    return path


def planned(tmp_path: Path, *words: Any) -> Plan:
    path = tmp_path / "made.json"
    run("plan", BUILD, "-o", path, "--overwrite", *words)
    return Plan.load(path)


def test_automatic(tmp_path: Path) -> None:
    shown = run("compress", BUILD, "-o", tmp_path / "out", "--ratio", "0.5", "--allocation", "slamp").stdout
    assert "Pruned by l2 to channels=0.5, ratio=0.5 (slamp allocation)." in shown
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["allocation"] == "slamp" and report["target"] == {"channels": 0.5, "ratio": 0.5}


def test_recommendation_then_by_hand(tmp_path: Path) -> None:
    table = tmp_path / "layers.csv"
    shown = run("plan", BUILD, "--layers", table, "--ratio", "0.5", "--allocation", "slamp").stdout
    assert "2 of them filled in (l2, channels=0.5, ratio=0.5, slamp allocation)" in shown
    recommended = prunus.LayerTable.from_csv(table)
    assert all(row.kept is not None and row.kept < row.channels for row in recommended)
    first = next(iter(recommended))
    first.kept = 1
    recommended.to_csv(table)
    made = planned(tmp_path, "--edit", table, "--method", "l1")
    assert made.allocation == "manual" and len(made.keep[first.group]) == 1 and made.method == "l1"


def test_manual(tmp_path: Path) -> None:
    table = tmp_path / "layers.csv"
    assert "Fill in `kept`" in run("plan", BUILD, "--layers", table).stdout
    assert all(row.kept is None for row in prunus.LayerTable.from_csv(table))


def test_options_reach_the_plan(tmp_path: Path) -> None:
    words = "--macs 0.6 --layer-norm tss_norm --policy average --group-policy sum --step-size 2 --step-op round_down"
    made = planned(tmp_path, *words.split(), "--reshape-channel-axis", "-2", "--allocation", "isomorphic")
    assert made.allocation == "isomorphic"
    assert made.options == {
        "layer_norm": "tss_norm", "policy": "average", "group_policy": "sum", "step_size": 2, "step_op": "round_down",
        "reshape_channel_axis": -2,
    }  # fmt: skip
    assert all(len(keep) % 2 == 0 for keep in made.keep.values())


@pytest.mark.parametrize("method", ["nuclear_norm", "hrank", "flap"])
def test_data_from_one_array(tmp_path: Path, images: Path, method: str) -> None:
    made = planned(tmp_path, "--channels", "0.5", "--method", method, "--data", images, "--batch-size", "8")
    assert made.method == method and made.keep
    shown = run(
        "plan", BUILD, "-o", tmp_path / "p.json", "--channels", "0.5", "--method", method, "--data", images
    )
    assert "Looking at the data takes about" in shown.stderr


def test_labels_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(2):
        labels = torch.randint(0, 3, (10,))
        save_file({"image": torch.randn(10, 3, 12, 12), "labels": labels}, folder / f"{i}.safetensors")
    np.savez(tmp_path / "all.npz", image=np.zeros((4, 3, 12, 12), np.float32), labels=np.zeros(4, np.int64))
    assert planned(tmp_path, "--channels", "0.5", "--method", "taylor", "--data", folder).keep
    assert planned(tmp_path, "--channels", "0.5", "--method", "taylor", "--data", tmp_path / "all.npz").keep


def test_data_that_cannot_be_used(tmp_path: Path, images: Path) -> None:
    def refused(*words: Any, code: int = 1) -> str:
        said = run("plan", BUILD, "-o", tmp_path / "p.json", "--channels", "0.5", *words, code=code).stderr
        assert not (tmp_path / "p.json").exists()
        return " ".join(said.replace("│", " ").split())

    assert "nuclear_norm needs data" in refused("--method", "nuclear_norm")
    assert "batches carry no labels" in refused("--method", "taylor", "--data", images)
    (tmp_path / "data.pt").write_bytes(b"x")
    assert "is a pickle" in refused("--method", "flap", "--data", tmp_path / "data.pt")
    assert "calibration data comes as" in refused("--method", "flap", "--data", __file__)
    assert "there is no" in refused("--method", "flap", "--data", tmp_path / "missing.npy")
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    assert "cannot be read as data" in refused("--method", "flap", "--data", tmp_path / "objects.npy")
    np.save(tmp_path / "wide.npy", np.zeros((4, 4, 12, 12), np.float32))
    assert "has shape (4, 4, 12, 12); the model takes" in refused(
        "--method", "flap", "--data", tmp_path / "wide.npy"
    )
    np.save(tmp_path / "none.npy", np.zeros((0, 3, 12, 12), np.float32))
    assert "data is empty" in refused("--method", "flap", "--data", tmp_path / "none.npy")
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(4))
    assert "different numbers of samples" in refused("--method", "flap", "--data", tmp_path / "two.npz")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ratio", "1"], "1 is no share above 0 and below 1"),
        (["--ratio", "0"], "0 is no share above 0"),
        (["--ratio", "0.5", "--macs", "0.5"], "give one"),
        (
            ["--macs", "0.5", "--allocation", "best"],
            "'best' is none of uniform, global, slamp, isomorphic, erk",
        ),
        (["--macs", "0.5", "--layer-norm", "l2"], "'l2' is none of mean, standard_score, tss_norm"),
        (["--macs", "0.5", "--policy", "max"], "'max' is none of backward, average, sum"),
        (["--macs", "0.5", "--step-op", "up"], "'up' is none of round, round_up, round_down, none"),
        (["--macs", "0.5", "--reshape-channel-axis", "2"], "2 is none of 0, 1, -1, -2"),
    ],
)
def test_wrong_use(tmp_path: Path, words: list[str], said: str) -> None:
    result = run("plan", BUILD, "-o", tmp_path / "p.json", *words, code=2)
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_data_repairs_unless_that_is_not_wanted(tmp_path: Path, images: Path) -> None:
    shown = run(
        "compress", BUILD, "-o", tmp_path / "out", "--macs", "0.5", "--data", images, "--batch-size", "4"
    )
    assert "Pruned by obs to macs=0.5 (knapsack allocation" in shown.stdout and "Repaired: " in shown.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["recovery"]["samples"] == 20
    words = ("--macs", "0.5", "--data", images, "--no-recover")
    plain = run("compress", BUILD, "-o", tmp_path / "plain", *words)
    assert "Repaired" not in plain.stdout and "Pruned by obs" in plain.stdout
    assert json.loads((tmp_path / "plain" / "report.json").read_text())["recovery"] is None


def test_work_on_data_goes_on_after_an_interruption(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovering = importlib.import_module("prunus.recovery.recover")
    own, fitted = recovering.compensate, []

    def breaking(*args: Any) -> Any:
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(args[2])
        return own(*args)

    noted = tmp_path / "noted"
    words = ("compress", BUILD, "-o", tmp_path / "out", "--macs", "0.5", "--data", images)
    words = (*words, "--batch-size", "4", "--checkpoint", noted)
    monkeypatch.setattr(recovering, "compensate", breaking)
    run(*words, code=130)  # as an interrupted command ends
    assert noted.is_dir() and not (tmp_path / "out").exists()
    fitted += ["go on"]
    run(*words)
    assert not noted.exists() and fitted.count(fitted[0]) == 1
    words = ("compress", BUILD, "-o", tmp_path / "other", "--macs", "0.5", "--checkpoint", noted)
    assert "without --data" in run(*words, code=2).stderr
