"""inspect: figures worked by hand, and rows as people read them, for every shape of a set."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import Packing
from softlabel.schemas.labelset import Derivation, Making
from tests.unit.blocks import CLASSES, CODECS, block_of, packing_of, write_set

if TYPE_CHECKING:
    from tests.conftest import Command

# Entropy ln 2 at every T, and at T the one of (3^(1/T), 1, 1, 1, 1, 1) / sum.
HALVES = [0.0, 0.0, -np.inf, -np.inf, -np.inf, -np.inf]
PEAK = [0.0, 0.0, math.log(3), 0.0, 0.0, 0.0]


def peak_entropy(T: float) -> float:
    weights = [3 ** (1 / T), 1, 1, 1, 1, 1]
    return -math.fsum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)


def worked(
    packing: Packing, logits: list[list[float]], hard: list[int | None], first: int = 0
) -> LabelBlock:
    rows = shift_rows(np.asarray(logits, np.float32))
    return LabelBlock(
        pa.array([f"row {first + row}" for row in range(len(logits))], pa.string()),
        pa.array(hard, pa.int32()),
        rows.top1,
        rows.shift,
        packing.codec.encode(rows),
        packing.codec,
    )


def report(command: Command, folder: Path, *arguments: str) -> dict[str, Any]:
    outcome = command("inspect", "--labels", str(folder), "--json", *arguments)
    assert outcome.code == 0, outcome.stderr
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


def shown(command: Command, folder: Path, *arguments: str) -> list[str]:
    outcome = command("inspect", "--labels", str(folder), *arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout.splitlines()


def test_figures_worked_by_hand(tmp_path: Path, command: Command) -> None:
    packing = packing_of("dense-f32")
    folder = write_set(
        tmp_path / "labels",
        packing,
        [
            worked(packing, [HALVES, PEAK, PEAK], [0, 2, None]),
            worked(packing, [HALVES], [1], first=3),
        ],
        kl=[0.25, 0.5, 1.0],
    )
    found = report(command, folder)
    for T in (1.0, 2.0, 4.0):
        mean = (2 * math.log(2) + 2 * peak_entropy(T)) / 4
        assert found["entropy"][str(T)] == pytest.approx(mean, rel=1e-5)
    assert found["kl_mean"] == {"1.0": 0.25, "2.0": 0.5, "4.0": 1.0}
    assert found["reference"] == "float32 logits"
    assert (found["rows"], found["shards"], found["labelled"]) == (4, 2, 3)
    # Row 0 and row 1; the last says class 1 where the teacher's lowest of two equals is 0.
    assert found["label_accuracy"] == pytest.approx(2 / 3)
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    assert found["bytes"] == size
    assert found["bytes_per_row"] == size / 4
    assert found["row_views"] == []
    assert found["positions"] is None
    assert found["features"] is None
    lines = shown(command, folder)
    (row,) = [line for line in lines if line.startswith(f"     1 {found['entropy']['1.0']:10.4f}")]
    # Top-1 of a half and of 3/8, two rows each: bins (45 %, 50 %] and (35 %, 40 %].
    top1 = found["targets"][0]["top1"]
    assert top1 == pytest.approx(7 / 16)
    assert row.split()[2:4] == ["2.5e-01", f"{top1:.1%}"]
    assert row.endswith("  |       █ █          |")
    assert "the top-1 equals the hard label for 66.67% of 3 rows" in lines


def test_metrics_and_plot_for_dvc(tmp_path: Path, command: Command) -> None:
    packing = packing_of("dense-f32")
    block = worked(packing, [HALVES, PEAK, PEAK], [0, 2, None])
    folder = write_set(tmp_path / "labels", packing, [block], kl=[0.25, 0.5, 1.0])
    found = report(command, folder, "--output", str(tmp_path / "out"))
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["T=2"]["entropy"] == found["entropy"]["2.0"]
    assert metrics["signs"]["evenness"] == found["signs"]["evenness"]
    assert (metrics["rows"], metrics["label_accuracy"]) == (3, 1.0)
    rows = json.loads((tmp_path / "out/plots/temperatures.json").read_text())
    assert [(row["T"], row["kl"]) for row in rows] == [(1, 0.25), (2, 0.5), (4, 1.0)]
    outcome = command("inspect", "--labels", str(folder), "--output", str(folder / "out"))
    assert outcome.code == 2
    assert "lies in the label set, which never changes" in outcome.stderr
    assert not (folder / "out").exists()


def test_a_set_without_hard_labels_claims_no_accuracy(tmp_path: Path, command: Command) -> None:
    packing = packing_of("dense-f16")
    folder = write_set(tmp_path / "labels", packing, [worked(packing, [PEAK], [None])])
    found = report(command, folder)
    assert (found["labelled"], found["label_accuracy"]) == (0, None)
    assert not [line for line in shown(command, folder) if "hard label" in line]


def test_rows_as_people_read_them(tmp_path: Path, command: Command) -> None:
    packing = packing_of("dense-f32")
    block = worked(packing, [HALVES, PEAK], [None, 2])
    folder = write_set(tmp_path / "labels", packing, [block])
    first, second = report(command, folder, "--rows", "5", "--top", "2")["row_views"]
    assert first["key"] == "row 0"
    assert (first["view"], first["length"]) == (None, None)
    (position,) = first["positions"]
    assert position["label"] is None
    assert position["likeliest"] == ["a", "b"]
    assert position["targets"]["4.0"] == pytest.approx([0.5, 0.5])
    (position,) = second["positions"]
    assert position["label"] == "c"
    assert position["likeliest"] == ["c", "a"]
    assert position["targets"]["1.0"] == pytest.approx([3 / 8, 1 / 8])
    assert position["targets"]["2.0"][0] == pytest.approx(math.sqrt(3) / (math.sqrt(3) + 5))
    lines = shown(command, folder, "--rows", "2", "--top", "2")
    assert lines[-8:] == [
        "row 0: hard unknown",
        *[f"  T={T}    a 0.500, b 0.500" for T in (1, 2, 4)],
        "row 1: hard c",
        "  T=1    c 0.375, a 0.125",
        "  T=2    c 0.257, a 0.149",
        "  T=4    c 0.208, a 0.158",
    ]


def test_rows_run_over_shards(tmp_path: Path, command: Command) -> None:
    packing = packing_of("dense-f16")
    parts = [block_of(packing, 4).slice(0, 2), block_of(packing, 4).slice(2, 2)]
    folder = write_set(tmp_path / "labels", packing, parts)
    for rows, keys in ((0, 0), (1, 1), (3, 3), (9, 4)):
        views = report(command, folder, "--rows", str(rows))["row_views"]
        assert [view["key"] for view in views] == [f"s/{row}.é" for row in range(keys)]


def test_views(tmp_path: Path, command: Command) -> None:
    packing = packing_of("topk", "lists", views=2, features=True)
    block = block_of(packing, 4)
    folder = write_set(tmp_path / "labels", packing, [block])
    found = report(command, folder, "--rows", "3")
    assert (found["rows"], found["views"], found["features"]) == (4, 2, 2)
    views = [(view["key"], view["view"]) for view in found["row_views"]]
    assert views == [("s/0.é", 0), ("s/0.é", 1), ("s/1.é", 0)]
    lines = shown(command, folder, "--rows", "2")
    assert lines[0].endswith(": 4 rows (2 samples, 2 views each) of 6 classes in 1 shard")
    assert lines[1].startswith("stored   topk 3 with tail uniform, lists with 2 features, ")
    assert "s/0.é view 1: hard " in "\n".join(lines)


def test_sequences(tmp_path: Path, command: Command) -> None:
    packing = packing_of("dense-f32", positions=True)
    block = block_of(packing, 4, (2, 0, 5, 1))
    folder = write_set(tmp_path / "labels", packing, [block.slice(0, 2), block.slice(2, 2)])
    found = report(command, folder, "--rows", "3")
    assert (found["rows"], found["positions"]) == (4, 8)
    lengths = [(view["length"], len(view["positions"])) for view in found["row_views"]]
    assert lengths == [(2, 2), (0, 0), (5, 3)]
    probs = block.probs(1.0).astype(np.float64)
    mean = float(-(probs * np.log(probs)).sum() / 8)
    assert found["entropy"]["1.0"] == pytest.approx(mean, rel=1e-5)
    third = found["row_views"][2]["positions"][1]
    assert third["likeliest"][0] == CLASSES[block.top1[3]]
    assert third["label"] == CLASSES[block.labels[3].as_py()]
    assert third["targets"]["1.0"][0] == pytest.approx(probs[3].max(), rel=1e-5)
    text = "\n".join(shown(command, folder, "--rows", "3"))
    assert ": 4 sequences with 8 positions of 6 classes in 2 shards" in text
    assert "s/1.é: 0 positions\ns/2.é: 5 positions\n  position 0: hard " in text
    assert text.endswith("  and 2 more")
    assert re.search(r"hard label for [\d.]+% of \d positions", text)


def test_many_positions_are_decoded_in_pieces(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = packing_of("factored", positions=True)
    folder = write_set(tmp_path / "labels", packing, [block_of(packing, 2, (40, 30))])
    whole = report(command, folder)["entropy"]
    monkeypatch.setattr("softlabel.stages.inspect.CELLS", 6 * 16)
    assert report(command, folder)["entropy"] == pytest.approx(whole, rel=1e-6)


def test_where_labels_came_from(tmp_path: Path, command: Command) -> None:
    packing = packing_of("dense-u8")
    derived = Derivation(
        verb="merge",
        parents=("1" * 64, "2" * 64),
        codecs=("dense-f16", "dense-u8"),
        class_ids=(0, 1, 2, 3, 4, 5),
        weights=(0.75, 0.25),
        mean="probs",
        temperature=2.0,
    )
    identity = packing.identity.model_copy(update={"derived": derived})
    packing = Packing(identity, "packed", packing.codec, "merge")
    making = Making(verb="merge", command="softlabel merge --labels one two")
    folder = write_set(tmp_path / "labels", packing, [block_of(packing)], making=making)
    manifest = json.loads((folder / "labelset.json").read_text())
    (folder / "labelset.json").write_text(json.dumps(manifest | {"reference": "dense-f16"}))
    found = report(command, folder)
    assert found["derived"] == json.loads(derived.model_dump_json())
    assert found["making"] == {"verb": "merge", "command": "softlabel merge --labels one two"}
    assert found["reference"] == "dense-f16 labels it was converted from"
    assert found["aligned"] is False
    lines = shown(command, folder)
    assert "made by  softlabel merge --labels one two" in lines
    wanted = (
        "from     merge of 111111111111, 222222222222 (was dense-f16, then dense-u8); "
        "mean of probs at T=2, weights 0.75 : 0.25; 6 of its classes"
    )
    assert wanted in lines
    assert "order    its own, not that of the source: joined by key" in lines
    assert any(line.endswith("KL to the dense-f16 labels it was converted from") for line in lines)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_described(tmp_path: Path, command: Command, codec: Any) -> None:
    packing = packing_of(codec)
    block = block_of(packing, 6)
    folder = write_set(tmp_path / "labels", packing, [block])
    found = report(command, folder, "--rows", "6")
    assert found["codec"].startswith(codec)
    for T in (1.0, 2.0, 4.0):
        probs = block.probs(T).astype(np.float64)
        assert found["entropy"][str(T)] == pytest.approx(
            -(probs * np.log(probs)).sum() / 6, rel=1e-5
        )
    tops = [view["positions"][0]["likeliest"][0] for view in found["row_views"]]
    assert tops == [CLASSES[top] for top in block.top1]
