"""A student from stored labels in a plain PyTorch loop that can be stopped anywhere and goes on.

    python examples/plain_pytorch.py data/train labels student.pt

Runs as it is under `torchrun`, where DistributedDataParallel is all that is to be added.
"""

import os
import sys
from pathlib import Path

import torch
from student import normalised, student
from torch import nn
from torch.utils.data import DataLoader

import softlabel


def train(
    model: nn.Module,
    source: Path,
    labels: Path,
    checkpoint: Path,
    *,
    epochs: int = 20,
    batch_size: int = 128,
    workers: int = 0,
    save_every: int = 100,
    last_step: int | None = None,
) -> list[float]:
    """Train from where `checkpoint` stands; the losses of the steps taken, up to `last_step`."""
    dataset = softlabel.torch.DistillationDataset(source, labels, batch_size=batch_size)
    criterion = softlabel.torch.DistillationLoss(
        soft_weight=0.9, temperature=4.0, labels=softlabel.open(labels)
    )
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        dataset.load_state_dict(saved["dataset"])
        step = saved["step"]

    losses = []
    for epoch in range(dataset.epoch, epochs):
        dataset.set_epoch(epoch)
        for batch in loader:
            loss = criterion(model(normalised(batch.pixels)), batch.targets, batch.hard_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            step += 1
            if step % save_every == 0 or step == last_step:
                states = {name: part.state_dict() for name, part in parts.items()}
                data = dataset.state_dict(batch.seen)
                save({**states, "dataset": data, "step": step}, checkpoint)
            if step == last_step:
                return losses
    return losses


def save(state: dict, path: Path) -> None:
    """Publish a whole checkpoint or none: a full disk never costs the last good one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    torch.manual_seed(0)
    source, labels, checkpoint = map(Path, sys.argv[1:])
    model = student(softlabel.open(labels).num_classes)
    print(train(model, source, labels, checkpoint)[-1])
