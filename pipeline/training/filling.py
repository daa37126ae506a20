"""Filling the label set of one epoch while the student trains.

Rows are appended in the order of training, in shards of 64 MiB or less, and the plan and the
manifest come last: until then the set is unfinished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.codecs.codec import encode_rows
from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.labelset.closing import close
from softlabel.pipeline.labelset.folder import reopen
from softlabel.pipeline.labelset.keys import KeySet, few, miscounted_keys
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.labelset.portions import shard_name
from softlabel.pipeline.labelset.standing import finished_shards, read_receipt
from softlabel.pipeline.publish import make_folder, publish_bytes
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.layouts import open_shard, writing_shard
from softlabel.pipeline.shards.packing import make_packing, payload_bytes
from softlabel.pipeline.shards.tally import FIDELITY_ROWS, Tally
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import (
    PLAN_FILE,
    Identity,
    Making,
    Plan,
    ShardPlan,
    canonical_json,
)
from softlabel.schemas.sample import Array

SHARD_BYTES = 64 * 2**20
READ_ROWS = 4096
MAKING: Final = Making(verb="train-student", command="softlabel train-student")


class Filling:
    """The unfinished label set in `folder`, which goes on after its first `shards`.

    Whatever else the folder holds goes. earlier: the set that keeps what this epoch does not see.
    Calls belong to one thread. Raises DataError where a shard to go on after is not whole.
    """

    def __init__(
        self, folder: Path, identity: Identity, earlier: LabelSet | None = None, shards: int = 0
    ) -> None:
        self._folder = folder
        self._earlier = earlier
        self._packing = make_packing(identity, made_by=MAKING.verb)
        self._shard_rows = max(1, SHARD_BYTES // payload_bytes(self._packing.codec))
        self._shards: list[ShardPlan] = []
        self._keys: list[pa.StringArray] = []
        self._start_shard()
        make_folder(folder)
        reopen(folder)
        names = [shard_name(index) for index in range(shards)]
        for path in folder.iterdir():
            if path.stem not in names:
                path.unlink()
        for name in names:
            self._take_up(name)

    def add(self, keys: pa.StringArray, labels: Array, logits: Floats) -> None:
        """Keep the logits float32 `[N, C]` of these samples, with their hard labels `[N]`.

        Raises DataError, naming the key, where a row is not finite.
        """
        codec = self._packing.codec
        try:
            rows = encode_rows(codec, logits)
        except ValueError as error:
            reason, row = error.args
            raise DataError(
                f"train: the student's {reason} for key {keys[row].as_py()!r}; lower "
                "--learning-rate"
            ) from error
        hard = pa.array(np.asarray(labels, np.int32))
        block = LabelBlock(keys, hard, rows.top1, rows.shift, rows.columns, codec)
        self._tally.add(block, lambda T: logits)
        self._append(block)

    def cut(self) -> int:
        """Make all rows so far durable; after how many shards a later `Filling` goes on."""
        if self._rows:
            name = shard_name(len(self._shards))
            with writing_shard(self._folder, name, self._packing) as writer:
                writer.append(concat_blocks(self._blocks))
                file = writer.finish()
            shard = ShardPlan(name=name, rows=self._rows, segments=())
            receipt = self._tally.receipt(shard, self._packing.identity_sha256, file, ())
            publish_bytes(self._folder / f"{name}.json", canonical_json(receipt))
            self._shards.append(shard)
            self._start_shard()
        return len(self._shards)

    def publish(self) -> int:
        """Complete the set; how many samples were not seen and keep an earlier prediction.

        Raises DataError where a key was seen twice.
        """
        twice = miscounted_keys(lambda: self._keys)
        if twice:
            raise DataError(
                f"{self._folder}: {few(twice)} came more than once in an epoch; the keys of a "
                "source must be unique, prepare it again"
            )
        unseen = self._keep_unseen()
        self.cut()
        plan = self._plan(self._shards)
        publish_bytes(self._folder / PLAN_FILE, canonical_json(plan))
        close(self._folder, plan)
        return unseen

    def _start_shard(self) -> None:
        self._blocks: list[LabelBlock] = []
        self._rows = 0
        self._tally = Tally(self._packing.identity.temperatures, FIDELITY_ROWS)

    def _append(self, block: LabelBlock) -> None:
        self._keys.append(block.keys)
        self._blocks.append(block)
        self._rows += len(block)
        if self._rows >= self._shard_rows:
            self.cut()

    def _keep_unseen(self) -> int:
        if self._earlier is None:
            return 0
        seen = KeySet(self._keys)
        kept = 0
        for block in self._earlier.batches(READ_ROWS):
            missing = pc.is_in(block.keys, seen.others(block.keys)).to_numpy(zero_copy_only=False)
            if missing.any():
                rest = block.take(np.flatnonzero(missing))
                self._tally.count(rest)
                self._append(rest)
                kept += len(rest)
        return kept

    def _take_up(self, name: str) -> None:
        found = read_receipt(self._folder, name)
        shard = ShardPlan(name=name, rows=found[0].rows if found else 0, segments=())
        if not found or not finished_shards(self._folder, self._plan([shard])):
            raise DataError(
                f"{self._folder / name}: is missing, damaged or of another training; remove "
                f"{self._folder.parent} and train again"
            )
        self._shards.append(shard)
        reader = open_shard(self._folder, name, self._packing)
        self._keys.append(reader.keys().combine_chunks())

    def _plan(self, shards: list[ShardPlan]) -> Plan:
        return Plan(
            identity=self._packing.identity, making=MAKING, aligned=False, shards=tuple(shards)
        )
