from pathlib import Path

import numpy as np
import pytest

from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import CodecName
from tests.unit.blocks import CLASSES, block_of, packing_of, same, write_set
from tests.unit.label_sets import all_rows, numbered

CHOSEN = ("e", "b", "c")
KEYS = ["key-7", "key-0", "key-4"]


def a_set(folder: Path, codec: CodecName = "dense-f16", views: int = 1) -> LabelSet:
    packing = packing_of(codec, views=views)
    blocks = numbered([block_of(packing, 6 * views, seed=seed) for seed in range(2)], views)
    return open_labelset(write_set(folder / "labels", packing, blocks))


def whole(blocks: object) -> LabelBlock:
    return concat_blocks(list(blocks))  # type: ignore[call-overload]


@pytest.mark.parametrize("codec", ["dense-f16", "dense-f32", "dense-u8", "factored"])
def test_chosen_classes_are_a_softmax_of_their_own(tmp_path: Path, codec: CodecName) -> None:
    labels = a_set(tmp_path, codec)
    chosen = labels.select(classes=CHOSEN)
    assert (chosen.classes, chosen.num_classes, len(chosen)) == (CHOSEN, 3, len(labels))
    block, full = whole(chosen.batches(5)), all_rows(labels)
    ids = [CLASSES.index(name) for name in CHOSEN]
    for T in (1.0, 3.0):
        wanted = softmax(full.logits(T)[:, ids], T)
        np.testing.assert_allclose(block.probs(T), wanted, rtol=1e-5)
    assert block.top1.tolist() == full.logits()[:, ids].argmax(axis=1).tolist()
    hard = [ids.index(label) if label in ids else None for label in full.labels.to_pylist()]
    assert block.labels.to_pylist() == hard
    same(chosen.lookup(KEYS), block.take(np.asarray([7, 0, 4])))


@pytest.mark.parametrize("views", [1, 2])
def test_chosen_keys_come_in_their_order(tmp_path: Path, views: int) -> None:
    labels = a_set(tmp_path, views=views)
    chosen = labels.select(keys=KEYS)
    assert len(chosen) == len(KEYS) * views
    rows = [int(key[4:]) * views + view for key in KEYS for view in range(views)]
    wanted = all_rows(labels).take(np.asarray(rows))
    same(whole(chosen.batches(2)), wanted)
    assert chosen.to_arrow()["key"].to_pylist() == wanted.keys.to_pylist()
    same(chosen.lookup(["key-4"], views - 1), labels.lookup(["key-4"], views - 1))
    with pytest.raises(DataError, match="key 'key-1' is not among the 3 keys of this selection"):
        chosen.lookup(["key-4", "key-1"])


def test_what_cannot_be_chosen_is_named(tmp_path: Path) -> None:
    labels = a_set(tmp_path)
    with pytest.raises(DataError, match="has no label for key 'key-99'"):
        labels.select(keys=["key-1", "key-99"])
    with pytest.raises(ParameterError, match="key 'key-1' stands twice among keys"):
        labels.select(keys=["key-1", "key-0", "key-1"])
    with pytest.raises(ParameterError, match="keys is empty; name one at least"):
        labels.select(keys=[])
    with pytest.raises(ParameterError, match=r"'z' is no class of .*labels"):
        labels.select(classes=["a", "z"])
    for classes in (["a"], ["a", "b", "a"]):
        with pytest.raises(ParameterError, match="must be two or more different names"):
            labels.select(classes=classes)


def test_topk_has_not_the_classes_to_choose(tmp_path: Path) -> None:
    labels = a_set(tmp_path, "topk")
    with pytest.raises(ParameterError, match="is a topk label set, which keeps 3 classes a row"):
        labels.select(classes=CHOSEN)
    same(whole(labels.select(keys=KEYS).batches(9)), labels.lookup(KEYS))
