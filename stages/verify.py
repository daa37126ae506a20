"""verify: whether a label set is whole, covers its source and says what its teacher says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.checking import detectors as checks
from softlabel.pipeline.checking.coverage import check_whole_coverage, check_whole_source
from softlabel.pipeline.checking.replay import (
    chain_loss,
    features_difference,
    is_subset,
    stored_rows,
    why_not_replayed,
)
from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.labelset import integrity
from softlabel.pipeline.labelset.folder import remove_shards
from softlabel.pipeline.labelset.labelset import LabelSet, read_manifest
from softlabel.pipeline.labelset.lease import lease
from softlabel.pipeline.labelset.lookup import check_cache
from softlabel.pipeline.labelset.rejects import read_rejects
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.ensemble import EnsembleSession, reopen_teachers
from softlabel.pipeline.teachers.features import find_features
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Manifest, shard_file
from softlabel.schemas.location import Location
from softlabel.schemas.params import VerifyParams
from softlabel.schemas.reports import VerifyReport
from softlabel.schemas.reports.label_sets import Problem, Replay
from softlabel.schemas.sample import POSITIONS, TeacherOutput

# A replay may run elsewhere than the labels were made: what float32 arithmetic moves, and a
# multiple of what the codec is known to lose.
KL_FLOOR = 1e-5
KL_FACTOR = 10.0
# Of the largest feature: float16 rounds by 5e-4 of each, and another device's arithmetic differs.
FEATURES_LIMIT = 5e-3
# Rows among which the replayed ones are chosen, in random pieces of at most 8,192.
REPLAY_WINDOW = 65536
# Where a sample has many positions, so many in all, and so many logits: 4 bytes each, held often.
REPLAY_POSITIONS, REPLAY_LOGITS = 2**18, 2**27
# The longest of so many sequences tells how long they are.
SEEN_SEQUENCES = 64


def run(params: VerifyParams, progress: Progress | None = None) -> VerifyReport:
    """Run every check that the given paths allow, and report what each found.

    Raises ParameterError, DataError where there is nothing to check, EnvironmentFault.
    """
    progress = progress or Quiet()
    if params.teacher and params.source is None:
        raise ParameterError("verify: a teacher alone replays nothing; pass --source too")
    manifest = read_manifest(params.labels)
    source = _source(params.source, manifest) if params.source else None
    done = ["folder", "receipts", "bytes", "schema", "values"]
    progress.start("verify", manifest.rows, "rows")
    problems = list(_stored(params.labels, manifest, progress))
    if source is not None:
        done += ["source", "coverage"]
        headless = any(problem.kind == "head" for problem in problems)
        problems += _against_source(params.labels, manifest, source, headless)
    replay = None
    refusal = why_not_replayed(manifest) if params.teacher else None
    if source is not None and params.teacher and not (problems or refusal):
        done += ["replay", "negative control"]
        replay = _replay(params, manifest, source)
        problems += _judge(replay)
    removed = _repair(params.labels, problems) if params.repair else ()
    return VerifyReport(
        labels=params.labels,
        making=manifest.making,
        shards=len(manifest.shards),
        rows=manifest.rows,
        rejects=manifest.rejects.samples if manifest.rejects else 0,
        checks=tuple(done),
        problems=tuple(problems),
        replay=replay,
        not_replayed=refusal,
        removed=removed,
    )


def _source(path: Location, manifest: Manifest) -> Source:
    """The source, with the set's class names where it has none."""
    identity = manifest.identity
    source = open_source(path)
    kept_some = identity.derived is not None and identity.derived.class_ids is not None
    return source if kept_some else source.naming(identity.classes)


def _stored(folder: Path, manifest: Manifest, progress: Progress) -> Iterator[Problem]:
    yield from integrity.check_folder(folder, manifest)
    headless = list(integrity.check_head(folder, manifest))
    yield from headless
    yield from integrity.check_rejects(folder, manifest)
    # Made once: its identity's digest takes long where the source has many shards.
    packing = None if headless else folder_packing(folder, manifest)
    for shard in manifest.shards:
        yield from integrity.check_receipt(folder, manifest, shard)
        damage = list(integrity.check_bytes(folder, manifest, shard))
        yield from damage
        if packing is not None and not any("missing" in problem.message for problem in damage):
            yield from integrity.check_schema(folder, packing, shard)
            yield from checks.check_values(folder, packing, shard)
        progress.advance(shard.rows)
    if packing is not None:
        yield from checks.check_keys(folder, manifest, packing)
    yield from check_cache(folder, manifest)


def _against_source(
    folder: Path, manifest: Manifest, source: Source, headless: bool
) -> Iterator[Problem]:
    try:
        rejects = read_rejects(folder, manifest)
    except DataError:
        return  # told already, and what is missing cannot be told from what is left out
    # Without its head no shard can be read, and none of them is to blame.
    packing = None if headless else folder_packing(folder, manifest)
    if packing is not None and rejects:
        yield from checks.check_rejected(folder, packing, manifest, rejects, source)
    if not manifest.aligned:
        faults = list(check_whole_source(manifest, source))
        yield from faults
        if not headless and not faults:
            yield from check_whole_coverage(folder, manifest, source, rejects)
        return
    yield from checks.check_unlabelled(manifest, source, rejects)
    for shard in manifest.shards:
        faults = list(checks.check_source(folder, manifest, shard, source))
        yield from faults
        if packing is None or faults:
            continue
        if (folder / shard_file(shard.name, manifest.layout)).exists():
            yield from checks.check_coverage(folder, packing, shard, source)


