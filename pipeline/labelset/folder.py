"""The folder of a label set while it is made: claim it, set aside what it held, take shards away.

Only the holder of the folder's lease calls these.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.labelset.standing import read_plan
from softlabel.pipeline.publish import (
    file_sha256,
    make_folder,
    publish_bytes,
    sync_folder,
)
from softlabel.schemas.labelset import (
    HEAD_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    Plan,
    canonical_json,
)

# Beside the folder: a complete set until the new one stands, and an unfinished one on its way out.
REPLACED = ".replaced"
DISCARDED = ".discarded"


def claim(folder: Path, plan: Plan) -> None:
    """Set aside what the folder holds and publish `plan`, before the first batch."""
    if read_plan(folder) is not None:
        _set_aside(folder)
    make_folder(folder)
    publish_bytes(folder / PLAN_FILE, canonical_json(plan))
    sync_folder(folder.parent)


def publish_head(folder: Path, head: Head) -> None:
    """Put the head of a factored set into the claimed folder, where it does not stand whole."""
    path = folder / HEAD_FILE
    if not path.is_file() or file_sha256(path) != head.digest():
        publish_bytes(path, head.to_bytes())


def replaced_folder(folder: Path) -> Path:
    """Where a complete set lies while another one is made in its folder."""
    return _beside(folder, REPLACED)


def reopen(folder: Path) -> None:
    """Withdraw the manifest of a set that turned out to have a broken shard."""
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    sync_folder(folder)


def remove_shards(folder: Path, names: Sequence[str]) -> None:
    """Delete these shards with their receipts, and the manifest: `infer` redoes exactly them."""
    reopen(folder)
    for name in names:
        for suffix in ("json", "parquet", "tar"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    sync_folder(folder)


def remove_replaced(folder: Path) -> None:
    """Delete what was set aside for the set that is complete now."""
    for suffix in (REPLACED, DISCARDED):
        if _beside(folder, suffix).exists():
            shutil.rmtree(_beside(folder, suffix))


def _set_aside(folder: Path) -> None:
    """Move a complete set beside the folder; an unfinished one is worth nothing and goes.

    It goes by a rename first: a folder that lost its plan half-way would be nobody's.
    """
    complete = (folder / MANIFEST_FILE).exists()
    target = _beside(folder, REPLACED if complete else DISCARDED)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)
    sync_folder(folder.parent)
    if not complete:
        shutil.rmtree(target)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)
