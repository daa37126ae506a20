import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from softlabel.pipeline.shards import hashing
from softlabel.pipeline.shards.hashing import HashingReader

DATA = np.random.default_rng(5).bytes(40_000)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_read_the_digest_is_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Reads in any order, some of them again, some bytes never asked for, some behind the end."""
    monkeypatch.setattr(hashing, "PIECE", 700)
    path = tmp_path / "file"
    path.write_bytes(DATA)
    random = np.random.default_rng(seed)
    with HashingReader(path) as file:
        for place, size in random.integers(0, [42_000, 3000], (12, 2)).tolist():
            file.seek(place)
            assert file.read(size) == DATA[place : place + size]
            assert file.tell() == place + len(DATA[place : place + size])
        assert file.seek(0, os.SEEK_END) == len(DATA)
        assert file.finish() == (len(DATA), hashlib.sha256(DATA).hexdigest())


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with HashingReader(tmp_path / "file") as file:
        assert file.read(7) == b""
        assert file.finish() == (0, hashlib.sha256().hexdigest())
