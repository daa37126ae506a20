"""Which samples a report shows: pairs of one class whose soft targets differ most.

One pass over the label set. Of every class and every rival (the likeliest class that is not the
sample's own) the samples that give the rival most are kept, and nothing else, so memory does not
grow with the rows; pairs are formed among these few.
"""

from __future__ import annotations

import base64
import bisect
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.sources.replaying import replayed
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Segment

CHOICE_TEMPERATURE = 4.0
BATCH_VALUES = 2**22
RIVALS_PER_CLASS = 8
POOL_BYTES = 64 * 2**20
# The group of the samples that are most surely of their class: the other half of a pair where a
# class has one rival only.
SURE = -1


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of a label set that may be shown.

    position: its row in stored order. target: its hard label, or top-1 where unknown (then
    `labelled` is false). rival: the likeliest other class. mass: the rival's probability at T = 4,
    in group SURE the target's. logits: float16 `[C]`, for T = 4 where the codec depends on it.
    """

    position: int
    key: str
    target: int
    labelled: bool
    top1: int
    rival: int
    mass: float
    logits: npt.NDArray[np.float16]
    view: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Samples of one class, two or a single one, and the total variation between two at T = 4."""

    members: tuple[Candidate, ...]
    distance: float | None


class LabelRows(Protocol):
    """What the choice needs of a label set."""

    @property
    def num_classes(self) -> int:
        """C, the width of a row's logits."""

    def batches(self, rows: int) -> Iterator[LabelBlock]:
        """All rows in stored order, `rows` at a time."""


Group = tuple[int, int]
Pool = dict[Group, list[Candidate]]


def choose_pairs(
    labels: LabelRows, samples: int, on_rows: Callable[[int], None] = lambda rows: None
) -> tuple[Pair, ...]:
    """At most `samples` samples as pairs, the most different pair first, classes taking turns.

    The choice depends on the label set and `samples` alone. `on_rows` hears of the rows read.
    """
    pool = _collect(labels, samples, on_rows)
    by_class: dict[int, dict[int, list[Candidate]]] = {}
    for (target, rival), members in sorted(pool.items()):
        by_class.setdefault(target, {})[rival] = members
    ranked = [_pairs_of_class(groups) for groups in by_class.values()]
    return tuple(_deal(ranked, samples))


def total_variation(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> float:
    """`sum |p - q| / 2` of two distributions `[C]`: 0 when equal, 1 when disjoint."""
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).sum()) / 2


