import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import softlabel
from softlabel.pipeline.labelset import lookup, lookup_build, lookup_cache
from softlabel.pipeline.labelset.keys import key_hashes
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.publish import temporary_name
from softlabel.pipeline.shards import parquet as parquet_shards
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.errors import DataError, EnvironmentFault, ParameterError
from softlabel.schemas.labelset import CodecName, Layout
from tests.unit.blocks import CODECS, block_of, packing_of, write_set

ROWS = 24
LENGTHS = tuple(row % 4 for row in range(ROWS))


def written(
    folder: Path, codec: CodecName = "dense-f16", layout: Layout = "packed", **kind: Any
) -> tuple[LabelBlock, LabelSet]:
    """All rows in one block, and the label set of them, in shards of 10, 2 and 12 rows."""
    packing = packing_of(codec, layout, **kind)
    whole = block_of(packing, ROWS, LENGTHS if kind.get("positions") else None)
    shards = [whole.slice(0, 10), whole.slice(10, 2), whole.slice(12, 12)]
    return whole, softlabel.open(write_set(folder, packing, shards))


@pytest.fixture
def labels(tmp_path: Path) -> LabelSet:
    return written(tmp_path / "labels")[1]


def cache_of(labels: LabelSet) -> Path:
    return labels.folder.with_name(f"{labels.folder.name}.lookup-{labels.identity[:16]}")


def names(*numbers: int) -> list[str]:
    return [f"s/{number}.é" for number in numbers]


def expect(got: LabelBlock, whole: LabelBlock, rows: list[int]) -> None:
    wanted = whole.take(np.asarray(rows, np.int64))
    assert got.to_arrow().equals(wanted.to_arrow())
    assert got.keys.equals(wanted.keys)
    assert np.array_equal(got.probs(2.0), wanted.probs(2.0))
    for part, other in ((got.lengths, wanted.lengths), (got.views, wanted.views)):
        assert (part is None) == (other is None)
        if part is not None and other is not None:
            assert part.dtype == other.dtype
            assert np.array_equal(part, other)
    for name, values in wanted.payload.items():
        assert got.payload[name].dtype == values.dtype


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", [{}, {"views": 2}, {"positions": True}])
def test_rows_come_in_the_order_asked_for(
    tmp_path: Path, codec: CodecName, kind: dict[str, Any]
) -> None:
    whole, labels = written(tmp_path / "labels", codec, **kind)
    views = kind.get("views", 1)
    samples = [5, 0, 11, 5, 3, 10]
    for view in range(views):
        got = labels.lookup(names(*samples), view)
        expect(got, whole, [views * sample + view for sample in samples])
    assert len(labels.lookup([])) == 0


def test_features_come_with_their_rows(tmp_path: Path) -> None:
    whole, labels = written(tmp_path / "labels", features=True)
    expect(labels.lookup(names(7, 2)), whole, [7, 2])


