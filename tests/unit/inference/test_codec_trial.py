import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from softlabel.pipeline.inference import codec_trial
from softlabel.pipeline.inference.codec_trial import Trial, divergences, try_packings
from softlabel.pipeline.shards.packing import Packing, make_packing
from softlabel.schemas.labelset import CodecName, Identity
from softlabel.schemas.sample import SampleBlock, TeacherOutput
from softlabel.schemas.teacher import Preprocess

Logits = npt.NDArray[np.float32]
CLASSES = 40


def packing(codec: CodecName, k: int | None = None) -> Packing:
    return make_packing(
        Identity(
            teacher_sha256=("0" * 64,),
            preprocess=Preprocess(height=1, width=1, channels=1, mean=(0.5,), std=(0.5,)),
            classes=tuple(str(number) for number in range(CLASSES)),
            class_map=None,
            output="logits",
            output_kind="logits",
            source=(),
            temperatures=(1.0, 4.0),
            codec=codec,
            k=k,
            tail=None if k is None else "uniform",
        )
    )


def batch(logits: Logits, first: int = 0) -> tuple[SampleBlock, TeacherOutput]:
    rows = len(logits)
    keys = pa.array([f"n{number:05d}" for number in range(first, first + rows)])
    samples = SampleBlock(
        keys, np.zeros((rows, 1, 1, 1), np.uint8), pa.array([0] * rows, pa.int32())
    )
    return samples, TeacherOutput(logits)


def batches(rows: int, size: int = 100) -> list[tuple[SampleBlock, TeacherOutput]]:
    logits = np.random.default_rng(0).normal(0, 3, (rows, CLASSES)).astype(np.float32)
    return [batch(logits[first : first + size], first) for first in range(0, rows, size)]


def tried(
    folder: Path, packings: Sequence[Packing], rows: int = 300
) -> tuple[list[Trial], dict[str, int]]:
    folder.mkdir()
    trials = try_packings(packings, batches(rows), folder)
    return trials, {path.name: path.stat().st_size for path in folder.iterdir()}


def test_divergences_worked() -> None:
    logits = np.asarray([[math.log(3), 0], [0, 0]], np.float32)
    kl, tv = divergences(logits, np.zeros((2, 2), np.float32), 1.0)
    assert kl.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0])
    assert tv.tolist() == pytest.approx([0.25, 0])
    root = math.sqrt(3) / (1 + math.sqrt(3))
    _, tv = divergences(logits, np.zeros((2, 2), np.float32), 2.0)
    assert tv.tolist() == pytest.approx([root - 0.5, 0])


def test_divergences_with_a_masked_class_on_both_sides() -> None:
    logits = np.asarray([[0, -math.inf, 1]], np.float32)
    assert [part.tolist() for part in divergences(logits, logits, 2.0)] == [[0], [0]]


def test_divergences_do_not_depend_on_how_rows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    logits, stored = random.normal(0, 3, (2, 50, 7)).astype(np.float32)
    whole = divergences(logits, stored, 2.0)
    monkeypatch.setattr(codec_trial, "CHUNK_VALUES", 20)
    parts = divergences(logits, stored, 2.0)
    assert np.array_equal(whole, parts)


def test_bytes_a_row_are_those_of_the_file(tmp_path: Path) -> None:
    (trial,), sizes = tried(tmp_path / "work", [packing("dense-f16")])
    (size,) = sizes.values()
    assert trial.rows == 300
    assert trial.bytes_a_row * trial.rows + trial.bytes_a_shard == size
    # logits, lse, key with its length, label, top1, shift; and what pages and levels take.
    assert trial.bytes_a_row == pytest.approx(2 * CLASSES + 4 * 2 + 10 + 4 + 2 + 4, rel=0.05)


def test_bytes_a_row_hardly_depend_on_the_number_of_rows(tmp_path: Path) -> None:
    (few,), _ = tried(tmp_path / "few", [packing("dense-u8")], 100)
    (many,), _ = tried(tmp_path / "many", [packing("dense-u8")], 4000)
    assert few.bytes_a_row == pytest.approx(many.bytes_a_row, rel=0.05)


def test_what_a_codec_loses_grows_as_its_bytes_shrink(tmp_path: Path) -> None:
    names: tuple[CodecName, ...] = ("dense-f32", "dense-f16", "dense-u8")
    trials, _ = tried(tmp_path / "work", [*map(packing, names), packing("topk", 4)])
    sizes = [trial.bytes_a_row for trial in trials]
    assert sizes == sorted(sizes, reverse=True)
    for losses in ("kl", "tv"):
        for T in (1.0, 4.0):
            means = [float(np.concatenate(getattr(trial, losses)[T]).mean()) for trial in trials]
            assert means == sorted(means), (losses, T)
            assert means[0] < 1e-7 < 1e-3 < means[-1]
    assert [trial.agreed for trial in trials] == [300] * 4
    assert all(sum(map(len, trial.kl[1.0])) == 300 for trial in trials)


def test_a_codec_that_cannot_store_a_row_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    given = batches(300)
    given[1][1].logits[7, 3] = -np.inf
    f16, u8 = try_packings([packing("dense-f16"), packing("dense-u8")], given, tmp_path)
    assert u8.refused == "logits hold -inf, which dense-u8 cannot store (key 'n00107')"
    assert f16.refused is None
    assert f16.rows == 300
    assert np.isfinite(np.concatenate(f16.kl[4.0])).all()
