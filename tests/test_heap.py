"""Freed memory goes back to the system."""

from pathlib import Path

import pytest

from prunus.heap import _trim, give_back


@pytest.mark.skipif(
    not Path("/proc/self/statm").is_file() or _trim() is None, reason="only glibc can be asked to"
)
def test_holes_between_what_stays_are_given_back() -> None:
    def resident() -> int:
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

    blocks = [bytearray(b"x" * 100_000) for _ in range(1000)]  # from the heap, 100 MB
    staying = blocks[::10]
    del blocks[:]
    before = resident()
    give_back()
    assert before - resident() > 50e6
    assert len(staying) == 100


def test_where_the_c_library_cannot_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.heap._trim", lambda: None)
    give_back()
