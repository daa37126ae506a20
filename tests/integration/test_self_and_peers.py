"""PS-KD and codistillation: the papers' update rules worked by hand, whole trainings, kills."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.shares import Share
from softlabel.pipeline.training.student import load_student
from softlabel.schemas.params import PrepareParams, TrainParams
from softlabel.stages import prepare, train_student
from tests.integration.test_train_kill import flags
from tests.unit.builders import numbers_of_keys, write_labels, write_source

if TYPE_CHECKING:
    from tests.conftest import Command, Project

HERE = "tests.integration.test_self_and_peers"
# What is said of two samples, over four classes, in powers of 1/2. Their classes are 0 and 1.
SAID = (
    ((1, 2, 3, 3), (2, 2, 2, 2)),
    ((2, 1, 3, 3), (3, 1, 2, 3)),
    ((1, 3, 3, 2), (3, 3, 2, 1)),
)
# H(y, s) of each, in bits.
HARD = [(1 + 2) / 2, (2 + 1) / 2, (1 + 3) / 2]


class Speaker(nn.Module):
    """Member m says in epoch e what stands at e + m of `SAID`, learning nothing."""

    built: ClassVar[int] = 0

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(num_classes))
        self.place = Speaker.built
        Speaker.built += 1

    def forward(self, pictures: Tensor) -> Tensor:
        numbers = (pictures[:, 0, 0, 0] / 2 + 0.5).mul(255).round().long()
        bits = torch.tensor(SAID[self.place % len(SAID)], dtype=torch.float32)
        if self.training:
            self.place += 1
        return -math.log(2) * bits[numbers] + 0 * self.nothing


@pytest.fixture
def speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[float]]]:
    """A function that trains speakers on two samples; each member's losses in bits, by epoch."""
    source = write_source(tmp_path / "data", (2,))
    monkeypatch.setattr(Speaker, "built", 0)

    def losses(**settings: Any) -> list[list[float]]:
        values = {
            "model": f"{HERE}:Speaker",
            "source": source.path,
            "loss": "kd",
            "batch_size": 2,
            "logger": "none",
            "output": tmp_path / "out",
        }
        report = train_student.run(TrainParams.model_validate(values | settings))
        return [
            [record.loss / math.log(2) for record in member.history]
            for member in (report, *report.peers)
        ]

    return losses


def test_self_follows_the_rule_of_the_paper(speak: Callable[..., list[list[float]]]) -> None:
    """Kim et al. 2021: `H((1 - a_t) y + a_t p_(t-1), p_t)`, `a_t` 0.3, 0.6, 0.9, p_0 being y."""
    (losses,) = speak(targets="self", soft_weight=0.9, epochs=3)
    # Of the first sample: 1/2 2 + 1/4 1 + 1/8 3 + 1/8 3, and so on.
    soft = [HARD[0], (2 + 2.25) / 2, (2.375 + 2.5) / 2]
    weights = [0.3, 0.6, 0.9]
    wanted = [(1 - a) * hard + a * s for a, hard, s in zip(weights, HARD, soft, strict=True)]
    assert wanted == pytest.approx([1.5, 1.875, 2.39375])
    assert losses == pytest.approx(wanted, rel=1e-3)


def test_self_may_start_from_a_stored_teacher(
    tmp_path: Path, speak: Callable[..., list[list[float]]]
) -> None:
    source = write_source(tmp_path / "data2", (2,))
    labels = open_labelset(write_labels(tmp_path / "labels", source))
    stored = labels.lookup(["n0", "n1"]).probs(1.0)
    (losses,) = speak(targets="self", soft_weight=0.9, epochs=3, labels=tmp_path / "labels")
    soft = (stored * SAID[0]).sum() / 2
    assert losses[0] == pytest.approx(0.7 * HARD[0] + 0.3 * soft, rel=1e-3)
    assert losses[1:] == pytest.approx([1.875, 2.39375], rel=1e-3)


