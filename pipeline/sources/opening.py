"""Opening a source by what lies at its path."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from softlabel.pipeline.sources.arrays import open_arrays
from softlabel.pipeline.sources.hf_disk import open_hf_disk
from softlabel.pipeline.sources.hf_parquet import open_hf_parquet
from softlabel.pipeline.sources.idx import open_idx
from softlabel.pipeline.sources.image_folder import open_image_folder
from softlabel.pipeline.sources.parquet import is_canonical, open_canonical
from softlabel.pipeline.sources.pictures import SUFFIXES
from softlabel.pipeline.sources.source import Source, no_such_source
from softlabel.pipeline.sources.tars import open_tars
from softlabel.schemas.errors import DataError, ParameterError

_BRACES = re.compile(r"\{([^{}]*)\}")
# What tells the files of one split apart: their number, and of how many.
_NUMBERED = re.compile(r"[-_]?\d+([-_]of[-_]\d+)?$")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_source(path: Path, workers: int | None = None) -> Source:
    """The source at `path`: a file, a folder, or a pattern of files with `*`, `?` and `{0..9}`.

    workers: threads that decode encoded pictures; default: as many as processors. Raises
    ParameterError where there is no source, DataError where it is of no kind that is read.
    """
    if path.is_dir():
        source = _open_folder(path)
    else:
        source = _open_files(path, [path] if path.exists() else expanded(path))
    return source if workers is None else source.decoded_by(workers)


def expanded(path: Path) -> list[Path]:
    """The files that a pattern names, in its order, those of a `*` by name.

    `{a,b}` are alternatives and `{000..123}` numbers of that width. Raises ParameterError where one
    of them names no file, or two the same.
    """
    if not set("*?[{") & set(str(path)):
        raise no_such_source(path)
    found: list[Path] = []
    for name in _alternatives(str(path)):
        files = sorted(glob.glob(name)) if glob.has_magic(name) else [name] * Path(name).exists()
        if not files:
            raise ParameterError(f"{path}: names no file {name}; check the pattern")
        found += map(Path, files)
    twice = next((a for a, b in itertools.pairwise(sorted(found)) if a == b), None)
    if twice is not None:
        raise ParameterError(f"{path}: names {twice} twice; check the pattern")
    return found


def _alternatives(pattern: str) -> list[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    span = _RANGE.fullmatch(braces[1])
    if span is None:
        parts = braces[1].split(",")
    else:
        width = len(span[1])
        parts = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for part in parts for name in _alternatives(before + part + after)]


def _open_folder(path: Path) -> Source:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return open_hf_disk(path)
    visible = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    files = sorted(entry for entry in visible if _kind(entry) is not None and entry.is_file())
    kinds = sorted({str(_kind(file)) for file in files})
    if len(kinds) > 1:
        raise ParameterError(
            f"{path}: holds files of several kinds ({', '.join(kinds)}); give a pattern, such as "
            f"{path}/*{files[0].suffix}"
        )
    if files:
        _refuse_splits(path, files)
        return _open_files(path, files)
    if any(entry.is_dir() or entry.suffix.lower() in SUFFIXES for entry in visible):
        return open_image_folder(path)
    raise DataError(
        f"{path}: the source is empty: it holds no Parquet files, tars, arrays or pictures; write "
        "one with 'softlabel prepare'"
    )


def _open_files(path: Path, files: list[Path]) -> Source:
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1 or None in kinds:
        odd = next(file for file in files if _kind(file) != "Parquet")
        raise ParameterError(
            f"{odd}: is of no kind that is read, or of another than its neighbours; give .parquet, "
            ".tar, .npy, .npz or idx3-ubyte files, a folder of pictures or a saved dataset"
        )
    (kind,) = kinds
    if kind == "tar":
        return open_tars(path, files)
    if kind == "array":
        return open_arrays(path, files)
    if kind == "IDX":
        return open_idx(path, files)
    if all(is_canonical(file) for file in files):
        return open_canonical(path, files)
    return open_hf_parquet(path, files)


def _kind(file: Path) -> str | None:
    """What a file is by its name; None for what holds no samples."""
    name = file.name.lower()
    if "idx3-ubyte" in name:
        return "IDX"
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.zst")):
        return "tar"
    if name.endswith((".npy", ".npz")):
        return "array"
    return "Parquet" if name.endswith(".parquet") else None


def _refuse_splits(path: Path, files: Sequence[Path]) -> None:
    """Raise ParameterError where a folder holds train and test side by side: nobody asks for both.

    Files of one split are numbered and have the rest of the name in common.
    """
    names = sorted({_NUMBERED.sub("", file.name.split(".")[0]) for file in files})
    if len(names) > 1 and _kind(files[0]) != "array":
        raise ParameterError(
            f"{path}: holds files of several splits ({', '.join(map(repr, names))}); give a "
            f"pattern, such as {path}/{names[0]}*{files[0].suffix}"
        )
