"""What a student said in an epoch comes back in the next, by key, as a label set of its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training import filling
from softlabel.pipeline.training.filling import Filling
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.memory import LabelMemory
from softlabel.schemas.errors import DataError, EnvironmentFault, IdentityError
from softlabel.schemas.params import InspectParams, VerifyParams
from softlabel.stages import inspect, verify
from tests.unit.builders import CLASSES, make_identity, numbers_of_keys, write_source

SHARDS = (5, 3)
ROWS = sum(SHARDS)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_source(tmp_path / "data", SHARDS)


@pytest.fixture
def memory(tmp_path: Path, source: Source) -> LabelMemory:
    return LabelMemory(tmp_path / "memory", make_identity(source))


def said(numbers: Sequence[int], epoch: int) -> npt.NDArray[np.float32]:
    """Logits that tell number and epoch, whose largest value is 0."""
    rows = np.asarray(numbers, np.float32)
    columns = [0 * rows, -1 - rows, 0 * rows - 20 - epoch, 0 * rows - 50]
    return np.asarray(np.stack(columns, axis=1), np.float32)


def fill(part: Filling, numbers: Sequence[int], epoch: int) -> None:
    keys = pa.array([f"n{number}" for number in numbers])
    labels = np.asarray([number % len(CLASSES) for number in numbers])
    part.add(keys, labels, said(numbers, epoch) + 3)


def told(memory: LabelMemory, epoch: int) -> dict[int, int]:
    """In which epoch each number's stored logits were said; they must be that number's."""
    result = {}
    for block in memory.labels(epoch).batches(100):
        for number, logits, shift in zip(
            numbers_of_keys(block.keys), block.logits(), block.shift, strict=True
        ):
            result[number] = int(-20 - logits[2])
            assert logits.tolist() == said([number], result[number])[0].tolist()
            assert shift == 3
    return result


def test_an_epoch_is_a_label_set_that_joins_by_key(source: Source, memory: LabelMemory) -> None:
    part = memory.begin(0)
    for numbers in ([6, 1, 4], [0, 2, 7], [3, 5]):
        fill(part, numbers, epoch=0)
    assert part.publish() == 0
    labels = open_labelset(memory.folder / "epoch-0000", check="full")
    assert (labels.manifest.aligned, labels.manifest.making.verb) == (False, "train-student")
    assert (labels.manifest.identity.codec, labels.manifest.identity.epoch) == ("dense-f16", 0)
    for batch in JoinedSamples(source, labels).epoch(0, 1, 4, 65536):
        assert batch.teacher is not None
        assert batch.teacher.tolist() == said(numbers_of_keys(batch.keys), 0).tolist()


def test_the_other_verbs_take_it_as_any_set(source: Source, memory: LabelMemory) -> None:
    part = memory.begin(0)
    fill(part, range(ROWS), epoch=0)
    part.publish()
    folder = memory.folder / "epoch-0000"
    report = inspect.run(InspectParams(labels=folder))
    assert (report.rows, report.labelled, report.aligned) == (ROWS, ROWS, False)
    checked = verify.run(VerifyParams(labels=folder, source=source.path, teacher=source.path))
    assert checked.problems == ()
    assert checked.not_replayed == (
        "not replayed: a student said these while it trained; no file can be asked again"
    )


def test_a_sample_not_seen_keeps_its_earlier_prediction_and_is_counted(memory: LabelMemory) -> None:
    for epoch, numbers in enumerate([range(ROWS), [0, 2, 4, 6], [0, 1]]):
        part = memory.begin(epoch)
        fill(part, numbers, epoch)
        assert part.publish() == ROWS - len(numbers)
    assert told(memory, 2) == {0: 2, 1: 2, 2: 1, 3: 0, 4: 1, 5: 0, 6: 1, 7: 0}


def test_a_cut_epoch_goes_on_where_it_was_cut(memory: LabelMemory) -> None:
    part = memory.begin(0)
    fill(part, [5, 0], epoch=0)
    assert part.cut() == 1
    fill(part, [1, 2], epoch=9)
    part.cut()
    part = memory.begin(0, shards=1)
    fill(part, [1, 2], epoch=0)
    assert part.publish() == 0
    assert told(memory, 0) == {5: 0, 0: 0, 1: 0, 2: 0}
    open_labelset(memory.folder / "epoch-0000", check="full")


def test_an_epoch_that_is_begun_again_forgets_all(memory: LabelMemory) -> None:
    for numbers in ([1, 2, 3], [4, 5]):
        part = memory.begin(0)
        assert memory.last(1) is None
        fill(part, numbers, epoch=0)
        part.publish()
    assert told(memory, 0) == {4: 0, 5: 0}


def test_a_large_epoch_has_many_shards(
    memory: LabelMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "SHARD_BYTES", 64)
    part = memory.begin(0)
    for number in range(ROWS):
        fill(part, [number], epoch=0)
    part.publish()
    labels = memory.labels(0)
    assert len(labels.manifest.shards) == ROWS / 4
    assert told(memory, 0) == dict.fromkeys(range(ROWS), 0)


def test_only_the_last_set_is_kept(memory: LabelMemory) -> None:
    for epoch in range(3):
        part = memory.begin(epoch)
        fill(part, range(ROWS), epoch)
        part.publish()
        memory.labels(epoch).lookup(["n0"])
        memory.forget(before=epoch)
        assert memory.last(epoch + 1) == epoch
        names = {path.name.partition(".")[0] for path in memory.folder.iterdir()}
        assert names == {f"epoch-{epoch:04d}"}
    memory.labels(2).lookup(["n0"])
    memory.keep_last()
    assert [path.name for path in memory.folder.iterdir()] == ["epoch-0002"]
    memory.clear()
    assert memory.last(9) is None


def test_spans_of_an_epoch_have_sets_of_their_own(memory: LabelMemory) -> None:
    moments = [(0, 9), (1, 0), (1, 10), (2, 1)]
    for number, (epoch, span) in enumerate(moments):
        assert not memory.holds(epoch, span)
        part = memory.begin_span(epoch, span)
        fill(part, [number, 7], epoch=0)
        assert part.publish() == 0
    for number, (epoch, span) in enumerate(moments):
        labels = memory.labels(epoch, span)
        assert (labels.manifest.identity.epoch, labels.manifest.identity.span) == (epoch, span)
        assert len(labels) == 2
        labels.lookup([f"n{number}"])
    memory.forget(1, 10)
    assert [memory.holds(*moment) for moment in moments] == [False, False, True, True]
    memory.keep_last()
    assert [path.name for path in memory.folder.iterdir()] == ["epoch-0002-00001"]


def test_what_another_rank_said_on_a_disk_of_its_own_is_missed(memory: LabelMemory) -> None:
    memory.begin(3)
    with pytest.raises(EnvironmentFault, match=r"epoch-0003: is not there.*that all of them share"):
        memory.labels(3)


def test_a_key_that_comes_twice_is_named(memory: LabelMemory) -> None:
    part = memory.begin(0)
    fill(part, [1, 2], epoch=0)
    fill(part, [2, 3], epoch=0)
    with pytest.raises(DataError, match="epoch-0000: 'n2' came more than once in an epoch; the ke"):
        part.publish()


def test_a_logit_that_is_no_number_is_named(memory: LabelMemory) -> None:
    logits = said([1, 2], 0)
    logits[1, 2] = np.nan
    wanted = "student's logits hold NaN for key 'n2'; lower --learning-rate"
    with pytest.raises(DataError, match=wanted):
        memory.begin(0).add(pa.array(["n1", "n2"]), np.array([1, 2]), logits)


def test_what_another_training_said_is_refused(source: Source, memory: LabelMemory) -> None:
    part = memory.begin(0)
    fill(part, range(ROWS), epoch=0)
    part.publish()
    identity = make_identity(source).model_copy(update={"teacher_sha256": ("1" * 64,)})
    other = LabelMemory(memory.folder, identity)
    wanted = "epoch-0000: holds what another training said; remove .*memory and train again"
    with pytest.raises(IdentityError, match=wanted):
        other.labels(0)


def test_a_damaged_shard_is_not_gone_on_with(memory: LabelMemory) -> None:
    part = memory.begin(0)
    fill(part, [1, 2], epoch=0)
    part.cut()
    path = memory.folder / "epoch-0000/part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="part-00000: is missing, damaged or of another training"):
        memory.begin(0, shards=1)