def test_peers_follow_the_rule_of_the_paper(speak: Callable[..., list[list[float]]]) -> None:
    """Anil et al. 2018, algorithm 1: the teacher is the mean of the others' stale predictions.

    Published after epochs 0 and 2. The first member hears in epochs 1 and 2 what the others said
    in 0: (3/8, 5/16, 1/8, 3/16) of the first sample, (1/8, 5/16, 1/4, 5/16) of the second; in 3
    what they said in 2: (3/8, 3/8, 1/8, 1/8) and (3/16, 3/8, 1/4, 3/16).
    """
    rule = {"members": 3, "burn_in": 1, "exchange_epochs": 2, "epochs": 4}
    first, _, third = speak(targets="peers", temperature=1.0, soft_weight=0.5, **rule)
    soft = [(2 + 2.125) / 2, (2.0625 + 2.125) / 2, (1.875 + 2) / 2]
    wanted = [1.5, (HARD[1] + soft[0]) / 2, (HARD[2] + soft[1]) / 2, (HARD[0] + soft[2]) / 2]
    assert wanted == [1.5, 1.78125, 2.046875, 1.71875]
    assert first == pytest.approx(wanted, rel=1e-3)
    # The third says in epoch 1 what the first said in 0, and hears its 0 and the second's.
    assert third[1] == pytest.approx((HARD[0] + (1.875 + 2) / 2) / 2, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 2])
def test_within_an_epoch_a_peer_is_heard_as_of_the_last_exchange(
    tmp_path: Path, speak: Callable[..., list[list[float]]], steps: int
) -> None:
    """Of two steps an epoch: as of the step itself, or of the first one for both."""
    rule = {"members": 2, "burn_in": 1, "exchange_steps": steps, "epochs": 4, "batch_size": 1}
    losses = speak(targets="peers", temperature=1.0, soft_weight=0.5, **rule)
    samples = JoinedSamples(open_source(tmp_path / "data"), None)
    for member, other in ((0, 1), (1, 0)):
        for epoch in range(1, 4):
            wanted = 0.0
            for step, batch in enumerate(samples.epoch(member, epoch, 1, 65536)):
                (number,) = numbers_of_keys(batch.keys)
                now = 2 * epoch + step
                own = SAID[(member + now) % 3][number]
                heard = SAID[(other + now - step % steps) % 3][number]
                soft = sum(2.0**-theirs * mine for theirs, mine in zip(heard, own, strict=True))
                wanted += (own[number] + soft) / 2 / 2
            assert losses[member][epoch] == pytest.approx(wanted, rel=1e-3)


class Interrupted(nn.Module):
    """A student with a memory of its own (running means, dropout) that is stopped at a batch."""

    left: ClassVar[int] = 10**9

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.3),
            nn.Linear(16, num_classes),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        if self.training:
            if Interrupted.left == 0:
                raise KeyboardInterrupt
            Interrupted.left -= 1
        return self.net(pictures)  # type: ignore[no-any-return]


SELF = {"targets": "self", "soft_weight": 0.8}
PEERS = {"targets": "peers", "members": 2, "burn_in": 1, "exchange_epochs": 2, "temperature": 2.0}


STEPWISE = {"targets": "peers", "members": 3, "exchange_steps": 3, "temperature": 2.0}


def interrupted(output: str, **settings: Any) -> TrainParams:
    values = {
        "model": f"{HERE}:Interrupted",
        "source": "data/train",
        "loss": "kd",
        "epochs": 4,
        "batch_size": 64,
        "logger": "none",
        "device": "cpu",
        "checkpoint_steps": 3,
        "output": output,
    }
    return TrainParams.model_validate(values | settings)


def results(root: Path) -> dict[str, Any]:
    """Every file of all members, but the times in their reports."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            history = path.name == "train.json" and json.loads(data)["history"]
            found[str(path.relative_to(root))] = history or data
    return found


@pytest.mark.parametrize(
    ("settings", "folders"),
    [
        (SELF, 1),
        (PEERS, 2),
        (PEERS | {"member_data": "disjoint"}, 2),
        pytest.param(STEPWISE, 3, marks=pytest.mark.slow),
        pytest.param(
            STEPWISE | {"member_data": "disjoint", "exchange_steps": 1}, 3, marks=pytest.mark.slow
        ),
    ],
    ids=["self", "peers", "disjoint", "steps", "disjoint steps"],
)
def test_a_stopped_run_goes_on_with_the_very_same_targets(
    project: Project, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], folders: int
) -> None:
    """Every start dies a few batches after the last checkpoint, and still it ends."""
    train_student.run(interrupted("quiet/out", **settings))
    starts = 0
    # Each gets some batches further at least.
    while not list(Path("disturbed").rglob("student.json")) and starts < 4 * 4 * folders:
        starts += 1
        monkeypatch.setattr(Interrupted, "left", 5 if folders < 3 else 11)
        with contextlib.suppress(KeyboardInterrupt):
            train_student.run(interrupted("disturbed/out", **settings))
    assert starts > 3
    quiet = results(project.root / "quiet")
    assert results(project.root / "disturbed") == quiet
    manifests = [name for name in quiet if name.endswith("labelset.json")]
    assert len(manifests) == folders
    assert not [name for name in quiet if "lookup" in name or "checkpoint" in name]


def test_what_an_old_checkpoint_needs_is_kept(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the last of four epochs, it goes on after the second from what the first said."""
    rarely = SELF | {"checkpoint_epochs": 2, "checkpoint_steps": 0}
    train_student.run(interrupted("quiet/out", **rarely))
    monkeypatch.setattr(Interrupted, "left", 3 * 8 + 2)
    with pytest.raises(KeyboardInterrupt):
        train_student.run(interrupted("disturbed/out", **rarely))
    kept = sorted(path.name for path in Path("disturbed/out/memory").glob("epoch-000?"))
    assert kept == ["epoch-0001", "epoch-0002", "epoch-0003"]
    monkeypatch.setattr(Interrupted, "left", 2 * 8)
    train_student.run(interrupted("disturbed/out", **rarely))
    assert results(project.root / "disturbed") == results(project.root / "quiet")


