"""How much a difference of two logits still tells of the picture that it came from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def mutual_information(differences: npt.NDArray[np.floating]) -> float:
    """I(X; Y) in nats of X, which of N pictures, and Y, the difference of two logits.

    differences: Y of `[N, L]`, L random versions of each picture, which are all that makes Y vary
    where X is known. p(y | x) is taken for a normal distribution with a mean of its own for each
    picture and one variance for all, and p(y) for the mean over the pictures: where these are alike
    the result is 0, of two groups log 2, where all are apart log N, which it never exceeds. A true
    0 comes out at about -1/(2L), for the means are drawn too.

    Müller, Kornblith and Hinton 2019, section 4. Their sum is printed without the 1/N and log N
    with which alone it lies between 0 and log N. As there, a version is not counted into the mean
    that it is held against: here each is left out of its picture's in turn.

    Raises ValueError where N is 0, L below 2, or a difference is not finite.
    """
    y = np.asarray(differences, np.float64)
    pictures, draws = y.shape
    if pictures < 1 or draws < 2:
        raise ValueError(f"{pictures} pictures in {draws} versions; at least 1 in 2 are needed")
    if not np.isfinite(y).all():
        raise ValueError("the logits are not finite")
    means = y.mean(axis=1)
    apart = (y - (means[:, None] * draws - y) / (draws - 1)) ** 2
    # Where the versions make no difference at all, pictures are apart or they are not.
    spread = 2 * max(float(apart.mean()), (1e-9 * float(np.ptp(y))) ** 2) or 1.0
    told = 0.0
    for draw in range(draws):
        powers = -((y[:, draw, None] - means[None]) ** 2) / spread
        own = -apart[:, draw] / spread
        np.fill_diagonal(powers, own)
        told += float((own - _log_sum_exp(powers)).sum())
    return float(np.log(pictures) + told / (pictures * draws))


def _log_sum_exp(powers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    highest = powers.max(axis=1)
    return np.asarray(highest + np.log(np.exp(powers - highest[:, None]).sum(axis=1)))
