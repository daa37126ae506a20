"""The names that users import stay what they are."""

import importlib.metadata

import pytest

import softlabel


def test_exported_names() -> None:
    assert softlabel.__all__ == ["LabelSet", "__version__", "open"]
    assert set(softlabel.__all__) <= set(dir(softlabel))


def test_exported_names_for_training_loops() -> None:
    assert softlabel.torch.__all__ == [
        "DistillationBatch",
        "DistillationDataset",
        "DistillationLoss",
        "LabelEnsemble",
        "LossTerms",
        "PackedTargets",
        "SequenceBatch",
    ]
    assert all(hasattr(softlabel.torch, name) for name in softlabel.torch.__all__)
    assert "torch" in dir(softlabel)


def test_lazy_names_are_those_of_the_pipeline() -> None:
    from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset

    assert softlabel.LabelSet is LabelSet
    assert softlabel.open is open_labelset


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'softlabel' has no attribute 'opne'"):
        _ = softlabel.opne  # type: ignore[attr-defined]


def test_version_is_that_of_the_installed_distribution() -> None:
    assert softlabel.__version__ == importlib.metadata.version("softlabel")
