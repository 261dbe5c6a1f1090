"""The help of each command, word by word.

After a change that is meant: ``python -m tests.cli.test_help``, and read the difference.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunus.cli.main import app

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = ["prunus", "inspect", "compress", "plan", "apply", "decompose", "demo"]


def help_of(command: str) -> str:
    words = ["--help"] if command == "prunus" else [command, "--help"]
    result = CliRunner().invoke(
        app, words, prog_name="prunus", env={"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    )
    assert result.exit_code == 0
    return "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    assert help_of(command) == (GOLDEN / f"{command}.txt").read_text()


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_every_command_has_examples(command: str) -> None:
    assert f"Examples:\n    prunus {command}" in help_of(command)


def test_no_command_is_missing() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(COMMANDS)
    assert sorted(
        command.callback.__name__ for command in app.registered_commands if command.callback
    ) == sorted(COMMANDS[1:])


def test_h_is_help_and_no_command_is_wrong_use() -> None:
    assert CliRunner().invoke(app, ["inspect", "-h"]).exit_code == 0
    assert CliRunner().invoke(app, []).exit_code == 2


def test_the_library_alone_needs_no_terminal() -> None:
    code = "import sys, prunus; sys.exit('typer' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in COMMANDS:
        (GOLDEN / f"{name}.txt").write_text(help_of(name))
