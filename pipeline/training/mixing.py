"""Mixup and CutMix: pictures mixed with partners of their batch, and their targets likewise."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from softlabel.pipeline.training.losses import LossTerms
from softlabel.schemas.params import TrainParams

# Keeps these draws apart from those of the order, which begin with the same numbers.
MIXING = 0x6D69786564


class Mixture(NamedTuple):
    """How the pictures of one batch are mixed.

    partners: the row that each is mixed with, `[N]`. share: how much of the result is its own. box:
    top, left, bottom and right of what CutMix takes from the partner; None for mixup.
    """

    partners: npt.NDArray[np.int64]
    share: float
    box: tuple[int, int, int, int] | None

    def pixels(self, own: Tensor, other: Tensor) -> Tensor:
        """Pictures `[N, H, W, C]` with their partners': uint8 as they are, or float in 0..255."""
        if self.box is None:
            return self.share * own.float() + (1 - self.share) * other.float()
        top, left, bottom, right = self.box
        mixed = own.clone()
        mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        return mixed

    def logits(self, own: Tensor, other: Tensor, T: float) -> Tensor:
        """Logits `[N, C]` whose softmax at T is the mean of both sides' in these shares."""
        sides = [F.log_softmax(logits / T, dim=1) for logits in (own, other)]
        return T * torch.logaddexp(sides[0] + _log(self.share), sides[1] + _log(1 - self.share))

    def terms(self, own: LossTerms, other: LossTerms) -> LossTerms:
        """The loss against mixed targets, from those against each side's."""
        mixed = {}
        for name in own._fields:
            one, two = getattr(own, name), getattr(other, name)
            if one is not None and two is not None:
                mixed[name] = self.share * one + (1 - self.share) * two
        return own._replace(**mixed)


def draw_mixture(
    params: TrainParams, pixels: npt.NDArray[np.uint8], epoch: int, step: int, rank: int
) -> Mixture | None:
    """The mixture of a step's batch `[N, H, W, C]`, a function of the seed and these numbers.

    Shares are of Beta(alpha, alpha) (Zhang et al. 2018, section 2), where CutMix cuts a box of that
    area anywhere and counts what lies within the picture (Yun et al. 2019, section 3.1). Where both
    are asked for, one or the other by chance. None where neither is.
    """
    if not params.mixup and not params.cutmix:
        return None
    random = np.random.default_rng([params.seed, epoch, step, rank, MIXING])
    rows, height, width = pixels.shape[:3]
    partners = random.permutation(rows)
    cut = bool(params.cutmix) and (not params.mixup or random.random() < 0.5)
    alpha = params.cutmix if cut else params.mixup
    share = float(random.beta(alpha, alpha))
    if not cut:
        return Mixture(partners, share, None)
    side = math.sqrt(1 - share)
    top, bottom = _cut(random.uniform(0, height), side * height, height)
    left, right = _cut(random.uniform(0, width), side * width, width)
    taken = (bottom - top) * (right - left)
    return Mixture(partners, 1 - taken / (height * width), (top, left, bottom, right))


def _cut(centre: float, length: float, limit: int) -> tuple[int, int]:
    first, end = round(centre - length / 2), round(centre + length / 2)
    return max(0, first), min(limit, end)


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
