"""Freed memory goes back to the system, or waits to be used again."""

from pathlib import Path

import pytest
import torch

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


@pytest.mark.skipif(not STATM.is_file() or _option() is None, reason="only glibc has these options")
def test_inside_the_block_freed_memory_is_used_again_and_at_the_end_it_goes_back() -> None:
    begun = resident()
    with freed_memory_kept():
        torch.ones(50_000_000)  # 200 MB
        # glibc before 2.38 finds room for an aligned block only where there is a little more than it takes
        for count in (49_000_000, 48_000_000, 47_000_000):
            torch.ones(count)
        assert 150e6 < resident() - begun < 300e6
    assert resident() - begun < 50e6
    torch.ones(50_000_000)  # large blocks go back at once again
    assert resident() - begun < 50e6


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
    with freed_memory_kept():
        pass
