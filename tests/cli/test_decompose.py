"""`prunus decompose` from the outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunus.artefact import load
from prunus.plan import Plan
from tests.cli.nets import IMAGE
from tests.cli.test_commands import BUILD, X, run


def test_a_target(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(16, *IMAGE[1:])).astype("float32"))
    options = ["--method", "tucker,svd", "--macs", "0.6", "--data", tmp_path / "images.npy"]
    shown = run("decompose", BUILD, "-o", tmp_path / "out", *options).stdout
    assert "Decomposed by tucker+svd to macs=0.6" in shown and "predicted" in shown
    plan = Plan.load(tmp_path / "out" / "plan.json")
    assert plan.layers[0].path == "conv2"
    assert load(tmp_path / "out")(X).shape == (1, 5)
    again = run("apply", tmp_path / "out", BUILD, "-o", tmp_path / "again").stdout
    assert "Decomposed" in again


def test_a_table_is_edited(tmp_path: Path) -> None:
    table = tmp_path / "ranks.csv"
    shown = run("decompose", BUILD, "--method", "tucker", "--layers", table).stdout
    assert "2 rows" in shown
    lines = table.read_text().splitlines()
    assert lines[0] == "name,method,inputs,outputs,full,recommended,ranks"
    kept = [line.rpartition(",")[0] + ("," if line[:5] != "conv2" else ",4 5") for line in lines[1:]]
    table.write_text("\n".join([lines[0], *kept]) + "\n")
    run("decompose", BUILD, "--method", "tucker", "-o", tmp_path / "out", "--edit", table)
    (entry,) = Plan.load(tmp_path / "out" / "plan.json").layers
    assert (entry.path, entry.ranks) == ("conv2", (4, 5))


def test_wrong_use(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "exactly one" in run("decompose", BUILD, "-o", out, code=2).stderr
    assert "exactly one" in run("decompose", BUILD, "-o", out, "--macs", "0.5", "--evbmf", "0", code=2).stderr
    assert "--layers" in run("decompose", BUILD, "--macs", "0.5", code=2).stderr
    assert "none of" in run("decompose", BUILD, "-o", out, "--macs", "0.5", "--method", "qr", code=1).stderr
    assert "no ranks reach" in run("decompose", BUILD, "-o", out, "--macs", "0.01", code=1).stderr
    assert not out.exists()
