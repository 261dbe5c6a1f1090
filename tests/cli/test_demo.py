"""The demo: it works, its numbers are the model's, and it overwrites nothing but its own."""

import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import prunus
from prunus.cli import demo as module
from prunus.cli.demo import DemoResult, DigitNet, run_demo

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str]:
    """One epoch each way, and what was printed."""
    out = io.StringIO()
    folder = tmp_path_factory.mktemp("demo") / "prunus-demo"
    return run_demo(folder, epochs=1, tune_epochs=1, console=Console(file=out, width=100)), out.getvalue()


def test_the_short_demo_prunes_saves_and_loads(short: tuple[DemoResult, str]) -> None:
    done, text = short
    report = done.result.report
    assert report.after.macs <= 0.25 * report.before.macs
    assert report.verification is not None and report.verification["passed"]
    assert done.difference < 1e-5
    assert all(time > 0 for time in done.latency_ms)
    for said in (
        "test accuracy",
        f"{done.accuracy[2]:.1%}",
        f"{report.after.macs:,}",
        "model.safetensors",
        "times as",
    ):
        assert said in text, said


def test_what_it_saved_is_the_tuned_model(short: tuple[DemoResult, str]) -> None:
    done, _ = short
    digits = module._load_digits()
    loaded = prunus.load(done.directory)
    assert module._accuracy(loaded, digits) == pytest.approx(done.accuracy[2])
    assert done.accuracy[2] > done.accuracy[1] - 0.05  # an epoch of tuning does not make it worse


def test_a_second_run_may_replace_the_first(short: tuple[DemoResult, str]) -> None:
    done, _ = short
    written = (done.directory / "artefact.json").stat().st_mtime_ns
    module._require_own(done.directory)
    done.result.save(done.directory, overwrite=True)
    assert (done.directory / "artefact.json").stat().st_mtime_ns > written


def test_other_folders_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_train", lambda *_: pytest.fail("it has begun to train"))
    (tmp_path / "thesis.tex").write_text("the only copy")
    with pytest.raises(prunus.ArtefactError, match="not from an earlier demo"):
        run_demo(tmp_path)
    with pytest.raises(prunus.ArtefactError, match="not from an earlier demo"):
        run_demo(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "the only copy"


def test_without_scikit_learn_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(prunus.ConfigError, match=r"pip install 'prunus\[demo\]'"):
        run_demo(tmp_path / "out", console=Console(file=io.StringIO()))


def test_images_are_moved_by_a_pixel_at_most() -> None:
    image = torch.zeros(500, 1, 8, 8)
    image[:, 0, 4, 4] = 1
    moved = module._shifted(image)
    spots = {tuple(spot) for spot in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert spots == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    assert moved.sum() == 500


def test_the_network_takes_any_batch() -> None:
    net = DigitNet(4).eval()
    assert net(torch.randn(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.slow
def test_the_demo_is_worth_looking_at(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    done = run_demo(tmp_path / "out", console=Console(file=io.StringIO()))
    original, _, tuned = done.accuracy
    assert original > 0.98
    assert tuned > original - 0.015
    assert done.difference < 1e-5
    assert torch.equal(torch.get_rng_state(), before)