@pytest.mark.parametrize(
    ("settings", "batches", "memory"),
    [(SELF, 20, "out/memory"), (STEPWISE, 24 + 13, "out/member-1/memory")],
    ids=["self", "steps"],
)
def test_without_its_memory_a_run_starts_afresh_and_says_so(
    project: Project,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    batches: int,
    memory: str,
) -> None:
    monkeypatch.setattr(Interrupted, "left", batches)
    with pytest.raises(KeyboardInterrupt):
        train_student.run(interrupted("out", **settings))
    (project.root / memory).rename("elsewhere")
    monkeypatch.setattr(Interrupted, "left", 10**9)
    words = f"train-student --model {HERE}:Interrupted --loss kd --output out"
    words += " --epochs 4 --batch-size 64 --logger none --device cpu --checkpoint-steps 3"
    outcome = command(*words.split(), *flags(settings))
    assert outcome.code == 0, outcome.stderr
    assert "what was said before is gone: all start afresh" in outcome.stderr
    assert "goes on" not in outcome.stderr


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    prepare.run(PrepareParams(output=folder / "data", validation_rows=200))
    return folder


@pytest.mark.parametrize(
    "settings",
    [SELF, {"targets": "peers", "members": 3, "burn_in": 2, "temperature": 2.0}],
    ids=["self", "peers"],
)
def test_digits_are_learnt_to_the_end(
    digits: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    params = TrainParams(
        model="softlabel.pipeline.small_models:mlp",
        model_args={"hidden": 32},
        source=digits / "data/train",
        validation=digits / "data/validation",
        loss="kd",
        epochs=6,
        batch_size=64,
        learning_rate=0.01,
        logger="none",
        output=tmp_path / "out",
        **settings,
    )
    report = train_student.run(params)
    folders = {member.output for member in (report, *report.peers)}
    assert len(folders) == params.members
    for member in (report, *report.peers):
        last = member.history[-1]
        assert last.validation_accuracy is not None and last.validation_accuracy > 0.9
        assert last.soft_kl is not None and last.soft_kl < 0.1
        assert last.unseen == 0
        labels = open_labelset(member.output / "memory/epoch-0005", check="full")
        assert len(labels) == member.samples
        assert [path.name for path in (member.output / "memory").iterdir()] == ["epoch-0005"]


def test_members_with_parts_of_their_own_speak_of_the_others_too(
    digits: Path, tmp_path: Path
) -> None:
    params = TrainParams(
        model="softlabel.pipeline.small_models:mlp",
        model_args={"hidden": 32},
        source=digits / "data/train",
        loss="kd",
        targets="peers",
        members=2,
        member_data="disjoint",
        temperature=1.0,
        epochs=3,
        learning_rate=0.01,
        logger="none",
        output=tmp_path / "out",
    )
    report = train_student.run(params)
    (other,) = report.peers
    source = open_source(params.source)
    assert report.samples + other.samples == source.rows
    assert min(report.samples, other.samples) > 0.4 * source.rows
    whole = source.first(source.rows)
    for index, member in enumerate((report, other)):
        labels = open_labelset(member.output / "memory/epoch-0002")
        assert len(labels) == source.rows
        apart = ~Share(index, 2).holds(whole.keys)
        _, student = load_student(member.output / "student.json")
        with torch.no_grad():
            says = student(torch.from_numpy(whole.inputs[apart])).softmax(dim=1).numpy()
        stored = labels.lookup(whole.keys.filter(pa.array(apart))).probs(1.0)
        assert stored == pytest.approx(says, abs=1e-3)
