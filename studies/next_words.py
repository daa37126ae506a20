"""A small next-word model over the docstrings of Python's own library: logits of 1,000 classes.

Shapes: N places, C words, d features.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from softlabel.pipeline.codecs.factored import Head

WORDS = 1000
CONTEXT = 8
WIDTH = 192
EPOCHS = 2
MEASURED = 4096
Floats = npt.NDArray[np.float32]


def next_words() -> tuple[Floats, Floats, Head]:
    """Features `[4096, d]` of held-out places, those of 4,096 others, and the last layer.

    Trained here, in about a minute; the same Python and torch give the same model.
    """
    torch.manual_seed(0)
    words = _words()
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(WORDS - 1))}
    ids = torch.tensor([known.get(word, WORDS - 1) for word in words])
    places = ids.unfold(0, CONTEXT + 1, 1)
    # Text at the end was not trained on.
    held = places[-20 * MEASURED :]
    held = held[torch.randperm(len(held))[: 2 * MEASURED]]
    body, last = _train(places[: -20 * MEASURED])
    with torch.no_grad():
        features = body(held[:, :-1])
        accuracy = (last(features).argmax(dim=1) == held[:, -1]).float().mean()
    print(f"next-word model: {len(ids):,} words, held-out accuracy {accuracy:.1%}\n")
    head = Head(last.weight.detach().numpy(), last.bias.detach().numpy())
    return features[:MEASURED].numpy(), features[MEASURED:].numpy(), head


def _words() -> list[str]:
    """Words and marks of every docstring, file by file in the order of the names."""
    library = Path(sysconfig.get_path("stdlib"))
    found: list[str] = []
    for path in sorted(library.rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts or "tests" in path.parts:
            continue
        with warnings.catch_warnings(action="ignore"):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                found += re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", text.lower())
    return found


def _train(places: torch.Tensor) -> tuple[nn.Module, nn.Linear]:
    """The net up to its last layer, and the last layer."""
    body = nn.Sequential(
        nn.Embedding(WORDS, 48),
        nn.Flatten(),
        nn.Linear(48 * CONTEXT, 512),
        nn.ReLU(),
        nn.Linear(512, WIDTH),
        nn.ReLU(),
    )
    last = nn.Linear(WIDTH, WORDS)
    optimizer = torch.optim.Adam([*body.parameters(), *last.parameters()], lr=1e-3)
    for _ in range(EPOCHS):
        for batch in places[torch.randperm(len(places))].split(512):
            loss = nn.functional.cross_entropy(last(body(batch[:, :-1])), batch[:, -1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return body, last
