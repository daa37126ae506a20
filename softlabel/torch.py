"""Stored soft labels in anybody's training loop: public names only."""

from softlabel.pipeline.training.criterion import DistillationLoss
from softlabel.pipeline.training.dataset import DistillationDataset
from softlabel.pipeline.training.ensemble import LabelEnsemble
from softlabel.pipeline.training.handing import DistillationBatch
from softlabel.pipeline.training.losses import LossTerms
from softlabel.pipeline.training.padded import SequenceBatch
from softlabel.pipeline.training.targets import PackedTargets

__all__ = [
    "DistillationBatch",
    "DistillationDataset",
    "DistillationLoss",
    "LabelEnsemble",
    "LossTerms",
    "PackedTargets",
    "SequenceBatch",
]
