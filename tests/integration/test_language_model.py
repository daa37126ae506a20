"""A character-level language model the whole way, on the text that Python's own help is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import softlabel

if TYPE_CHECKING:
    from tests.conftest import Command, Project

topics = pytest.importorskip("pydoc_data.topics").topics

CHARACTERS = " abcdefghijklmnopqrstuvwxyz.,()_\n"
MODELS = '''
import torch
from torch import nn


class Characters(nn.Module):
    """What comes next, from the characters so far: two convolutions that look back."""

    def __init__(self, num_classes, width, reach):
        super().__init__()
        self.embed = nn.Embedding(num_classes, width)
        self.near = nn.Conv1d(width, width, reach)
        self.far = nn.Conv1d(width, width, reach, dilation=reach)
        self.head = nn.Linear(width, num_classes)

    def forward(self, input_ids):
        x = self.embed(input_ids).transpose(1, 2)
        for layer in (self.near, self.far):
            back = layer.dilation[0] * (layer.kernel_size[0] - 1)
            x = torch.relu(layer(nn.functional.pad(x, (back, 0))))
        return self.head(x.transpose(1, 2))


def teacher(num_classes):
    return Characters(num_classes, width=48, reach=3)


def student(num_classes):
    return Characters(num_classes, width=16, reach=2)
'''


def write_text(folder: Path, names: list[str]) -> None:
    """Paragraphs of these topics, each character's label the one that comes next."""
    rows = []
    for name in names:
        for number, paragraph in enumerate(topics[name].lower().split("\n\n")):
            ids = [CHARACTERS.find(character) for character in paragraph[:120]]
            ids = [number for number in ids if number >= 0]
            rows.append({"key": f"{name}/{number}", "input_ids": ids[:-1], "labels": ids[1:]})
    features = {"labels": {"feature": {"_type": "ClassLabel", "names": list(CHARACTERS)}}}
    table = pa.Table.from_pylist(
        rows,
        pa.schema(
            {"key": pa.string(), "input_ids": pa.list_(pa.uint8()), "labels": pa.list_(pa.int8())}
        ).with_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
    )
    folder.mkdir()
    pq.write_table(table, folder / "text.parquet", row_group_size=300)


@pytest.mark.slow
def test_from_text_to_a_student(empty_project: Project, command: Command) -> None:
    names = sorted(topics)
    write_text(empty_project.root / "train", names[:30])
    write_text(empty_project.root / "held-out", names[30:40])
    (empty_project.root / "characters.py").write_text(MODELS)
    given = ("--source=train", "--validation=held-out", "--batch-size=32", "--shuffle-rows=500")
    train = ("train-student", *given, "--learning-rate=0.005", "--logger=none", "--json")
    taught = command(*train, "--model=characters:teacher", "--epochs=4", "--output=teacher")
    assert taught.code == 0, taught.stderr

    exported = command("export", "--model=teacher/student.json", "--samples=train")
    assert exported.code == 0, exported.stderr
    labelled = command("infer", "--source=train", "--codec=topk", "--k=8", "--batch-size=64")
    assert labelled.code == 0, labelled.stderr
    labels = softlabel.open("labels", check="full")
    assert labels.classes == tuple(CHARACTERS)
    verified = command("verify", "--source=train", "--teacher=models/teacher.onnx")
    assert verified.code == 0, verified.stdout

    kd = ("--loss=kd", "--labels=labels", "--temperature=1", "--epochs=3")
    learnt = command(*train, *kd, "--model=characters:student", "--accumulate=2", "--export-onnx")
    assert learnt.code == 0, learnt.stderr
    history = json.loads(learnt.stdout)["history"]
    losses = [epoch["loss"] for epoch in history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert history[-1]["validation_nll"] < history[0]["validation_nll"]

    measured = command("evaluate", "--source=train", "--labels=labels", "--json")
    assert measured.code == 0, measured.stderr
    (figures,) = json.loads(measured.stdout)["students"]
    assert figures["rows"] == labels.manifest.statistics.labelled
    assert figures["against_labels"]["agreement"] > figures["accuracy"] > 0.2
