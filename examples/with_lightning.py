"""A student from stored labels with Lightning: a data module, whose state is in every checkpoint.

    python examples/with_lightning.py data/train labels

Devices and precision are the Trainer's; ranks share an epoch without a distributed sampler.
"""

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from student import normalised, student
from torch import Tensor, nn
from torch.utils.data import DataLoader

import softlabel


class StoredLabels(lightning.LightningDataModule):
    """The samples with their labels; `seen` is what the training has had of the epoch."""

    def __init__(self, source: Path, labels: Path, batch_size: int = 128, workers: int = 0) -> None:
        super().__init__()
        self.dataset = softlabel.torch.DistillationDataset(source, labels, batch_size=batch_size)
        self.workers = workers
        self.seen = 0

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=None, num_workers=self.workers)

    def state_dict(self) -> dict[str, Any]:
        return self.dataset.state_dict(self.seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.load_state_dict(state)
        self.seen = state["position"]


class Student(lightning.LightningModule):
    """Any network that gives logits, taught by the stored ones."""

    def __init__(self, model: nn.Module, labels: Path) -> None:
        super().__init__()
        self.model = model
        self.criterion = softlabel.torch.DistillationLoss(
            soft_weight=0.9, temperature=4.0, labels=softlabel.open(labels)
        )

    def on_train_epoch_start(self) -> None:
        self.trainer.datamodule.dataset.set_epoch(self.current_epoch)

    def training_step(self, batch: softlabel.torch.DistillationBatch, _: int) -> Tensor:
        logits = self.model(normalised(batch.pixels))
        terms = self.criterion.terms(logits, batch.targets, batch.hard_labels)
        named = {"loss": terms.total, "hard": terms.hard, "soft_kl": terms.soft_kl}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(batch.keys))
        self.trainer.datamodule.seen = batch.seen
        return terms.total

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.01)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


if __name__ == "__main__":
    lightning.seed_everything(0)
    source, labels = map(Path, sys.argv[1:])
    model = Student(student(softlabel.open(labels).num_classes), labels)
    lightning.Trainer(max_epochs=20).fit(model, datamodule=StoredLabels(source, labels))
