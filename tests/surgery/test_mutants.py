"""Wrong versions of rules and surgery do not get past verification; see `benchmarks/mutants.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import prunus

ROOT = Path(prunus.__file__).parents[2]
BENCHMARK = ROOT / "benchmarks" / "mutants.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARK), "--check", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_mutant_is_caught() -> None:
    done = run()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "none survived" in done.stdout
