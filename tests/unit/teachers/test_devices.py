import mmap
from pathlib import Path

import pytest

from softlabel.pipeline.teachers import devices
from softlabel.pipeline.teachers.devices import free_memory, resident_memory


def test_the_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What files left in memory goes when it is needed, so it is free."""
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    outside = free_memory()
    (tmp_path / "memory.max").write_text("100000\n")
    (tmp_path / "memory.current").write_text("60000\n")
    (tmp_path / "memory.stat").write_text("anon 40000\ninactive_file 15000\nactive_file 5000\n")
    assert free_memory() == 55000 < outside
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() == pytest.approx(outside, rel=0.2)


def test_what_is_taken_shows() -> None:
    before = resident_memory()
    # Asked of the system itself: an allocator may have some to give.
    with mmap.mmap(-1, 2**24) as block:
        block.write(b"1" * 2**24)
        assert 2**23 < resident_memory() - before
