"""Random numbers of a sample's own, in the generators that augmentations take theirs from."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
import xxhash


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the generators of torch (CPU), NumPy and Python as they were before."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def seed_for(seed: int, epoch: int, position: int) -> None:
    """Seed the three with a function of these numbers alone."""
    number = xxhash.xxh3_64_intdigest(f"{seed} {epoch} {position}".encode())
    torch.default_generator.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)