def _collect(labels: LabelRows, samples: int, on_rows: Callable[[int], None]) -> Pool:
    depth = math.ceil(samples / labels.num_classes) + 1
    limit = max(2 * samples, POOL_BYTES // (2 * labels.num_classes))
    pool: Pool = {}
    first = 0
    for block in labels.batches(max(1, BATCH_VALUES // labels.num_classes)):
        for group, candidate in _offers(block, first, depth):
            _keep(pool.setdefault(group, []), candidate, depth)
        _prune(pool, limit)
        first += len(block)
        on_rows(len(block))
    return pool


def _offers(block: LabelBlock, first: int, depth: int) -> Iterator[tuple[Group, Candidate]]:
    """The block's best rows of each (class, rival) and each (class, SURE)."""
    logits = block.logits(CHOICE_TEMPERATURE)
    probs = softmax(logits, CHOICE_TEMPERATURE)
    known = block.labels.fill_null(-1).to_numpy(zero_copy_only=False)
    targets = np.where(known >= 0, known, block.top1.astype(np.int64))
    rows = np.arange(len(block))
    sure = probs[rows, targets].copy()
    probs[rows, targets] = -1
    rivals = probs.argmax(axis=1)
    doubt = probs[rows, rivals]
    for group_of, masses in ((rivals, doubt), (np.full(len(block), SURE), sure)):
        for row in _best(targets, group_of, masses, depth):
            target, rival, mass = int(targets[row]), int(rivals[row]), float(masses[row])
            labelled, top1 = bool(known[row] >= 0), int(block.top1[row])
            key, kept = block.keys[int(row)].as_py(), logits[row].astype(np.float16)
            position = first + int(row)
            view = None if block.views is None else int(block.views[row])
            yield (
                (target, int(group_of[row])),
                Candidate(position, key, target, labelled, top1, rival, mass, kept, view),
            )


def _best(
    targets: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    masses: npt.NDArray[np.float32],
    depth: int,
) -> npt.NDArray[np.int64]:
    """The rows with the `depth` largest masses of each group, earlier rows first among equals."""
    order = np.lexsort((np.arange(len(masses)), -masses, groups, targets))
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(targets[order]) != 0) | (np.diff(groups[order]) != 0)
    first_of_group = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    return order[np.arange(len(order)) - first_of_group < depth]


def _keep(kept: list[Candidate], candidate: Candidate, depth: int) -> None:
    if len(kept) < depth or _by_mass(candidate) < _by_mass(kept[-1]):
        bisect.insort(kept, candidate, key=_by_mass)
        del kept[depth:]


def _by_mass(candidate: Candidate) -> tuple[float, int]:
    return (-candidate.mass, candidate.position)


def _prune(pool: Pool, limit: int) -> None:
    """Keep each class's strongest rivals, and of the doubtful at most `limit` in all."""
    strongest = sorted((group for group in pool if group[1] != SURE), key=lambda g: _order(pool, g))
    rivals: dict[int, int] = {}
    kept = 0
    for group in strongest:
        rivals[group[0]] = rivals.get(group[0], 0) + 1
        kept += len(pool[group])
        if rivals[group[0]] > RIVALS_PER_CLASS or kept > limit:
            kept -= len(pool[group])
            del pool[group]
    with_rival = {target for target, rival in pool if rival != SURE}
    for group in [group for group in pool if group[0] not in with_rival]:
        del pool[group]


def _order(pool: Pool, group: Group) -> tuple[tuple[float, int], Group]:
    return (_by_mass(pool[group][0]), group)


def _pairs_of_class(groups: Mapping[int, list[Candidate]]) -> list[Pair]:
    """Pairs of doubtful rows, then of sure ones; mixed where the class has one rival only."""
    doubtful = [member for rival, members in groups.items() if rival != SURE for member in members]
    taken = {member.position for member in doubtful}
    sure = [member for member in groups.get(SURE, []) if member.position not in taken]
    if len(groups.keys() - {SURE}) < 2:
        return _rank(doubtful + sure)
    return _rank(doubtful) + _rank(sure)


def _rank(members: Sequence[Candidate]) -> list[Pair]:
    """Disjoint pairs of one class, those with different rivals first; then the rest alone.

    The best pair is the one with the largest sum of its distance and the weaker rival's share:
    where one of two is far off, distance alone would take any sure row for the other. The pool
    holds few rows a class, so all their pairs can be compared.
    """
    probs = [softmax(member.logits, CHOICE_TEMPERATURE) for member in members]
    shares = [float(p[member.rival]) for p, member in zip(probs, members, strict=True)]
    scored = []
    for i, j in combinations(range(len(members)), 2):
        same = members[i].rival == members[j].rival
        distance = total_variation(probs[i], probs[j])
        score = distance if same else distance + min(shares[i], shares[j])
        scored.append((same, -score, i, j, distance))
    pairs: list[Pair] = []
    used: set[int] = set()
    for _, _, i, j, distance in sorted(scored):
        if not used & {i, j}:
            used |= {i, j}
            pairs.append(Pair((members[i], members[j]), distance))
    alone = [members[i] for i in range(len(members)) if i not in used]
    return pairs + [Pair((member,), None) for member in alone]


def _deal(ranked: Sequence[Sequence[Pair]], samples: int) -> Iterator[Pair]:
    """Each class's first pair by distance, then each one's second, until `samples` are dealt."""
    for turn in range(max(map(len, ranked), default=0)):
        round_ = [pairs[turn] for pairs in ranked if turn < len(pairs)]
        for pair in sorted(round_, key=_most_different):
            if samples == 0:
                return
            if len(pair.members) > samples:
                pair = Pair((max(pair.members, key=lambda member: member.mass),), None)
            samples -= len(pair.members)
            yield pair


def _most_different(pair: Pair) -> tuple[bool, float, int]:
    first, *others = pair.members
    same_rival = not others or others[0].rival == first.rival
    return (same_rival, -(pair.distance or 0.0), first.target)


def read_pictures(
    labels: LabelSet, source: Source, candidates: Sequence[Candidate]
) -> dict[int, npt.NDArray[np.uint8]]:
    """The pictures `[height, width, channels]` of the candidates, by their position.

    source: framed for the teacher. Raises DataError, naming the key, where it does not hold what
    was labelled; what `replayed` raises where views cannot be made.
    """
    source = replayed(source, labels.manifest.identity, labels.folder)
    wanted = pa.array(sorted({candidate.key for candidate in candidates}), pa.string())
    pictures: dict[str, npt.NDArray[np.uint8]] = {}
    for file in source.files:
        keys = source.keys([Segment(source=file.name, first=0, rows=file.rows)])
        for row in np.flatnonzero(pc.is_in(keys, wanted).to_numpy(zero_copy_only=False)):
            block = source.read([Segment(source=file.name, first=int(row), rows=1)])
            pictures[keys[int(row)].as_py()] = block.inputs
    for candidate in candidates:
        if candidate.key not in pictures:
            raise DataError(
                f"{source.path}: is not the source of {labels.folder}: it lacks key "
                f"{candidate.key!r}, which the label set has; pass the source that was labelled"
            )
    return {
        candidate.position: pictures[candidate.key][candidate.view or 0] for candidate in candidates
    }


def png_data_uri(picture: npt.NDArray[np.uint8]) -> str:
    """A uint8 picture `[height, width, channels]` as a PNG in a data URI.

    One, three or four channels are grey, RGB or RGBA; of others the first is shown in grey.
    """
    pixels = picture if picture.shape[2] in (3, 4) else picture[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