@pytest.mark.parametrize("layout", ["packed", "lists", "sidecar"])
def test_every_container_and_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 500)
    for kind in ({}, {"views": 2}, {"positions": True}):
        whole, labels = written(tmp_path / f"labels{len(kind)}{kind}", "topk", layout, **kind)
        views = kind.get("views", 1)
        everything = list(range(ROWS // views))
        got = labels.lookup(names(*everything), view=views - 1)
        expect(got, whole, [views * sample + views - 1 for sample in everything])


@pytest.mark.parametrize(
    "ask",
    [
        lambda keys: tuple(keys),
        lambda keys: np.asarray(keys),
        lambda keys: pa.array(keys),
        lambda keys: pa.array(keys, pa.large_string()),
        lambda keys: pa.array(["no", *keys, "no"]).slice(1, len(keys)),
        lambda keys: pa.chunked_array([keys[:1], keys[1:]]),
    ],
)
def test_keys_may_be_any_strings(tmp_path: Path, ask: Callable[[list[str]], Any]) -> None:
    whole, labels = written(tmp_path / "labels")
    expect(labels.lookup(ask(names(9, 1, 23))), whole, [9, 1, 23])


def test_keys_of_ascii_alone(tmp_path: Path) -> None:
    packing = packing_of("dense-f16")
    block = replace(block_of(packing, 4), keys=pa.array(["", "b", "cc", "b c"], pa.string()))
    labels = softlabel.open(write_set(tmp_path / "labels", packing, [block]))
    for keys in (["b c", "", "b", "b", "cc"], np.asarray(["b c", "", "b", "b", "cc"])):
        expect(labels.lookup(keys), block, [3, 0, 1, 1, 2])
    with pytest.raises(DataError, match="has no label for key 'bc'"):
        labels.lookup(["b", "bc"])


def test_an_array_of_views(tmp_path: Path) -> None:
    whole, labels = written(tmp_path / "labels", views=3)
    views = np.asarray([2, 0, 1, 1], np.uint16)
    expect(labels.lookup(names(4, 4, 0, 7), views), whole, [14, 12, 1, 22])


@pytest.mark.parametrize(
    ("view", "problem"),
    [
        (3, r"view 3 is outside 0\.\.2, the views of .*labels"),
        (-1, r"view -1 is outside 0\.\.2"),
        (np.asarray([0, 3]), r"view 3 is outside 0\.\.2"),
        (np.asarray([0]), "one for each of 2 keys; got int64 of shape"),
        (np.asarray([0.0, 1.0]), "view must be an integer"),
    ],
)
def test_an_impossible_view_is_refused(
    tmp_path: Path, view: int | npt.NDArray[Any], problem: str
) -> None:
    labels = written(tmp_path / "labels", views=3)[1]
    with pytest.raises(ParameterError, match=problem):
        labels.lookup(names(0, 1), view)


@pytest.mark.parametrize("keys", [["a", 3], ["a", None], "s/0.é", [["a"]], 7, ["\ud800"]])
def test_keys_that_are_no_strings_are_refused(labels: LabelSet, keys: Any) -> None:
    with pytest.raises(ParameterError, match="lookup: keys must be "):
        labels.lookup(keys)


@pytest.mark.parametrize("unknown", ["s/24.é", "", "s/1.e", "s/1.é ", "S/1.é"])
def test_the_first_unknown_key_is_named(labels: LabelSet, unknown: str) -> None:
    with pytest.raises(DataError, match=f"labels: has no label for key '{unknown}'; run"):
        labels.lookup([*names(3, 1), unknown, "another"])


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_hashes_that_collide_never_give_another_keys_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """All keys share 2^bits hashes."""

    def collide(keys: pa.Array) -> npt.NDArray[np.uint64]:
        return key_hashes(keys) & np.uint64(2**bits - 1)

    monkeypatch.setattr(lookup, "key_hashes", collide)
    monkeypatch.setattr(lookup_build, "key_hashes", collide)
    whole, labels = written(tmp_path / "labels")
    rows = [*range(ROWS - 1, -1, -1), 5, 5]
    expect(labels.lookup(names(*rows)), whole, rows)
    for unknown in ("s/99.é", "s/1.x", "t/1.é"):
        with pytest.raises(DataError, match=f"has no label for key '{unknown}'"):
            labels.lookup([*names(2), unknown])


def test_many_keys_at_the_ends_of_the_index(tmp_path: Path, monkeypatch: Any) -> None:
    """Hashes at both ends of their range, more of them than are compared at once."""

    def crowd(keys: pa.Array) -> npt.NDArray[np.uint64]:
        true = key_hashes(keys)
        return np.where(true % np.uint64(2) == 0, true >> np.uint64(32), ~(true >> np.uint64(32)))

    monkeypatch.setattr(lookup, "key_hashes", crowd)
    monkeypatch.setattr(lookup_build, "key_hashes", crowd)
    whole, labels = written(tmp_path / "labels")
    rows = list(range(ROWS))
    expect(labels.lookup(names(*rows)), whole, rows)
    with pytest.raises(DataError, match="has no label for key 'x'"):
        labels.lookup(["x"])


def test_hashes_are_those_of_the_format() -> None:
    # XXH3-64 of "", "a" and "é" in UTF-8, as the reference implementation says.
    wanted = [0x2D06800538D394C2, 0xE6C632B61E964E1F]
    assert key_hashes(pa.array(["", "a"])).tolist() == wanted
    assert key_hashes(pa.array(["x", "é", "a"]).slice(2)).tolist() == wanted[1:]


def test_two_samples_with_one_key_are_refused(tmp_path: Path) -> None:
    packing = packing_of("dense-f16")
    block = block_of(packing, 6)
    labels = softlabel.open(write_set(tmp_path / "labels", packing, [block, block.slice(4, 1)]))
    with pytest.raises(DataError, match=r"labels: holds two samples with the key 's/4\.é'; run"):
        labels.lookup(names(0))
    assert not cache_of(labels).exists()


def test_views_that_do_not_stand_together_are_refused(tmp_path: Path) -> None:
    packing = packing_of("dense-f16", views=2)
    block = block_of(packing, 6)
    for number, order in enumerate(([0, 2, 1, 3, 4, 5], [1, 0, 2, 3, 4, 5], [0, 3, 2, 1, 4, 5])):
        mixed = block.take(np.asarray(order))
        labels = softlabel.open(write_set(tmp_path / f"l{number}", packing, [mixed]))
        with pytest.raises(DataError, match="the views of a sample do not stand together; run"):
            labels.lookup(names(0))


def test_the_cache_lies_beside_the_folder_and_the_folder_stays_as_it_is(labels: LabelSet) -> None:
    before = {path.name: path.read_bytes() for path in labels.folder.iterdir()}
    labels.lookup(names(1))
    assert {path.name: path.read_bytes() for path in labels.folder.iterdir()} == before
    beside = {path.name for path in labels.folder.parent.iterdir()}
    assert beside == {"labels", cache_of(labels).name}


def times(labels: LabelSet) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache_of(labels).iterdir()}


def test_the_cache_is_built_once(labels: LabelSet) -> None:
    labels.lookup(names(1))
    before = times(labels)
    labels.lookup(names(2))
    softlabel.open(labels.folder).lookup(names(3))
    assert times(labels) == before


def test_a_relative_folder_and_a_linked_one(
    tmp_path: Path, labels: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(labels.folder)
    softlabel.open(tmp_path / "link").lookup(names(1))
    before = times(labels)
    monkeypatch.chdir(labels.folder)
    assert len(softlabel.open(".").lookup(names(1))) == 1
    assert times(labels) == before


def test_another_content_under_the_name_is_built_again(tmp_path: Path) -> None:
    """As where the same teacher ran elsewhere: one identity, other bits."""
    packing = packing_of("dense-f16")
    blocks = {name: block_of(packing, 6, seed=seed) for seed, name in enumerate(("one", "two"))}
    for name, block in blocks.items():
        write_set(tmp_path / name / "labels", packing, [block])
    assert not np.array_equal(blocks["one"].shift, blocks["two"].shift)
    for name in ("one", "two", "one"):
        labels = softlabel.open(tmp_path / name / "labels", cache=tmp_path / "cache")
        expect(labels.lookup(names(4, 0, 3)), blocks[name], [4, 0, 3])
    assert len(list((tmp_path / "cache").iterdir())) == 1


SPOIL: dict[str, Callable[[Path], object]] = {
    "column gone": lambda cache: (cache / "value-logits.npy").unlink(),
    "column cut": lambda cache: os.truncate(cache / "value-logits.npy", 100),
    "card gone": lambda cache: (cache / "lookup.json").unlink(),
    "card damaged": lambda cache: (cache / "lookup.json").write_text("{"),
}


@pytest.mark.parametrize("harm", SPOIL)
def test_a_cache_that_is_not_whole_is_built_again(tmp_path: Path, harm: str) -> None:
    whole, labels = written(tmp_path / "labels")
    labels.lookup(names(1))
    SPOIL[harm](cache_of(labels))
    expect(softlabel.open(labels.folder).lookup(names(2, 1)), whole, [2, 1])


FLIPPED = ("value-logits", "value-shift", "value-label", "starts", "key_starts", "samples")


@pytest.mark.parametrize("column", FLIPPED)
@pytest.mark.parametrize("small", [True, False])
def test_a_cache_with_a_flipped_bit_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, small: bool
) -> None:
    """A small one at any opening, one of gigabytes where a full check is asked for."""
    whole, labels = written(tmp_path / "labels", positions=True)
    labels.lookup(names(1))
    if not small:
        monkeypatch.setattr(lookup_cache, "CHECKED_BYTES", 0)
    path = cache_of(labels) / f"{column}.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-3] + bytes([good[-3] ^ 4]) + good[-2:])
    problems = [problem.message for problem in lookup.check_cache(labels.folder, labels.manifest)]
    assert len(problems) == 1
    assert f"damaged in {path}; delete the folder {path.parent}" in problems[0]
    rows = list(range(ROWS))
    expect(
        softlabel.open(labels.folder, "manifest" if small else "full").lookup(names(*rows)),
        whole,
        rows,
    )
    assert path.read_bytes() == good
    assert list(lookup.check_cache(labels.folder, labels.manifest)) == []


def test_a_large_cache_is_not_read_through_at_each_opening(
    labels: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup_cache, "CHECKED_BYTES", 0)
    labels.lookup(names(1))
    monkeypatch.setattr(lookup_cache, "_xxh3_64", None)
    assert len(softlabel.open(labels.folder).lookup(names(2))) == 1


@pytest.mark.parametrize("name", ["value-logits", "hashes"])
def test_a_column_of_another_shape_or_type_is_built_again(tmp_path: Path, name: str) -> None:
    whole, labels = written(tmp_path / "labels")
    labels.lookup(names(1))
    path = cache_of(labels) / f"{name}.npy"
    good = np.load(path)
    for other in (good[:-1], good.view(np.int8 if good.ndim > 1 else np.int64)):
        np.save(path, other)
        expect(softlabel.open(labels.folder).lookup(names(2, 1)), whole, [2, 1])
        assert np.array_equal(np.load(path), good)


def test_a_cache_that_stands_whole_is_read_through_and_kept(labels: LabelSet) -> None:
    labels.lookup(names(1))
    before = times(labels)
    softlabel.open(labels.folder, check="full").lookup(names(2))
    assert times(labels) == before


def others(tmp_path: Path) -> tuple[LabelBlock, LabelSet, LabelSet]:
    """A set whose cache stands, and the set of another identity that took its folder since."""
    old_block, old = written(tmp_path / "labels")
    old.lookup(names(1))
    shutil.rmtree(old.folder)
    return old_block, old, written(tmp_path / "labels", "topk")[1]


def test_the_cache_of_a_set_that_was_replaced_goes(tmp_path: Path) -> None:
    whole, old, new = others(tmp_path)
    # Another folder's, one that is no cache, and what a killed builder left of a third set.
    (tmp_path / f"my-{cache_of(old).name}").mkdir()
    kept = tmp_path / f"labels.lookup-{'0' * 16}"
    kept.mkdir()
    (kept / "notes.txt").touch()
    left = tmp_path / f".labels.lookup-{'1' * 16}.tmp"
    left.mkdir()
    (left / "hashes.npy").touch()
    (tmp_path / f"labels.lookup-{'1' * 16}.lock").touch()
    new.lookup(names(2))
    standing = {path.name for path in tmp_path.iterdir()}
    assert standing == {"labels", f"my-{cache_of(old).name}", kept.name, cache_of(new).name}
    # Who has it open goes on.
    expect(old.lookup(names(3, 0)), whole, [3, 0])


def test_the_cache_that_somebody_builds_stays(tmp_path: Path) -> None:
    _, old, new = others(tmp_path)
    with lookup_cache._alone(cache_of(old)):
        new.lookup(names(2))
        assert cache_of(old).is_dir()
    assert cache_of(new).is_dir()


def test_in_a_chosen_place_no_cache_is_removed(tmp_path: Path) -> None:
    """It may be that of a folder of the same name elsewhere."""
    sets = [written(tmp_path / codec / "labels", codec)[1] for codec in ("dense-f16", "topk")]
    for labels in sets:
        softlabel.open(labels.folder, cache=tmp_path / "cache").lookup(names(1))
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {
        cache_of(labels).name for labels in sets
    }


def test_a_chosen_place(tmp_path: Path, labels: LabelSet) -> None:
    chosen = softlabel.open(labels.folder, cache=tmp_path / "deep" / "place")
    chosen.lookup(names(1))
    assert [path.name for path in (tmp_path / "deep" / "place").iterdir()] == [
        cache_of(labels).name
    ]
    assert not cache_of(labels).exists()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "full")])
