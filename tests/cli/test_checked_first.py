"""What is wrong with options is said before a model is opened."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from prunus.cli.main import app


def said(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code != 0
    return result.output + (result.stderr or "")


@pytest.mark.parametrize("command", ["compress", "plan"])
def test_data_and_options_come_before_the_model(command: str, tmp_path: Path):
    out = str(tmp_path / "out")
    for words, wanted in (
        (["--data", str(tmp_path / "none.npy")], "there is no .npy"),
        (["--multiple-of", "8", "--step-size", "4"], "say the same"),
    ):
        text = said(command, "no_such_module_at_all:build", "-o", out, "--macs", "0.5", *words)
        assert wanted in text and "no_such_module" not in text


def test_a_file_of_pickles_is_refused_at_once(tmp_path: Path):
    (tmp_path / "data.pkl").write_bytes(b"")
    text = said(
        "compress",
        "none:build",
        "-o",
        str(tmp_path / "o"),
        "--macs",
        "0.5",
        "--data",
        str(tmp_path / "data.pkl"),
    )
    assert "is a pickle" in text


def test_good_options_let_the_model_be_looked_for(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros((4, 8), np.float32))
    text = said(
        "compress",
        "no_such_module_at_all:build",
        "-o",
        str(tmp_path / "o"),
        "--macs",
        "0.5",
        "--data",
        str(tmp_path / "x.npy"),
    )
    assert "no_such_module_at_all" in text
