"""A student from stored labels with timm's building blocks, in the order of its `train.py`.

    python examples/with_timm.py data/train labels resnet18

In a copy of timm's own script the same lines change: the loader becomes the one below, `set_epoch`
is called where the sampler's is, and `loss_fn(output, target)` becomes `criterion(...)`.
"""

import sys
from pathlib import Path

import timm
import torch
from student import normalised
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

import softlabel


def train(
    model: nn.Module,
    source: Path,
    labels: Path,
    *,
    epochs: int = 20,
    batch_size: int = 128,
    workers: int = 0,
) -> tuple[list[float], ModelEmaV3]:
    """The mean losses of the epochs, and the average of the weights."""
    dataset = softlabel.torch.DistillationDataset(source, labels, batch_size=batch_size)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    criterion = softlabel.torch.DistillationLoss(
        soft_weight=0.9, temperature=4.0, labels=softlabel.open(labels)
    )
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=2e-3, weight_decay=0.01, filter_bias_and_bn=False
    )
    updates = epochs * len(loader)
    scheduler = CosineLRScheduler(optimizer, t_initial=updates, t_in_epochs=False)
    average = ModelEmaV3(model, decay=0.999)
    done = 0
    losses = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        mean = AverageMeter()
        model.train()
        for batch in loader:
            output = model(normalised(batch.pixels))
            loss = criterion(output, batch.targets, batch.hard_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            average.update(model, step=done)
            scheduler.step_update(num_updates=done)
            mean.update(loss.item(), len(batch.keys))
        losses.append(mean.avg)
    return losses, average


if __name__ == "__main__":
    torch.manual_seed(0)
    classes = softlabel.open(sys.argv[2]).num_classes
    model = timm.create_model(sys.argv[3], num_classes=classes)
    print(train(model, Path(sys.argv[1]), Path(sys.argv[2]))[0][-1])