def test_a_place_that_cannot_be_written_names_the_argument(
    labels: LabelSet, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(lookup_cache.NpyWriter, "append", fail)
    wanted = rf"lookup-.*cannot be written \({error.strerror}\); .*softlabel.open\(folder, cache="
    with pytest.raises(EnvironmentFault, match=wanted):
        labels.lookup(names(1))
    assert [path.name for path in labels.folder.parent.iterdir()] == ["labels"]


def test_a_read_only_place_with_a_cache_is_enough(
    tmp_path: Path, labels: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels.lookup(names(1))

    def refuse(*arguments: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lookup_cache, "_locked", refuse)
    assert len(softlabel.open(labels.folder).lookup(names(1, 2))) == 2
    (cache_of(labels) / "lookup.json").unlink()
    with pytest.raises(EnvironmentFault, match=r"cache=PATH"):
        softlabel.open(labels.folder).lookup(names(1))


def test_a_damaged_shard_is_refused_and_leaves_nothing(labels: LabelSet) -> None:
    path = labels.folder / "part-00002.parquet"
    data = path.read_bytes()
    place = data.index("s/20.é".encode())
    path.write_bytes(data[:place] + b"S" + data[place + 1 :])
    with pytest.raises(DataError, match=r"part-00002\.parquet"):
        labels.lookup(names(1))
    assert [path.name for path in labels.folder.parent.iterdir()] == ["labels"]


CHILD = """
import sys, softlabel
from softlabel.pipeline.labelset import lookup_build
if sys.argv[2:]:
    import os, signal
    finish = lookup_build._Columns.finish
    lookup_build._Columns.finish = lambda columns: os.kill(os.getpid(), signal.SIGKILL)
softlabel.open(sys.argv[1]).lookup(["s/1.é"])
"""


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    whole, labels = written(tmp_path / "labels")
    done = subprocess.run([sys.executable, "-c", CHILD, str(labels.folder), "die"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert temporary_name(cache_of(labels)).is_dir()
    assert not cache_of(labels).exists()
    expect(labels.lookup(names(2, 1)), whole, [2, 1])
    assert {path.name for path in tmp_path.iterdir()} == {"labels", cache_of(labels).name}


@pytest.fixture
def slow_build(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Counts, over all processes that are forked from here, who builds; each takes a while."""
    context = multiprocessing.get_context("fork")
    built = context.Value("i", 0)
    write = lookup_build.write_cache

    def build(*arguments: Any) -> Any:
        with built.get_lock():
            built.value += 1
        time.sleep(0.2)
        return write(*arguments)

    monkeypatch.setattr(lookup, "write_cache", build)
    yield built


def ask(folder: Path, start: Any, answers: Any) -> None:
    start.wait()
    block = softlabel.open(folder).lookup(names(4, 2))
    answers.put(block.shift.tolist())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_of_processes_that_start_at_once_one_builds(tmp_path: Path, slow_build: Any) -> None:
    whole, labels = written(tmp_path / "labels")
    context = multiprocessing.get_context("fork")
    start, answers = context.Event(), context.Queue()
    crowd = [context.Process(target=ask, args=(labels.folder, start, answers)) for _ in range(4)]
    for process in crowd:
        process.start()
    start.set()
    got = [answers.get(timeout=60) for _ in crowd]
    for process in crowd:
        process.join()
        assert process.exitcode == 0
    assert got == [whole.shift[[4, 2]].tolist()] * 4
    assert slow_build.value == 1
    assert {path.name for path in tmp_path.iterdir()} == {"labels", cache_of(labels).name}


def test_rows_are_not_held_while_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks come from row groups of a few rows, and each is let go before the next but one."""
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 300)
    sizes = []
    append = lookup_build._Columns.append

    def count(columns: Any, block: LabelBlock, keys: pa.StringArray) -> None:
        sizes.append(len(block))
        append(columns, block, keys)

    monkeypatch.setattr(lookup_build._Columns, "append", count)
    _, labels = written(tmp_path / "labels")
    labels.lookup(names(0))
    assert sum(sizes) == ROWS
    assert max(sizes) <= 4
