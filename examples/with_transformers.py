"""A student from stored labels with the Trainer of Hugging Face: a collator and a loss.

    python examples/with_transformers.py data/train labels results

The model is any whose forward takes `pixel_values` and gives logits, or an output that has them.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from student import normalised, student
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

import softlabel


def collate(batch: softlabel.torch.DistillationBatch) -> dict[str, Any]:
    """What the model is called with, and beside it what the loss wants."""
    return {
        "pixel_values": normalised(batch.pixels),
        "targets": batch.targets,
        "labels": batch.hard_labels,
    }


class DistillationTrainer(Trainer):
    """A Trainer over a DistillationDataset."""

    # A batch's mean, which the Trainer divides by the steps of an accumulated batch.
    loss_is_scaled_for_ga = False

    def __init__(self, *, criterion: softlabel.torch.DistillationLoss, **settings: Any) -> None:
        super().__init__(**settings)
        self.criterion = criterion
        self.add_callback(EachEpochItsOrder(settings["train_dataset"]))

    def get_train_dataloader(self) -> DataLoader:
        """Not the Trainer's own: the dataset makes batches and shares them among ranks itself."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset, batch_size=None, collate_fn=collate, num_workers=workers
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        outputs = model(inputs["pixel_values"])
        logits = getattr(outputs, "logits", outputs)
        loss = self.criterion(logits, inputs["targets"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class EachEpochItsOrder(TrainerCallback):
    """Tells the dataset which epoch begins."""

    def __init__(self, dataset: softlabel.torch.DistillationDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.dataset.set_epoch(int(state.epoch))


def make_trainer(
    model: nn.Module, source: Path, labels: Path, batch_size: int = 128, **arguments: Any
) -> DistillationTrainer:
    """A Trainer with the optimiser of the other examples."""
    settings = TrainingArguments(max_grad_norm=0.0, report_to=[], **arguments)
    dataset = softlabel.torch.DistillationDataset(source, labels, batch_size=batch_size)
    steps = int(settings.num_train_epochs) * len(dataset)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return DistillationTrainer(
        model=model,
        args=settings,
        train_dataset=dataset,
        optimizers=(optimizer, schedule),
        criterion=softlabel.torch.DistillationLoss(
            soft_weight=0.9, temperature=4.0, labels=softlabel.open(labels)
        ),
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    source, labels, results = map(Path, sys.argv[1:])
    model = student(softlabel.open(labels).num_classes)
    make_trainer(model, source, labels, output_dir=str(results), num_train_epochs=20).train()
