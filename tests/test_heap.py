"""Freed memory goes back to the system, or waits to be used again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prunus.heap import _option, _trim, freed_memory_kept, give_back

STATM = Path("/proc/self/statm")


def resident() -> int:
    return 4096 * int(STATM.read_text().split()[1])


@pytest.mark.skipif(not STATM.is_file() or _trim() is None, reason="only glibc can be asked to")
def test_holes_between_what_stays_are_given_back() -> None:
    blocks = [bytearray(b"x" * 100_000) for _ in range(1000)]  # from the heap, 100 MB
    staying = blocks[::10]
    del blocks[:]
    before = resident()
    give_back()
    assert before - resident() > 50e6
    assert len(staying) == 100


# In a process of its own: holes that other tests have left in the heap would take the blocks in and keep them.
KEEPING = """
import json
from pathlib import Path
import torch
from prunus.heap import freed_memory_kept

def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

torch.ones(50_000_000)  # whatever a first call needs for itself
begun = resident()
with freed_memory_kept():
    first = torch.ones(50_000_000)  # 200 MB
    above = torch.ones(2_000_000)  # a block that stays, so that the first leaves a hole
    del first
    # glibc before 2.38 finds room for an aligned block only where there is a little more than it takes
    for count in (49_000_000, 48_000_000, 47_000_000):
        torch.ones(count)
    inside = resident() - begun
outside = resident() - begun
torch.ones(100_000_000)  # larger than the hole
print(json.dumps([inside, outside, resident() - begun]))
"""


@pytest.mark.skipif(not STATM.is_file() or _option() is None, reason="only glibc has these options")
def test_inside_the_block_freed_memory_is_used_again_and_at_the_end_it_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    inside, outside, later = json.loads(done.stdout)
    assert 150e6 < inside < 300e6  # kept, and there once
    assert outside < 50e6
    assert later < 50e6  # large blocks go back at once again


def test_options_that_the_environment_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    _option.cache_clear()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    try:
        assert _option() is None
        with freed_memory_kept():
            pass
    finally:
        _option.cache_clear()


def test_where_the_c_library_cannot_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.heap._trim", lambda: None)
    monkeypatch.setattr("prunus.heap._option", lambda: None)
    give_back()
    done = []
    with freed_memory_kept():
        done.append(True)
    assert done  # the block is run all the same
