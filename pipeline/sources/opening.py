"""Opening a source by what lies at its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softlabel.pipeline.sources.arrays import open_arrays
from softlabel.pipeline.sources.files import is_folder, listed, refuse_remote
from softlabel.pipeline.sources.hf_disk import open_hf_disk
from softlabel.pipeline.sources.hf_parquet import open_hf_parquet
from softlabel.pipeline.sources.idx import open_idx
from softlabel.pipeline.sources.image_folder import open_image_folder
from softlabel.pipeline.sources.parquet import is_canonical, open_canonical
from softlabel.pipeline.sources.patterns import expanded, is_pattern
from softlabel.pipeline.sources.pictures import SUFFIXES
from softlabel.pipeline.sources.reasons import no_such_source
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.sources.splits import (
    SAVED_DATASET,
    kind_of,
    refuse_folders,
    refuse_splits,
)
from softlabel.pipeline.sources.tars import open_tars
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.location import Location, Url


def open_source(path: Location, workers: int | None = None) -> Source:
    """The source at `path`: a file, a folder, or a pattern of files with `*`, `?` and `{0..9}`.

    workers: threads that decode encoded pictures; default: as many as processors. Raises
    ParameterError where there is no source, DataError where it is of no kind that is read,
    EnvironmentFault where what is behind a URL cannot be read.
    """
    source = _open_remote(path) if isinstance(path, Url) else _open_local(path)
    return source if workers is None else source.decoded_by(workers)


def _open_local(path: Path) -> Source:
    if path.is_dir():
        return _open_folder(path)
    return _open_files(path, [path] if path.exists() else expanded(path))


def _open_remote(url: Url) -> Source:
    # What a name tells is not asked for.
    if is_pattern(url):
        return _open_files(url, expanded(url))
    if kind_of(url) is not None:
        return _open_files(url, [url])
    if is_folder(url):
        return _open_folder(url)
    raise no_such_source(url)


def _open_folder(path: Location) -> Source:
    held = listed(path)
    if any(entry.name in SAVED_DATASET for entry in held):
        return open_hf_disk(refuse_remote(path, "a saved dataset"))
    found = (path / entry.name for entry in held if not entry.is_folder)
    files = [file for file in found if kind_of(file) is not None]
    kinds = sorted({str(kind_of(file)) for file in files})
    if len(kinds) > 1:
        raise ParameterError(
            f"{path}: holds files of several kinds ({', '.join(kinds)}); give a pattern, such as "
            f"{path}/*{files[0].suffix}"
        )
    if files:
        refuse_splits(path, files)
        return _open_files(path, files)
    if isinstance(path, Path):
        refuse_folders(path, held)
    if any(entry.is_folder or entry.name.lower().endswith(SUFFIXES) for entry in held):
        return open_image_folder(path)
    raise DataError(
        f"{path}: the source is empty: it holds no Parquet files, tars, arrays or pictures; write "
        "one with 'softlabel prepare'"
    )


def _open_files(path: Location, files: Sequence[Location]) -> Source:
    folder = next((f for f in files if isinstance(f, Path) and f.is_dir()), None)
    if folder is not None:
        raise ParameterError(
            f"{folder}: is a folder, and a pattern names files; give the folder alone, or a "
            "pattern of its files"
        )
    kinds = {kind_of(file) for file in files}
    if len(kinds) > 1 or None in kinds:
        odd = next(file for file in files if kind_of(file) != "Parquet")
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
        return open_idx(path, [refuse_remote(file, "IDX files") for file in files])
    if all(is_canonical(file) for file in files):
        return open_canonical(path, files)
    return open_hf_parquet(path, files)
