import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from torch.utils.data import DataLoader

from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.shards import tar
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.params import ConvertParams
from softlabel.stages import convert
from softlabel.torch import DistillationBatch, DistillationDataset, PackedTargets
from tests.unit.builders import (
    CLASSES,
    TEMPERATURES,
    numbers_of_keys,
    numbers_of_logits,
    numbers_of_pixels,
    write_labels,
    write_source,
)

SHARDS = (10, 3, 12, 7)
ROWS = sum(SHARDS)
BATCH = 3
# A worker is a fork of this process, where other tests have left threads that wait; a machine may
# have fewer processors than a test has workers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    source = write_source(root / "data", SHARDS)
    write_labels(root / "labels", source, batch_size=2, shard_rows=4)
    return root


def dataset(root: Path, **settings: Any) -> DistillationDataset:
    wanted = {"batch_size": BATCH, "seed": 5, "shuffle_rows": 16} | settings
    return DistillationDataset(root / "data", root / "labels", **wanted)


def loaded(samples: DistillationDataset, workers: int, **settings: Any) -> DataLoader[Any]:
    context = "fork" if workers else None
    return DataLoader(
        samples, batch_size=None, num_workers=workers, multiprocessing_context=context, **settings
    )


def aligned(batch: DistillationBatch) -> list[int]:
    """The numbers of a batch, of which all parts must tell."""
    numbers = [int(key.removeprefix("n")) for key in batch.keys]
    assert batch.pixels.shape == (len(numbers), 1, 2, 3)
    assert numbers_of_pixels(batch.pixels.permute(0, 2, 3, 1).numpy()).tolist() == numbers
    assert batch.hard_labels.tolist() == [number % len(CLASSES) for number in numbers]
    assert isinstance(batch.targets, Tensor)
    assert numbers_of_logits(batch.targets.numpy()) == numbers
    return numbers


def steps(ranks: Iterable[Iterable[DistillationBatch]]) -> list[int]:
    """What ranks see, step by step; they take as many steps."""
    return [
        number for step in zip(*ranks, strict=True) for batch in step for number in aligned(batch)
    ]


def order(root: Path, epoch: int) -> list[int]:
    """The order that train-student sees."""
    joined = JoinedSamples(dataset(root)._source, open_labelset(root / "labels"))
    batches = joined.epoch(5, epoch, BATCH, 16)
    return [number for batch in batches for number in numbers_of_keys(batch.keys)]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_sample_meets_its_label_once_an_epoch(root: Path, ranks: int, workers: int) -> None:
    parts = [dataset(root, part=(rank, ranks)) for rank in range(ranks)]
    loaders = [loaded(part, workers, persistent_workers=workers > 0) for part in parts]
    seen = []
    for epoch in (0, 1):
        for part in parts:
            part.set_epoch(epoch)
        seen.append(steps(loaders))
        assert seen[epoch] == order(root, epoch)
    assert sorted(seen[0]) == list(range(ROWS))
    assert seen[0] != seen[1]
    assert [len(loader) for loader in loaders] == [len(parts[0])] * ranks


def test_tars_are_checked_once_for_all_epochs_and_workers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert.run(ConvertParams(labels=root / "labels", output=tmp_path / "tars", layout="sidecar"))
    checked: list[str] = []

    def noted(path: Path) -> str:
        checked.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(tar, "file_sha256", noted)
    samples = DistillationDataset(
        root / "data", tmp_path / "tars", batch_size=BATCH, seed=5, shuffle_rows=16
    )
    shards = sorted(path.name for path in (tmp_path / "tars").glob("*.tar"))
    assert sorted(checked) == shards

    def refused(path: Path) -> str:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(tar, "file_sha256", refused)
    for workers in (0, 2):
        for epoch in (0, 1):
            samples.set_epoch(epoch)
            assert steps([loaded(samples, workers)]) == order(root, epoch)
    pickled = pickle.loads(pickle.dumps(samples))
    assert steps([pickled]) == order(root, 1)


IMPORTED = """
import sys, softlabel
dataset = softlabel.torch.DistillationDataset(*sys.argv[1:], batch_size=3)
before = set(sys.modules)
assert len(list(dataset)) == 11
print([name for name in sorted(set(sys.modules) - before) if "." not in name])
"""


