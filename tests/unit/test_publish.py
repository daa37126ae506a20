import hashlib
import os
import stat
from pathlib import Path

import pytest

from softlabel.pipeline.publish import (
    file_sha256,
    publish_bytes,
    publishing,
    remove_temporaries,
    temporary_name,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_name_appears_only_when_the_content_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    with publishing(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        assert names(tmp_path) == [temporary_name(path).name]
        file.write(b" whole")
    assert path.read_bytes() == b"half whole"
    assert names(tmp_path) == ["shard.parquet"]


def test_what_stood_there_is_kept_until_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "labelset.json"
    publish_bytes(path, b"the first, and longer")
    with publishing(path) as file:
        file.write(b"second")
        file.flush()
        assert path.read_bytes() == b"the first, and longer"
    assert path.read_bytes() == b"second"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_folder_as_it_was(
    tmp_path: Path, error: type[BaseException]
) -> None:
    kept = tmp_path / "kept"
    publish_bytes(kept, b"old")

    def fail(path: Path) -> None:
        with publishing(path) as file:
            file.write(b"new")
            file.flush()
            raise error("stopped")

    for path in (kept, tmp_path / "fresh"):
        with pytest.raises(error, match="stopped"):
            fail(path)
    assert names(tmp_path) == ["kept"]
    assert kept.read_bytes() == b"old"


def test_a_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(OSError, match="name"):
        publish_bytes(tmp_path / "name", b"data")
    assert names(tmp_path) == ["name"]


def test_content_is_durable_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        status = os.fstat(handle)
        folder = stat.S_ISDIR(status.st_mode)
        steps.append("sync folder" if folder else f"sync {status.st_size} bytes")
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    publish_bytes(tmp_path / "name", b"12345")
    assert steps == ["sync 5 bytes", "rename", "sync folder"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        publish_bytes(tmp_path / "absent" / "name", b"data")


def test_temporaries_are_removed_and_nothing_else(tmp_path: Path) -> None:
    published = ["part-00000.parquet", "notes.tmp", ".hidden"]
    for name in published:
        (tmp_path / name).write_bytes(b"")
        temporary_name(tmp_path / name).write_bytes(b"")
    remove_temporaries(tmp_path)
    assert names(tmp_path) == sorted(published)


def test_file_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
