"""One source of pictures written as every kind that is read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from softlabel.pipeline.sources.source import Source
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock
from tests.unit.encoded import png, whole


def as_image_folder(source: Source, folder: Path) -> Path:
    """Each class is its own folder; so the order is by class, then by key."""
    block = whole(source)
    for number, (key, label) in enumerate(zip(block.keys, block.labels, strict=True)):
        path = folder / source.classes[label.as_py()] / f"{key.as_py()}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(block.inputs[number]))
    return folder


def as_tars(source: Source, folder: Path) -> Path:
    """A tar for each shard, the labels in `.cls`."""
    for stem, block in shards_of(source):
        with tarfile.open(folder / f"{stem}.tar", "w") as tar:
            for number, (key, label) in enumerate(zip(block.keys, block.labels, strict=True)):
                for suffix, data in (
                    ("png", png(block.inputs[number])),
                    ("cls", str(label.as_py()).encode()),
                ):
                    member = tarfile.TarInfo(f"{key.as_py()}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


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
    block = whole(source)
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
