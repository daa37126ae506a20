"""Opening a source by what lies at its path."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from softlabel.pipeline.sources.arrays import LABELS_SUFFIX, open_arrays
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
# What tells the files of one split apart, the first that is found: number and of how many, with the
# hash that the Hub sets behind; Spark's number and job; a number by itself; one at the end.
_NUMBERS = (
    re.compile(r"\d+[-_]of[-_]\d+(?:[-_](?=[a-z]*\d)[0-9a-z]{6,}(?![0-9a-z]))?", re.IGNORECASE),
    re.compile(r"(?<=part-)\d+-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:[-.]c\d+)?"),
    re.compile(r"(?<![^\W_])\d+(?!.*(?<![^\W_])\d)"),
    re.compile(r"\d+$"),
)
_ENDING = re.compile(r"(\.tar\.gz|\.tar\.zst|\.labels\.npy|\.[^.]*)$", re.IGNORECASE)
_SAVED_DATASET = ("state.json", "dataset_dict.json")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class _Split(NamedTuple):
    """What the names of its files have in common: all but their number and ending."""

    before: str
    after: str


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


def _alternatives(pattern: str) -> Iterator[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    for part in _parts(pattern, braces[1]):
        yield from _alternatives(before + part + after)


def _parts(pattern: str, inside: str) -> Iterator[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        yield from inside.split(",")
        return
    first, last = int(span[1]), int(span[2])
    if first > last:
        raise ParameterError(
            f"{pattern}: the range {{{inside}}} is empty; write the smaller number first"
        )
    for number in range(first, last + 1):
        yield f"{number:0{len(span[1])}d}"


def _open_folder(path: Path) -> Source:
    if any((path / name).exists() for name in _SAVED_DATASET):
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
    _refuse_folders(path, visible)
    if any(entry.is_dir() or entry.suffix.lower() in SUFFIXES for entry in visible):
        return open_image_folder(path)
    raise DataError(
        f"{path}: the source is empty: it holds no Parquet files, tars, arrays or pictures; write "
        "one with 'softlabel prepare'"
    )


def _open_files(path: Path, files: list[Path]) -> Source:
    folder = next((file for file in files if file.is_dir()), None)
    if folder is not None:
        raise ParameterError(
            f"{folder}: is a folder, and a pattern names files; give the folder alone, or a "
            "pattern of its files"
        )
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
    splits: dict[_Split, list[Path]] = {}
    for file in files:
        if not _holds_labels(file):
            splits.setdefault(_split(file), []).append(file)
    if len(splits) > 1:
        names = ", ".join(sorted(repr(before + after) for before, after in splits))
        raise ParameterError(
            f"{path}: holds files of several splits ({names}); give a pattern of one, such as "
            f"{_pattern(path, *min(splits.items()))}"
        )


def _split(file: Path) -> _Split:
    stem = _ENDING.sub("", file.name)
    found = next((match for numbers in _NUMBERS if (match := numbers.search(stem))), None)
    return _Split(stem[: found.start()], stem[found.end() :]) if found else _Split(stem, "")


def _pattern(path: Path, split: _Split, files: Sequence[Path]) -> str:
    """A short pattern that names these files of the folder and, but for labels, no others."""
    before, after = map(glob.escape, split)
    ends = after + _ending(files[0])
    for middle in ("", "*", "[0-9]*"):
        pattern = f"{glob.escape(str(path))}/{before}{middle}{ends}"
        if (middle or len(files) == 1) and _pictures_of(pattern) == files:
            return pattern
    names = ",".join(file.name for file in files)
    return f"{path}/{{{names}}}" if len(files) > 1 else f"{path}/{names}"


def _ending(file: Path) -> str:
    found = _ENDING.search(file.name)
    return found[0] if found else ""


def _pictures_of(pattern: str) -> list[Path]:
    return [file for file in map(Path, sorted(glob.glob(pattern))) if not _holds_labels(file)]


def _holds_labels(file: Path) -> bool:
    return file.name == "labels.npy" or file.name.endswith(LABELS_SUFFIX)


def _refuse_folders(path: Path, visible: Sequence[Path]) -> None:
    """Raise ParameterError where the folders in a folder are sources, and no classes.

    So are folders of Parquet files, tars and arrays, and those whose pictures all lie in folders
    again, if no folder beside them holds a picture directly.
    """
    if any(entry.is_file() and _is_picture(entry.name) for entry in visible):
        return
    sources: dict[str, str] = {}
    for folder in sorted(entry for entry in visible if entry.is_dir() and not entry.is_symlink()):
        _, _, names = next(os.walk(folder), ("", [], []))
        if any(map(_is_picture, names)):
            return
        if any(_kind(Path(name)) or name in _SAVED_DATASET for name in names if name[0] != "."):
            sources[folder.name] = "data files"
        elif _holds_pictures(folder):
            sources[folder.name] = "folders of pictures"
    if sources:
        held = " and ".join(sorted(set(sources.values())))
        some = [*map(repr, itertools.islice(sources, 5)), *["and so on"] * (len(sources) > 5)]
        raise ParameterError(
            f"{path}: is no source, its folders hold {held}; give one of them "
            f"({', '.join(some)}), such as {path / next(iter(sources))}"
        )


def _holds_pictures(folder: Path) -> bool:
    for _, folders, names in os.walk(folder):
        if any(map(_is_picture, names)):
            return True
        folders[:] = [name for name in folders if not name.startswith(".")]
    return False


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
