"""What a teacher says, packed on the device where it ran: only the payload comes to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.codec import Codec, EncodedRows
from softlabel.schemas.sample import Array


@dataclass(frozen=True, slots=True)
class PackedOutput:
    """N samples as the shard stores them; features float16 `[N, width]`, where they are stored.

    What the codec cannot hold is in there as what it is not: `refuse` tells of it.
    """

    codec: Codec
    rows: EncodedRows
    features: npt.NDArray[np.float16] | None = None

    def take(self, rows: npt.NDArray[np.int64]) -> PackedOutput:
        """What it says of the samples `rows`."""
        columns = {name: values[rows] for name, values in self.rows.columns.items()}
        packed = EncodedRows(self.rows.shift[rows], self.rows.top1[rows], columns)
        features = None if self.features is None else self.features[rows]
        return PackedOutput(self.codec, packed, features)

    def refuse(self) -> None:
        """Raise ValueError, with the row's number in `args[1]`, for a row that cannot be held."""
        import torch

        from softlabel.pipeline.codecs.in_torch import refuse

        columns = {"shift": self.rows.shift, **self.rows.columns}
        refuse(self.codec, {name: torch.from_numpy(values) for name, values in columns.items()})
        if self.features is not None:
            bad = ~np.isfinite(self.features).all(axis=1)
            if bad.any():
                raise ValueError(
                    "features are beyond 65,504, the end of float16", int(bad.argmax())
                )


# From the inputs of samples, as `SampleBlock` has them.
PackTeacher = Callable[[Array], PackedOutput]
# For the codec of the label set.
Packer = Callable[[Codec], PackTeacher]
