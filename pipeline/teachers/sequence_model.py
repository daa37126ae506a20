"""A PyTorch model of sequences: named inputs of tokens to what it says of each position."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from softlabel.schemas.errors import ParameterError
from softlabel.schemas.sample import POSITIONS, Array
from softlabel.schemas.teacher import NumberInput

Inputs = Mapping[str, Tensor]


class SequenceModel(nn.Module):
    """A model fed by name, `model(input_ids=...)`, that says `[N, L, classes]` of N sequences.

    What it returns may hold this as `logits`, as the models of transformers do. names: of the
    inputs that it is given.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def said(self, inputs: Inputs) -> Tensor:
        """Logits `[N, L, classes]` of inputs `[N, L]`, padding included."""
        said = self.model(**{name: inputs[name] for name in self.names})
        return getattr(said, "logits", said)  # type: ignore[no-any-return]

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits `[P, classes]` of all positions that are no padding, sample by sample."""
        return self.said(inputs)[inputs[POSITIONS]]


def tensors(samples: Array) -> dict[str, Tensor]:
    """Inputs of sequences, as `SampleBlock` has them, by name."""
    names = samples.dtype.names or ()
    # Copied: a single sample's field counts as contiguous and has strides that torch refuses.
    return {name: torch.from_numpy(samples[name].copy()) for name in names}


def taken_inputs(
    model: nn.Module, reference: str, offered: Sequence[NumberInput]
) -> tuple[NumberInput, ...]:
    """Those of `offered` that `model.forward` has an argument for.

    Raises ParameterError where it has none for any of them, or needs others.
    """
    arguments = inspect.signature(model.forward).parameters
    taken = tuple(one for one in offered if one.name in arguments)
    names = [one.name for one in taken]
    needed = [
        name
        for name, one in arguments.items()
        if one.default is one.empty
        and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        and name not in names
    ]
    if needed or not taken:
        raise ParameterError(
            f"model {reference!r}: forward takes {', '.join(map(repr, needed or arguments))}, and "
            f"the source's sequences are {', '.join(repr(one.name) for one in offered)}; name its "
            "arguments as the columns"
        )
    return taken


def check_said(model: SequenceModel, reference: str, samples: Array, num_classes: int) -> None:
    """Raise ParameterError where the model does not say `[N, L, classes]` of these `samples`.

    Tried in eval mode.
    """
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval().said(tensors(samples))
    except Exception as error:  # the user's module may raise anything
        raise ParameterError(
            f"model {reference!r}: does not take {', '.join(map(repr, model.names))} of the "
            f"source's first sequences: {type(error).__name__}: {error}; mend model_args, or the "
            "columns"
        ) from error
    finally:
        model.train(training)
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    wanted = [*samples[POSITIONS].shape, num_classes]
    if found != wanted:
        raise ParameterError(
            f"model {reference!r}: makes {found} of {wanted[0]} sequences of {wanted[1]} "
            f"positions, must make {wanted}; mend it or its model_args"
        )
