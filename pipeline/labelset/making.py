"""Making a label set in its folder: under a lease, going on with what stands, closed at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.labelset.closing import close
from softlabel.pipeline.labelset.folder import DISCARDED, REPLACED, claim, publish_head, reopen
from softlabel.pipeline.labelset.lease import Lease, Share, lease
from softlabel.pipeline.labelset.standing import finished_shards, standing_plan
from softlabel.pipeline.progress import Progress
from softlabel.pipeline.publish import make_folder, publish_bytes
from softlabel.schemas.errors import EnvironmentFault, IdentityError, ParameterError
from softlabel.schemas.labelset import (
    FLOAT32,
    Manifest,
    Plan,
    Receipt,
    Reference,
    ShardPlan,
    canonical_json,
)
from softlabel.schemas.params.shared import IfDifferent

# Writes one shard into the folder and returns its receipt; tells of rows as they are written.
WriteShard = Callable[[ShardPlan, Path, Callable[[int], None]], Receipt]


@dataclass(frozen=True, slots=True)
class Made:
    """A finished set: its manifest, the rows written now, and the shards that stood already."""

    manifest: Manifest
    rows_written: int
    shards_kept: int


def make_set(
    output: Path,
    plan: Plan,
    write_shard: WriteShard,
    *,
    head: Head | None = None,
    reference: Reference = FLOAT32,
    if_different: IfDifferent,
    overwrite: bool,
    progress: Progress,
) -> Made:
    """Write the shards of `plan` that `output` lacks, each with its receipt, and the manifest.

    For sets that are made from other sets: no teacher runs, so nothing but the plan decides their
    bytes. Raises IdentityError where other labels are in the way, EnvironmentFault, LeaseHeld.
    """
    with writing_folder(output) as (folder, held):
        kept = _begin(folder, plan, head, if_different, overwrite)
        pending = [shard for shard in plan.shards if shard.name not in kept]
        if pending:
            reopen(folder)
            progress.start(plan.making.verb, sum(shard.rows for shard in pending), "rows")

        def on_rows(rows: int) -> None:
            held.check()
            progress.advance(rows)

        for shard in pending:
            receipt = write_shard(shard, folder, on_rows)
            publish_bytes(folder / f"{shard.name}.json", canonical_json(receipt))
        held.check()
        manifest = close(folder, plan, reference)
    return Made(manifest, sum(shard.rows for shard in pending), len(kept))


@contextlib.contextmanager
def writing_folder(output: Path, share: Share | None = None) -> Iterator[tuple[Path, Lease]]:
    """Hold the lease on the folder `output`, or on a share of it.

    The system's refusals become EnvironmentFault.
    """
    folder = plain(output)
    try:
        make_folder(folder.parent)
        with lease(folder, share=share) as held:
            yield folder, held
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or output}: {error.strerror or error}; finished shards are "
            "kept, mend this and run the same command again"
        ) from error


def plain(folder: Path) -> Path:
    """The folder itself where it is spelt as a link or from within, else as it is spelt."""
    spelt_inside = folder.name in ("", "..")
    return folder.resolve() if folder.is_symlink() or spelt_inside else folder


def refuse_overlap(output: Path, parents: Sequence[Path]) -> None:
    """Raise ParameterError where writing a set would touch one that it is made from.

    Beside the output stand, for a while, the set that it replaces and an unfinished one.
    """
    target = output.resolve()
    used = {target, *(target.with_name(target.name + end) for end in (REPLACED, DISCARDED))}
    for parent in parents:
        read = parent.resolve()
        if read == target:
            raise ParameterError(
                f"output: {output} is the label set to read from; choose another --output"
            )
        if used & {read, *read.parents} or read in target.parents:
            raise ParameterError(
                f"output: {output} lies in the way of {parent}, the label set to read from; "
                "choose another --output"
            )


def _begin(
    folder: Path, plan: Plan, head: Head | None, if_different: IfDifferent, overwrite: bool
) -> dict[str, Receipt]:
    """Claim the folder, or go on with what stands in it; the receipts of its whole shards."""
    standing = standing_plan(folder, plan, if_different, overwrite)
    if standing is not None and standing != plan:
        if if_different == "error":
            raise IdentityError(
                f"{folder}: holds the same labels in other shards, for the set that it was made "
                "from was cut otherwise; choose another --output, or pass --if-different replace"
            )
        standing = None
    if standing is None:
        claim(folder, plan)
    if head is not None:
        publish_head(folder, head)
    return {} if standing is None else finished_shards(folder, plan)
