"""The signs of label smoothing in what small teachers say, trained with it and without.

`python studies/smoothing_signs.py` prints the table of docs/benchmarks.md; a minute on one core.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.evaluation.smoothing import SmoothingSums
from softlabel.pipeline.small_models import conv_net, mlp
from softlabel.pipeline.sources.digits import read_digits

TAUGHT = 1097
MODELS = {
    "convolutional": lambda: conv_net(10, channels=1, width=16, depth=2),
    "perceptron": lambda: mlp(10, inputs=64, hidden=32),
}


def main() -> None:
    """Train every teacher and print its signs on what it was taught and on the rest."""
    torch.set_num_threads(1)
    samples = read_digits()
    pictures = torch.from_numpy(samples.inputs.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(samples.hard_labels().astype(np.int64))
    print("| teacher | smoothing | epochs | rows | mass | steady | even | stability | warned |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, smoothing, epochs in itertools.product(MODELS, (0.0, 0.05, 0.1, 0.2), (10, 30)):
        torch.manual_seed(0)
        net = MODELS[name]()
        _train(net, pictures[:TAUGHT], labels[:TAUGHT], smoothing, epochs)
        for rows, part in (("taught", slice(TAUGHT)), ("others", slice(TAUGHT, None))):
            with torch.no_grad():
                logits = net(pictures[part]).numpy()
            sums = SmoothingSums(10)
            sums.add(softmax(logits, 1.0), logits.argmax(axis=1))
            signs = sums.signs()
            assert signs is not None
            print(
                f"| {name} | {smoothing:g} | {epochs} | {rows} | {signs.non_target_mass:.4f} "
                f"| {signs.steadiness:.2f} | {signs.evenness:.2f} | {signs.stability:.4f} "
                f"| {'yes' if signs.smoothed else ''} |"
            )


def _train(
    net: nn.Module, pictures: torch.Tensor, labels: torch.Tensor, smoothing: float, epochs: int
) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 0.003)
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            loss(net(pictures[batch]), labels[batch]).backward()
            optimizer.step()
    net.eval()


if __name__ == "__main__":
    main()
