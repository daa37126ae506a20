"""The same pictures in every kind of source get the same labels."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import softlabel
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.labelset import Segment
from softlabel.schemas.params import InferParams, VerifyParams
from softlabel.schemas.sample import SampleBlock
from softlabel.stages import infer, verify

if TYPE_CHECKING:
    from tests.conftest import Project


def as_image_folder(project: Project, source: Source, folder: str) -> Path:
    """Each class is its own folder; so the order is by class, then by key."""
    block = rows_of(source)
    for number, (key, label) in enumerate(zip(block.keys, block.labels, strict=True)):
        path = project.root / folder / source.classes[label.as_py()] / f"{key.as_py()}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(block.inputs[number]))
    return project.root / folder


def as_tars(project: Project, source: Source, folder: str) -> Path:
    """A tar for each shard, the labels in `.cls`."""
    (project.root / folder).mkdir()
    for file in source.files:
        block = source.read([Segment(source=file.name, first=0, rows=file.rows)])
        with tarfile.open(project.root / folder / f"{file.name[:-8]}.tar", "w") as tar:
            for number, (key, label) in enumerate(zip(block.keys, block.labels, strict=True)):
                for suffix, data in (
                    ("png", png(block.inputs[number])),
                    ("cls", str(label.as_py()).encode()),
                ):
                    member = tarfile.TarInfo(f"{key.as_py()}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return project.root / folder


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def rows_of(source: Source) -> SampleBlock:
    return source.read([Segment(source=f.name, first=0, rows=f.rows) for f in source.files])


def logits_by_key(labels: Path) -> dict[str, bytes]:
    """The stored logits by the last part of the key, without a picture's suffix."""
    return {
        Path(key).stem: logits.tobytes() + shift.tobytes()
        for block in softlabel.open(labels).batches(1000)
        for key, logits, shift in zip(
            block.keys.to_pylist(), block.logits(), block.shift, strict=True
        )
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [as_image_folder, as_tars])
def test_encoded_pictures_get_the_logits_of_the_arrays(
    make_project: Callable[[], Project],
    make: Callable[[Project, Source, str], Path],
    channels: int,
) -> None:
    project = make_project()
    shape = (8, 8, channels)
    arrays = project.source(shards=(70, 50), shape=shape)
    teacher = project.teacher(shape=shape)
    folder = make(project, open_source(arrays), "pictures")
    logits = []
    for source in (arrays, folder):
        labels = project.root / f"labels-{source.name}"
        report = infer.run(InferParams(teacher=teacher, source=source, output=labels, batch_size=4))
        assert report.rows == 120
        assert report.teacher_accuracy is not None and report.teacher_accuracy > 0.5
        checked = verify.run(VerifyParams(labels=labels, source=source, teacher=teacher))
        assert checked.problems == ()
        assert "replay" in checked.checks
        logits.append(logits_by_key(labels))
    assert len(logits[0]) == 120
    assert logits[0] == logits[1]


def as_parquet(source: Source, folder: Path) -> Path:
    """As Hugging Face writes it, with a column of keys."""
    label = {"_type": "ClassLabel", "names": list(source.classes)}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    for stem, block in shards_of(source):
        pictures = pa.array([{"bytes": png(pixels), "path": None} for pixels in block.inputs])
        table = pa.table({"image": pictures, "label": block.labels, "key": block.keys})
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        pq.write_table(table, folder / f"{stem}.parquet", row_group_size=16)
    return folder


def as_dataset_on_disk(source: Source, folder: Path) -> Path:
    import datasets

    datasets.disable_progress_bars()
    block = rows_of(source)
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=list(source.classes)),
        id=datasets.Value("string"),
    )
    parts = {
        "image": [{"bytes": png(pixels), "path": None} for pixels in block.inputs],
        "label": block.labels.to_pylist(),
        "id": block.keys.to_pylist(),
    }
    dataset = datasets.Dataset.from_dict(parts, features=features)
    dataset.save_to_disk(str(folder), num_shards=2)
    return folder


def as_npy(source: Source, folder: Path) -> Path:
    for stem, block in shards_of(source):
        np.save(folder / f"{stem}.npy", block.inputs)
        np.save(folder / f"{stem}.labels.npy", block.hard_labels())
    return folder


def as_npz(source: Source, folder: Path) -> Path:
    for stem, block in shards_of(source):
        np.savez_compressed(folder / f"{stem}.npz", images=block.inputs, labels=block.hard_labels())
    return folder


def as_idx(source: Source, folder: Path) -> Path:
    for stem, block in shards_of(source):
        for name, values in (
            ("images-idx3", block.inputs[..., 0]),
            ("labels-idx1", block.hard_labels().astype(np.uint8)),
        ):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            with gzip.open(folder / f"{stem}-{name}-ubyte.gz", "wb") as file:
                file.write(header + values.tobytes())
    return folder / "*-images-idx3-ubyte.gz"


def shards_of(source: Source) -> list[tuple[str, SampleBlock]]:
    return [
        (Path(file.name).stem, source.read([Segment(source=file.name, first=0, rows=file.rows)]))
        for file in source.files
    ]


def stored_logits(labels: Path) -> npt.NDArray[np.float32]:
    return np.concatenate(
        [block.logits() + block.shift[:, None] for block in softlabel.open(labels).batches(1000)]
    )


@pytest.mark.parametrize(
    ("write", "first_key"),
    [
        (as_parquet, "sample-000000"),
        (as_dataset_on_disk, "sample-000000"),
        (as_npy, "part-00000-00000000"),
        (as_npz, "part-00000-00000000"),
        (as_idx, "part-00000-00000"),
    ],
)
def test_tables_and_arrays_get_the_logits_of_the_canonical_source(
    make_project: Callable[[], Project],
    write: Callable[[Source, Path], Path],
    first_key: str,
) -> None:
    project = make_project()
    canonical, teacher = project.source(shards=(70, 50)), project.teacher()
    folder = project.root / "other"
    folder.mkdir()
    other = write(open_source(canonical), folder)
    found = []
    for number, source in enumerate((canonical, other)):
        labels = project.root / f"labels-{number}"
        report = infer.run(InferParams(teacher=teacher, source=source, output=labels, batch_size=4))
        assert report.rows == 120
        assert report.teacher_accuracy is not None and report.teacher_accuracy > 0.5
        checked = verify.run(VerifyParams(labels=labels, source=source, teacher=teacher))
        assert checked.problems == ()
        assert "replay" in checked.checks
        found.append(stored_logits(labels))
    assert found[0].tobytes() == found[1].tobytes()
    first = next(softlabel.open(labels).batches(1))
    assert first.keys[0].as_py() == first_key
