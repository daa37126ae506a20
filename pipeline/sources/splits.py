"""Which files of a folder are of one split, told by their names.

Nobody asks for train and test at once: a folder that holds both is refused, with a way out.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from softlabel.pipeline.sources.arrays import LABELS_SUFFIX
from softlabel.pipeline.sources.files import matched
from softlabel.pipeline.sources.pictures import SUFFIXES
from softlabel.pipeline.sources.remote import Entry
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.location import Location, located

SAVED_DATASET = ("state.json", "dataset_dict.json")
# What tells the files of one split apart, the first that is found: number and of how many, with the
# hash that the Hub sets behind; Spark's number and job; a number by itself; one at the end.
_NUMBERS = (
    re.compile(r"\d+[-_]of[-_]\d+(?:[-_](?=[a-z]*\d)[0-9a-z]{6,}(?![0-9a-z]))?", re.IGNORECASE),
    re.compile(r"(?<=part-)\d+-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:[-.]c\d+)?"),
    re.compile(r"(?<![^\W_])\d+(?!.*(?<![^\W_])\d)"),
    re.compile(r"\d+$"),
)
_ENDING = re.compile(r"(\.tar\.gz|\.tar\.zst|\.labels\.npy|\.[^.]*)$", re.IGNORECASE)


class _Split(NamedTuple):
    """What the names of its files have in common: all but their number and ending."""

    before: str
    after: str


def kind_of(file: Location) -> str | None:
    """What a file is by its name; None for what holds no samples."""
    name = file.name.lower()
    if "idx3-ubyte" in name:
        return "IDX"
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.zst")):
        return "tar"
    if name.endswith((".npy", ".npz")):
        return "array"
    return "Parquet" if name.endswith(".parquet") else None


def refuse_splits(path: Location, files: Sequence[Location]) -> None:
    """Raise ParameterError where a folder holds train and test side by side: nobody asks for both.

    Files of one split are numbered and have the rest of the name in common.
    """
    splits: dict[_Split, list[Location]] = {}
    for file in files:
        if not _holds_labels(file):
            splits.setdefault(_split(file), []).append(file)
    if len(splits) > 1:
        names = ", ".join(sorted(repr(before + after) for before, after in splits))
        raise ParameterError(
            f"{path}: holds files of several splits ({names}); give a pattern of one, such as "
            f"{_pattern(path, *min(splits.items()))}"
        )


def _split(file: Location) -> _Split:
    stem = _ENDING.sub("", file.name)
    found = next((match for numbers in _NUMBERS if (match := numbers.search(stem))), None)
    return _Split(stem[: found.start()], stem[found.end() :]) if found else _Split(stem, "")


def _pattern(path: Location, split: _Split, files: Sequence[Location]) -> str:
    """A short pattern that names these files of the folder and, but for labels, no others."""
    before, after = map(glob.escape, split)
    folder = glob.escape(str(path)) if isinstance(path, Path) else str(path).rstrip("/")
    ends = after + _ending(files[0])
    for middle in ("", "*", "[0-9]*"):
        pattern = f"{folder}/{before}{middle}{ends}"
        if (middle or len(files) == 1) and _pictures_of(pattern) == files:
            return pattern
    names = ",".join(file.name for file in files)
    return f"{folder}/{{{names}}}" if len(files) > 1 else f"{folder}/{names}"


def _ending(file: Location) -> str:
    found = _ENDING.search(file.name)
    return found[0] if found else ""


def _pictures_of(pattern: str) -> list[Location]:
    return [file for file in matched(located(pattern)) if not _holds_labels(file)]


def _holds_labels(file: Location) -> bool:
    return file.name == "labels.npy" or file.name.endswith(LABELS_SUFFIX)


def refuse_folders(path: Path, held: Sequence[Entry]) -> None:
    """Raise ParameterError where the folders in a folder are sources, and no classes.

    So are folders of Parquet files, tars and arrays, and those whose pictures all lie in folders
    again, if no folder beside them holds a picture directly.
    """
    if any(not entry.is_folder and _is_picture(entry.name) for entry in held):
        return
    sources: dict[str, str] = {}
    inside = (path / entry.name for entry in held if entry.is_folder)
    for folder in (inner for inner in inside if not inner.is_symlink()):
        _, _, names = next(os.walk(folder), ("", [], []))
        if any(map(_is_picture, names)):
            return
        if any(kind_of(Path(name)) or name in SAVED_DATASET for name in names if name[0] != "."):
            sources[folder.name] = "data files"
        elif _holds_pictures(folder):
            sources[folder.name] = "folders of pictures"
    if sources:
        kinds = " and ".join(sorted(set(sources.values())))
        some = [*map(repr, itertools.islice(sources, 5)), *["and so on"] * (len(sources) > 5)]
        raise ParameterError(
            f"{path}: is no source, its folders hold {kinds}; give one of them "
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