def test_an_epoch_imports_nothing(root: Path) -> None:
    """What workers would import they find imported; pandas took each half a second."""
    command = [sys.executable, "-c", IMPORTED, str(root / "data"), str(root / "labels")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(("stopped", "ranks"), [(0, 1), (2, 2), (3, 2), (5, 1)])
@pytest.mark.parametrize(("other_ranks", "other_workers"), [(1, 3), (2, 0), (3, 0)])
def test_a_run_goes_on_with_other_workers_and_ranks(
    root: Path, stopped: int, ranks: int, other_ranks: int, other_workers: int
) -> None:
    begun = [dataset(root, part=(rank, ranks)) for rank in range(ranks)]
    for part in begun:
        part.set_epoch(4)
    # Workers read ahead of the loop that stops.
    had = [list(taken(loaded(part, 2 if rank else 0), stopped)) for rank, part in enumerate(begun)]
    seen = steps(had)
    states = [
        part.state_dict(batches[-1].seen if batches else 0)
        for part, batches in zip(begun, had, strict=True)
    ]
    assert all(state == states[0] for state in states)
    rest = [dataset(root, part=(rank, other_ranks), batch_size=2) for rank in range(other_ranks)]
    for part in rest:
        part.load_state_dict(states[0])
        assert part.epoch == 4
        part.set_epoch(4)
    assert seen + steps(loaded(part, other_workers) for part in rest) == order(root, 4)
    rest[0].set_epoch(5)
    assert rest[0].state_dict(0)["position"] == 0


def taken(batches: Iterable[DistillationBatch], number: int) -> Iterator[DistillationBatch]:
    yield from (batch for batch, _ in zip(batches, range(number), strict=False))


def test_the_ranks_are_those_of_torchrun_or_torch(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    own = dataset(root)
    expected = [aligned(batch) for batch in dataset(root, part=(1, 2))]
    assert [aligned(batch) for batch in own] == expected
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        alone = pickle.dumps(own)
        assert sum(len(aligned(batch)) for batch in own) == ROWS
    finally:
        torch.distributed.destroy_process_group()
    # As a worker that is spawned has it, in which torch.distributed does not run.
    assert sum(len(aligned(batch)) for batch in pickle.loads(alone)) == ROWS


def test_a_copy_by_pickle_gives_the_same(root: Path) -> None:
    own = dataset(root)
    first = steps([own])
    assert steps([pickle.loads(pickle.dumps(own))]) == first


@pytest.mark.slow
def test_spawned_workers_give_the_same(root: Path) -> None:
    own = dataset(root, transform=noisy)
    loader = DataLoader(own, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    for here, there in zip(own, loader, strict=True):
        assert torch.equal(here.pixels, there.pixels)
        assert here.keys.tolist() == there.keys.tolist()


def noisy(picture: Tensor) -> Tensor:
    """The number of the picture, and what each generator gives."""
    return torch.cat([picture.flatten().float(), torch.rand(1), torch.tensor([np.random.rand()])])


def test_what_a_transform_draws_depends_on_the_place_alone(root: Path) -> None:
    own = dataset(root, transform=noisy)
    state = torch.get_rng_state()
    first = torch.cat([batch.pixels for batch in own])
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (ROWS, 8)
    assert len(first[:, 6].unique()) == len(first[:, 7].unique()) == ROWS
    again = torch.cat([batch.pixels for batch in loaded(own, 2)])
    assert torch.equal(again, first)
    own.load_state_dict(own.state_dict(4 * BATCH))
    assert torch.equal(torch.cat([batch.pixels for batch in own]), first[4 * BATCH :])
    own.set_epoch(1)
    second = torch.cat([batch.pixels for batch in own])
    assert not set(second[:, 6].tolist()) & set(first[:, 6].tolist())


def test_topk_labels_come_as_kept_or_spread(root: Path, tmp_path: Path) -> None:
    source = dataset(root)._source
    folder = write_labels(tmp_path / "topk", source, codec="topk", k=2)
    kept = next(iter(DistillationDataset(root / "data", folder, temperature=4.0)))
    assert isinstance(kept.targets, PackedTargets)
    assert kept.targets.temperature == 4.0
    block = open_labelset(folder).lookup(kept.keys)
    sparse = block.sparse(4.0)
    assert np.array_equal(kept.targets.columns["ids"], sparse.ids)
    assert np.array_equal(kept.targets.columns["tail_lse"], sparse.tail_lse)
    spread = DistillationDataset(root / "data", folder, temperature=4.0, tail="spread")
    targets = next(iter(spread)).targets
    assert isinstance(targets, Tensor)
    assert np.array_equal(targets, block.logits(4.0))
    with pytest.raises(ParameterError, match=r"topk is a topk label set.* give the loss's as temp"):
        DistillationDataset(root / "data", folder)
    with pytest.raises(ParameterError, match=r"temperature 0.5 is below 1"):
        DistillationDataset(root / "data", folder, temperature=0.5)


def test_a_worker_hands_over_one_piece_of_memory(root: Path, tmp_path: Path) -> None:
    source = dataset(root)._source
    folder = write_labels(tmp_path / "topk", source, codec="topk", k=2)
    kept = DistillationDataset(root / "data", folder, temperature=4.0)
    for samples in (dataset(root), dataset(root, transform=noisy), kept):
        for here, there in zip(samples, loaded(samples, 2), strict=True):
            assert type(there) is DistillationBatch
            assert torch.equal(here.pixels, there.pixels)
            assert here.pixels.stride() == there.pixels.stride()
            assert torch.equal(here.hard_labels, there.hard_labels)
            assert here.keys.tolist() == there.keys.tolist()
            for one, other in zip(columns(here), columns(there), strict=True):
                assert torch.equal(one, other)
                assert memory(other) == memory(there.pixels)
            # Who keeps these does not keep all.
            assert memory(there.hard_labels) != memory(there.pixels)


def columns(batch: DistillationBatch) -> list[Tensor]:
    targets = batch.targets
    assert targets is not None
    return list(targets.columns.values()) if isinstance(targets, PackedTargets) else [targets]


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_samples_alone_have_no_targets(root: Path) -> None:
    alone = DistillationDataset(root / "data", None, batch_size=ROWS)
    (batch,), (handed,) = alone, loaded(alone, 1)
    assert batch.targets is handed.targets is None
    assert torch.equal(batch.pixels, handed.pixels)
    assert sorted(numbers_of_pixels(batch.pixels.permute(0, 2, 3, 1).numpy())) == list(range(ROWS))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"shuffle_rows": 0}, "shuffle_rows must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"channels": 3}, r"DistillationDataset\.channels: is 3, the pictures of .* have 1"),
    ],
)
def test_settings_out_of_range_are_named(
    root: Path, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ParameterError, match=problem):
        dataset(root, **settings)


