"""A source: samples in shards, whatever their format, read by row ranges.

Each format brings shards with the few members of `SourceShard`; all else is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.sources.fitting import fitted_input, size
from softlabel.pipeline.sources.mapped import MappedRows, read_ahead
from softlabel.pipeline.sources.masks import mask_labels, unknown_labels
from softlabel.pipeline.sources.pictures import BadPicture, Decoder, picture_shape
from softlabel.pipeline.sources.pieces import Piece, concat_samples, sample_block
from softlabel.pipeline.sources.sequences import SequenceRows, Sequences, find_sequences
from softlabel.pipeline.sources.shard import (
    Number,
    NumberShard,
    Pictures,
    ShardRows,
    SourceShard,
    joined,
)
from softlabel.pipeline.sources.views import Views
from softlabel.schemas.augment import Augmentation
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Reject, Segment, SourceDigest, SourceFile
from softlabel.schemas.location import Location, Url
from softlabel.schemas.sample import Array, SampleBlock
from softlabel.schemas.teacher import Fed, Framing, Grid, NumberInput


class Source:
    """Samples in the order of their shards' names.

    classes: class names in label order; empty where the source has none. shape: height, width and
    channels of every picture as `read` gives it. framing: how encoded pictures of any size come to
    that shape; None where pictures are stored as arrays, of `shape`. numbers: the columns of a
    table without pictures, else None; its shards are `NumberShard`s, and `read` gives a structured
    array of what `fed` chose, or sequences. listed: hard labels are lists, one of each position of
    a sequence. decoder: who decodes; reopened readers share it. maker: makes views
    of the pictures, in their place. grid: height and width of the positions that each picture has:
    labels are lists with one of each; None where a picture has one label. masked: hard labels are
    masks, of use on a grid alone: a whole picture has none. Not safe for use by two threads at
    once; `reopen` gives each its own.

    Raises DataError where there are no samples.
    """

    def __init__(
        self,
        path: Location,
        shards: Sequence[SourceShard],
        classes: tuple[str, ...],
        shape: tuple[int, int, int] | None = None,
        framing: Framing | None = None,
        decoder: Decoder | None = None,
        numbers: Mapping[str, Number] | None = None,
        maker: Views | None = None,
        *,
        listed: bool = False,
        masked: bool = False,
        grid: Grid | None = None,
    ) -> None:
        self.path = path
        self.numbers = numbers
        self.listed = listed
        self.masked = masked
        self.grid = grid
        self._maker = maker
        self._decoder = decoder or Decoder()
        self.classes = classes
        self._shards = {shard.name: shard for shard in shards}
        assert len(self._shards) == len(shards), "two shards have one name"
        self.files = tuple(
            SourceFile(name=shard.name, rows=shard.rows, bytes=shard.bytes, digest=shard.stated)
            for shard in shards
        )
        if self.rows == 0:
            raise DataError(f"{path}: the source is empty; prepare it from data that has samples")
        self._open: SourceShard | None = None
        self._digests: dict[str, SourceDigest] = {}
        if shape is None and framing is None and numbers is None:
            framing = self._first_framing()
        self.framing = framing
        self._shape = shape if framing is None else framing.shape

    @property
    def rows(self) -> int:
        """Samples in all shards."""
        return sum(file.rows for file in self.files)

    @property
    def views(self) -> int:
        """Augmented versions that there are of each sample; 1 without."""
        return 1 if self._maker is None else self._maker.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a picture. Raises DataError where there are none."""
        if self._shape is None:
            raise DataError(
                f"{self.path}: holds no pictures but numbers ({', '.join(self.numbers or ())}); "
                "'infer', 'plan' and 'verify' take those, for a teacher with inputs of these "
                "names, and students take sequences: lists with lists of labels"
            )
        return self._shape

    @property
    def stored_shape(self) -> tuple[int, int, int] | None:
        """The shape of pictures that are stored as arrays; None where there are none such."""
        return self._shape if self.framing is None else None

    def reopen(self) -> Source:
        """A second reader of the same source, for another thread."""
        return self._with(self.classes, self.framing, self._maker)

    def fed(self, wanted: Fed, taker: str) -> Source:
        """The source as a teacher takes it: its pictures framed, or its numbers chosen by name.

        Raises DataError, naming `taker`, where it has nothing that is taken.
        """
        if wanted.preprocess is not None:
            framed = self.framed(wanted.preprocess.framing, taker)
            return framed if wanted.grid is None else framed.on_grid(wanted.grid)
        assert wanted.inputs is not None
        return self._taking(wanted.inputs, taker, positions=bool(wanted.positions))

    def framed(self, wanted: Framing, taker: str) -> Source:
        """The source with pictures of the shape that `taker`, named in the error, wants.

        Encoded ones are resized and cropped as `wanted` says. Views are of one size: they come
        after. Raises DataError where pictures are stored as arrays of another shape.
        """
        assert self._maker is None, "a source with views was framed"
        if self.framing is None:
            if self.shape != wanted.shape:
                raise DataError(
                    f"{self.path}: has pictures of {size(self.shape)}, {taker} takes "
                    f"{size(wanted.shape)}; prepare the source at that size"
                )
            return self
        return self._with(self.classes, wanted)

    def on_grid(self, grid: Grid) -> Source:
        """The framed source with labels of so many positions of each picture, row by row.

        Labels of whole pictures are none of their positions: they are unknown, and classes go.
        """
        return self._with(self.classes if self.masked else (), self.framing, grid=grid)

    def viewed(self, augmentation: Augmentation, seed: int, views: int) -> Source:
        """The framed source with so many views of each sample in its place.

        Raises DataError where samples are no pictures to torchvision, EnvironmentFault where it
        is missing or of another release.
        """
        if self.numbers is not None:
            raise DataError(
                f"{self.path}: holds numbers, and views are of pictures; leave augment out"
            )
        if self.grid is not None:
            raise DataError(
                f"{self.path}: views are of pictures with one label, and the teacher speaks of "
                "positions; leave augment out"
            )
        height, width, channels = self.shape
        if channels not in (1, 3):
            raise DataError(
                f"{self.path}: has pictures of {size(self.shape)}, and views are made of those "
                "with 1 or 3; leave augment out"
            )
        framing = self.framing or Framing(height=height, width=width, channels=channels)
        return self._with(self.classes, self.framing, Views(augmentation, seed, views, framing))

    def decoded_by(self, workers: int) -> Source:
        """The source with so many threads that decode; 0 for the caller's own."""
        self._decoder = Decoder(workers)
        return self

    @property
    def pillow(self) -> str | None:
        """The version of Pillow that decodes the pictures; None where they are arrays."""
        return None if self.framing is None else PIL.__version__

    def _taking(self, inputs: Sequence[NumberInput], taker: str, *, positions: bool) -> Source:
        names = [wanted.name for wanted in inputs]
        if self.numbers is None:
            raise DataError(
                f"{self.path}: has pictures, {taker} takes numbers by name ({', '.join(names)}); "
                "give a table of those"
            )
        if positions:
            return self._reading(find_sequences(self.path, self.numbers, inputs, taker))
        missing = [name for name in names if name not in self.numbers]
        if missing:
            raise DataError(
                f"{self.path}: has no column of numbers {', '.join(map(repr, missing))}, which "
                f"{taker} takes; it has {', '.join(map(repr, self.numbers))}: rename them"
            )
        return self._reading(
            [fitted_input(self.path, self.numbers[one.name], one, taker) for one in inputs]
        )

    def _reading(self, wanted: Sequence[NumberInput] | Sequences) -> Source:
        shards = [cast(NumberShard, shard).taking(wanted) for shard in self._shards.values()]
        return Source(self.path, shards, self.classes, numbers=self.numbers, listed=self.listed)

    def naming(self, classes: Sequence[str]) -> Source:
        """The source with these class names where it has none of its own."""
        return self if self.classes else self._with(tuple(classes), self.framing, self._maker)

    def _with(
        self,
        classes: tuple[str, ...],
        framing: Framing | None,
        maker: Views | None = None,
        grid: Grid | None = None,
    ) -> Source:
        shards = [shard.reopen() for shard in self._shards.values()]
        shape = None if framing else self._shape
        return Source(
            self.path,
            shards,
            classes,
            shape,
            framing,
            self._decoder,
            self.numbers,
            maker,
            listed=self.listed,
            masked=self.masked,
            grid=grid or self.grid,
        )

    def digest(self, name: str) -> SourceDigest:
        """Size and SHA-256 of shard `name` as its bytes are now; computed once."""
        if name not in self._digests:
            shard = self._shards[name]
            self._digests[name] = SourceDigest(name=name, bytes=shard.bytes, sha256=shard.sha256())
        return self._digests[name]

    def place(self, name: str) -> str:
        """Where shard `name` is, for people to find it."""
        if isinstance(self.path, Url):
            return str(self.path) if self.path.name == name else f"{self.path}: {name}"
        if self.path.is_dir():
            return str(self.path / name)
        # Of a pattern over several folders, the name says which one.
        return f"{self.path}: {name}" if "/" in name else str(self.path.with_name(name))

    def read(self, segments: Sequence[Segment]) -> SampleBlock:
        """The samples of `segments`, one after the other; of a source of views all of each.

        Raises DataError, naming the key, where a shard or a picture cannot be read or a label is
        outside the classes.
        """
        blocks = []
        for piece in self._pieces(segments):
            for reject in piece.rejects.values():
                raise DataError(f"{self.place(reject.source)}: key {reject.key!r}: {reject.reason}")
            blocks.append(piece.samples)
        return concat_samples(blocks)

    def read_usable(self, segments: Sequence[Segment]) -> tuple[SampleBlock, dict[int, Reject]]:
        """The samples of `segments`, and those whose picture cannot be used, by their place.

        Of a source of views the places are theirs. In the place of such a picture stands the first
        of the others, zeros where there is none. Raises DataError as `read` does, but for pictures.
        """
        blocks: list[SampleBlock] = []
        rejects: dict[int, Reject] = {}
        rows = 0
        for piece in self._pieces(segments):
            blocks.append(piece.samples)
            rejects |= {rows + place: reject for place, reject in piece.rejects.items()}
            rows += len(piece.samples)
        samples = concat_samples(blocks)
        if rejects:
            good = next((place for place in range(rows) if place not in rejects), None)
            samples.inputs[list(rejects)] = 0 if good is None else samples.inputs[good]
        return samples, rejects

    def read_stored(self, segments: Sequence[Segment], rows: npt.NDArray[np.int64]) -> ShardRows:
        """These rows of `segments`, ascending, with pictures as they are stored: see `pictures`.

        Rows are counted through the segments. Raises DataError, naming the key, where a shard
        cannot be read or a label is outside the classes.
        """
        keys, pictures, labels = [], [], []
        first = 0
        for segment in segments:
            shard = self._opened_for(segment)
            for piece in shard.read(segment.first, segment.rows):
                end = first + len(piece.keys)
                wanted = rows[np.searchsorted(rows, first) : np.searchsorted(rows, end)] - first
                if len(wanted) < len(piece.keys):
                    piece = piece.take(wanted)
                if isinstance(piece.pictures, MappedRows):
                    read_ahead(piece.pictures)
                piece, unread = self._checked(shard, piece)
                for row, reason in unread.items():
                    place, key = self.place(shard.name), piece.keys[row].as_py()
                    raise DataError(f"{place}: key {key!r}: {reason}")
                keys.append(piece.keys)
                pictures.append(piece.pictures)
                labels.append(piece.labels)
                first = end
        return ShardRows(pa.concat_arrays(keys), joined(pictures), pa.concat_arrays(labels))

    def pictures(
        self,
        keys: pa.StringArray,
        stored: Pictures,
        views: npt.NDArray[np.integer] | None = None,
    ) -> Array:
        """What `read_stored` gave as uint8 `[N, height, width, channels]`.

        views: where the source is one of views, which one of each, `[N]`; by default the first.
        Raises DataError, naming the key, where a picture cannot be decoded.
        """
        chosen = np.zeros(len(keys), np.int64) if views is None else views
        pixels, bad = self._decoded(keys, stored, chosen[:, None])
        for row, reason in bad.items():
            holders = (name for name, shard in self._shards.items() if _holds(shard, keys[row]))
            raise DataError(f"{self.place(next(holders))}: key {keys[row].as_py()!r}: {reason}")
        return pixels

    def first(self, rows: int) -> SampleBlock:
        """The first samples, as many as the first shard with any has, at most `rows`."""
        file = next(file for file in self.files if file.rows)
        return self.read([Segment(source=file.name, first=0, rows=min(rows, file.rows))])

    def keys(self, segments: Sequence[Segment]) -> pa.StringArray:
        """The keys of `segments`, one after the other; pictures stay unread."""
        parts = [
            self._shards[segment.source].keys().slice(segment.first, segment.rows)
            for segment in segments
        ]
        return pa.concat_arrays(parts) if parts else pa.array([], pa.string())

    def _pieces(self, segments: Sequence[Segment]) -> Iterator[Piece]:
        for segment in segments:
            shard = self._opened_for(segment)
            first = segment.first
            for rows in shard.read(first, segment.rows):
                rows, unread = self._checked(shard, rows)
                numbers = np.tile(np.arange(self.views), (len(rows.keys), 1))
                pixels, bad = self._decoded(rows.keys, rows.pictures, numbers)
                bad = unread | bad
                rejects = {
                    place * self.views + view: Reject(
                        key=rows.keys[place].as_py(),
                        source=shard.name,
                        row=first + place,
                        reason=reason,
                    )
                    for place, reason in bad.items()
                    for view in range(self.views)
                }
                yield Piece(sample_block(rows, pixels, numbers), rejects)
                first += len(rows.keys)

    def _opened_for(self, segment: Segment) -> SourceShard:
        """The segment's shard; another one that was open is closed, so that one is held."""
        shard = self._shards[segment.source]
        if self._open is not None and self._open is not shard:
            self._open.close()
        self._open = shard
        if segment.first + segment.rows > shard.rows:
            last = segment.first + segment.rows - 1
            raise DataError(
                f"{self.place(shard.name)}: has {shard.rows} rows, row {last} was asked for; the "
                "file changed, prepare the source again"
            )
        return shard

    def _decoded(
        self, keys: pa.StringArray, pictures: Pictures, numbers: npt.NDArray[np.integer]
    ) -> tuple[Array, dict[int, str]]:
        """The pictures as arrays, or their views; and by row why one cannot be used.

        numbers: of each picture those of the wanted views, `[N, M]`, of no use without views.
        """
        if isinstance(pictures, SequenceRows):
            return pictures.padded(), {}
        if isinstance(pictures, MappedRows):
            pictures = pictures.read()
        if self._maker is not None:
            return self._maker.make_all(pictures, keys, numbers, self._decoder)
        if isinstance(pictures, np.memmap):
            # Read here, and not by whoever looks at it first.
            pictures = np.array(pictures)
        if isinstance(pictures, np.ndarray):
            return np.ascontiguousarray(pictures), {}
        assert self.framing is not None
        return self._decoder.decode_all(pictures, self.framing)

    def _checked(self, shard: SourceShard, rows: ShardRows) -> tuple[ShardRows, dict[int, str]]:
        """The rows with the labels that `read` gives, and by row why a mask cannot be used."""
        bad: dict[int, str] = {}
        if self.grid is not None and self.masked:
            classes = len(self.classes)
            labels, bad = mask_labels(
                rows, self.shape, self.framing, self.grid, classes, self._decoder
            )
            rows = replace(rows, labels=labels)
        elif self.grid is not None:
            rows = replace(rows, labels=unknown_labels(len(rows.keys), self.grid))
        elif self.masked:
            rows = replace(rows, labels=pa.nulls(len(rows.keys), pa.int32()))
        self._check(shard, rows)
        return rows, bad

    def _check(self, shard: SourceShard, rows: ShardRows) -> None:
        place = self.place(shard.name)
        if rows.keys.null_count:
            raise DataError(f"{place}: a key is null; prepare it again")
        labels = rows.labels
        listed = pa.types.is_large_list(labels.type)
        if listed:
            labels = labels.flatten()
        classes = len(self.classes) or np.iinfo(np.int32).max
        bad = pc.or_(pc.less(labels, 0), pc.greater_equal(labels, classes)).fill_null(False)
        if pc.any(bad).as_py():
            at = row = int(pc.index(bad, True).as_py())
            if listed:
                row = int(pc.list_parent_indices(rows.labels)[at].as_py())
            raise DataError(
                f"{place}: key {rows.keys[row].as_py()!r} has label {labels[at].as_py()}, outside "
                f"0..{classes - 1}; mend the labels or the class list and prepare again"
            )

    def _first_framing(self) -> Framing:
        """What encoded pictures look like where nobody says: all like the first that tells."""
        first: DataError | None = None
        for file in self.files:
            shard = self._shards[file.name]
            for row in range(file.rows):
                rows = next(iter(shard.read(row, 1)))
                assert not isinstance(rows.pictures, MappedRows | SequenceRows), "have no framing"
                try:
                    height, width, channels = picture_shape(rows.pictures[0])
                except BadPicture as error:
                    key = rows.keys[0].as_py()
                    first = first or DataError(
                        f"{self.place(file.name)}: key {key!r}: {error.reason}"
                    )
                else:
                    shard.close()
                    return Framing(height=height, width=width, channels=channels)
            shard.close()
        assert first is not None
        raise first


def _holds(shard: SourceShard, key: pa.StringScalar) -> bool:
    return int(pc.index(shard.keys(), key).as_py()) >= 0