def _replay(params: VerifyParams, manifest: Manifest, source: Source) -> Replay:
    """Take samples, by the student's own loader where it can, run the teacher, compare at T = 1."""
    labels = LabelSet(params.labels, manifest)
    classes, grid = source.classes, manifest.identity.grid
    source = source.fed(manifest.identity, f"the teacher of {params.labels}").naming(classes)
    # Of a picture, neighbours say nearly the same: the negative control moves whole pictures.
    each = 1 if grid is None else math.prod(grid)
    fewer = min(params.replay, _most_samples(manifest, source))
    params = params.model_copy(update={"replay": fewer})
    temperature = max(1.0, min(labels.temperatures))
    if is_subset(manifest, source):
        pixels, block = stored_rows(labels, source, params.replay, params.seed)
        logits: npt.NDArray[np.floating] = block.logits(temperature)
    else:
        pixels, logits = _student_rows(params, labels, source, temperature)
    full = _run_teacher(params, manifest, pixels).logits
    columns = manifest.identity.class_map
    teacher = full if columns is None else full[:, list(columns)]
    near = min(manifest.fidelity, key=lambda item: abs(item.temperature - temperature))
    loss = near.kl_mean
    if manifest.identity.derived is not None:
        codec = folder_packing(params.labels, manifest).codec
        lost = chain_loss(full, columns, manifest.identity, codec, temperature)
        loss = max(loss, checks.mean_divergence(teacher / temperature, lost / temperature))
    teacher = teacher / np.float32(temperature)
    stored = logits.astype(np.float32) / np.float32(temperature)
    features, shifted_features = _replay_features(params, labels, source)
    return Replay(
        rows=len(stored),
        kl_mean=checks.mean_divergence(teacher, stored),
        kl_limit=KL_FLOOR + KL_FACTOR * loss,
        probability_difference=float(np.abs(softmax(teacher, 1) - softmax(stored, 1)).max()),
        shifted_kl_mean=checks.mean_divergence(teacher, np.roll(stored, each, axis=0)),
        features_difference=features,
        shifted_features_difference=shifted_features,
    )


def _most_samples(manifest: Manifest, source: Source) -> int:
    """How many samples can be replayed, two at least, for all their logits to be held."""
    identity = manifest.identity
    positions = math.prod(identity.grid or ())
    if identity.positions and identity.inputs is not None:
        positions = source.first(SEEN_SEQUENCES).inputs[POSITIONS].shape[1]
    return max(2, min(REPLAY_POSITIONS, REPLAY_LOGITS // len(identity.classes)) // positions)


def _replay_features(
    params: VerifyParams, labels: LabelSet, source: Source
) -> tuple[float | None, float | None]:
    """How far stored features lie from the teacher's, and shifted by one row; None without any."""
    if labels.manifest.identity.features_output is None:
        return None, None
    pixels, block = stored_rows(labels, source, params.replay, params.seed)
    made = _run_teacher(params, labels.manifest, pixels).features
    assert made is not None
    assert block.features is not None
    shifted = np.roll(block.features, 1, axis=0)
    return features_difference(made, block.features), features_difference(made, shifted)


def _student_rows(
    params: VerifyParams, labels: LabelSet, source: Source, T: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.floating]]:
    joined = JoinedSamples(source, labels, T)
    rows = min(params.replay, joined.rows)
    batch = next(joined.epoch(params.seed, 0, rows, max(rows, REPLAY_WINDOW)))
    assert batch.teacher is not None
    return batch.pixels, batch.teacher


def _run_teacher(
    params: VerifyParams, manifest: Manifest, pixels: npt.NDArray[np.uint8]
) -> TeacherOutput:
    """The teacher's logits of all its classes, in its own order, and what features are stored."""
    teachers = reopen_teachers(params.teacher, manifest.identity)
    name = manifest.identity.features_output
    inner = None if name is None else find_features(teachers.first, name)
    size = next((one.fixed_batch for one in teachers.members if one.fixed_batch), len(pixels))
    session = EnsembleSession(teachers, params.device, size, inner)
    parts = range(0, len(pixels), size)
    outputs = [session.run(pixels[first : first + size]) for first in parts]
    features = [output.features for output in outputs if output.features is not None]
    return TeacherOutput(
        np.concatenate([output.logits for output in outputs]),
        np.concatenate(features) if features else None,
    )


def _judge(replay: Replay) -> Iterator[Problem]:
    if not replay.kl_mean <= replay.kl_limit:
        message = (
            f"the teacher says otherwise: mean KL {replay.kl_mean:.2g} over {replay.rows} samples, "
            f"at most {replay.kl_limit:.2g} passes"
        )
        yield Problem(kind="replay", shard=None, message=message)
    if replay.shifted_kl_mean <= replay.kl_limit:
        message = (
            f"labels shifted by one row pass too (mean KL {replay.shifted_kl_mean:.2g}), so the "
            "replay proves nothing: the teacher says the same of every sample"
        )
        yield Problem(kind="negative control", shard=None, message=message)
    if replay.features_difference is None or replay.shifted_features_difference is None:
        return
    if not replay.features_difference <= FEATURES_LIMIT:
        message = (
            f"the teacher's features are others: they differ by {replay.features_difference:.2g} "
            f"of the largest one, at most {FEATURES_LIMIT:g} passes"
        )
        yield Problem(kind="replay", shard=None, message=message)
    if replay.shifted_features_difference <= FEATURES_LIMIT:
        message = "features shifted by one row pass too, so their replay proves nothing"
        yield Problem(kind="negative control", shard=None, message=message)


def _repair(folder: Path, problems: list[Problem]) -> tuple[str, ...]:
    broken = tuple(dict.fromkeys(p.shard for p in problems if p.shard is not None))
    if not broken:
        return ()
    with lease(folder):
        remove_shards(folder, broken)
    return broken
