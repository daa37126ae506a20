"""A small language model from the stored labels of a large one, in a plain PyTorch loop.

    python examples/language_model.py text labels student.pt

Labels of the codec `factored` are the teacher's features: the loss makes its logits on the device.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import softlabel


class Student(nn.Module):
    """Tokens `[N, L]` to what each position says of the next one, `[N, L, num_classes]`."""

    def __init__(self, num_classes: int, tokens: int | None = None, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens or num_classes, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        heard, _ = self.memory(self.embed(input_ids))
        return self.head(heard)


def train(
    model: nn.Module, source: Path, labels: Path, *, epochs: int = 3, batch_size: int = 32
) -> list[float]:
    """Train, and return the mean loss a position of each epoch."""
    dataset = softlabel.torch.DistillationDataset(
        source, labels, batch_size=batch_size, temperature=1.0, inputs=["input_ids"]
    )
    criterion = softlabel.torch.DistillationLoss(
        soft_weight=0.9, temperature=1.0, labels=softlabel.open(labels)
    )
    loader = DataLoader(dataset, batch_size=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    means = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        total = positions = 0
        for batch in loader:
            logits = model(**batch.inputs)[batch.mask]
            loss = criterion(logits, batch.targets, batch.hard_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(logits)
            positions += len(logits)
        means.append(total / positions)
    return means


if __name__ == "__main__":
    torch.manual_seed(0)
    source, labels, weights = map(Path, sys.argv[1:])
    model = Student(softlabel.open(labels).num_classes)
    print(train(model, source, labels)[-1])
    torch.save(model.state_dict(), weights)