def test_the_labels_of_another_source_are_refused(root: Path, tmp_path: Path) -> None:
    write_source(tmp_path / "other", SHARDS, first=1)
    with pytest.raises(DataError, match="labels does not hold the labels of"):
        DistillationDataset(tmp_path / "other", root / "labels")


def test_a_state_of_another_order_is_refused(root: Path) -> None:
    own = dataset(root)
    state = own.state_dict(1)
    with pytest.raises(DataError, match=r"another order of samples \(different: seed\)"):
        dataset(root, seed=6).load_state_dict(state)
    # As where the label set leaves other samples out.
    with pytest.raises(DataError, match=r"\(different: rows\)"):
        own.load_state_dict(state | {"rows": ROWS - 1})
    with pytest.raises(DataError, match=r"\(different: position\)"):
        own.load_state_dict(state | {"position": ROWS + 1})
    with pytest.raises(DataError, match=r"the state is damaged .epoch: Field required"):
        own.load_state_dict({name: value for name, value in state.items() if name != "epoch"})
    with pytest.raises(ParameterError, match="seen must be from 0 to 32, the samples of an epoch;"):
        own.state_dict(33)
    assert own.state_dict(0)["position"] == 0


def test_more_ranks_than_samples_left_are_refused(root: Path) -> None:
    begun = dataset(root, batch_size=ROWS - 1)
    own = dataset(root, part=(0, 2))
    own.load_state_dict(begun.state_dict(ROWS - 1))
    with pytest.raises(DataError, match="1 samples are left in epoch 0 for 2 ranks; go on with"):
        next(iter(own))


def test_temperatures_between_the_recorded_are_taken(root: Path) -> None:
    assert 2.0 not in TEMPERATURES
    assert steps([dataset(root, temperature=2.0)]) == order(root, 0)
