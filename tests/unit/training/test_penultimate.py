"""What a student's last linear layer gets, and that nothing else is taken for it."""

import numpy as np
import torch
from torch import nn

from softlabel.pipeline.small_models import mlp
from softlabel.pipeline.training.penultimate import Penultimate

PICTURES = torch.randn(5, 1, 2, 3, generator=torch.Generator().manual_seed(0))


def test_the_layer_makes_the_logits_of_the_features() -> None:
    model = mlp(4, inputs=6, hidden=9)
    watch = Penultimate(model, 4)
    logits = model(PICTURES).detach()
    features = watch.features(logits)
    assert features is not None
    assert features.shape == (5, 9)
    assert watch.templates is not None
    head = model.get_submodule("head")
    again = features @ watch.templates.T + head.get_parameter("bias").detach().numpy()
    np.testing.assert_allclose(again, logits.numpy(), atol=1e-5)


def test_a_layer_whose_outputs_are_changed_is_not_the_last() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.LogSoftmax(dim=1))
    watch = Penultimate(model, 4)
    assert watch.features(model(PICTURES).detach()) is None


def test_a_model_without_such_a_layer_has_no_templates() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, (2, 3)), nn.Flatten())
    watch = Penultimate(model, 4)
    assert watch.templates is None
    assert watch.features(model(PICTURES).detach()) is None
