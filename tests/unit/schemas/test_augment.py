from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from softlabel.schemas.augment import TRANSFORMS, HorizontalFlip, RandomResizedCrop
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import InferParams
from softlabel.schemas.settings import load_section

BAD = [
    (["horizontal_flp"], r"unknown transform 'horizontal_flp'; did you mean 'horizontal_flip'\?"),
    ([{"p": 0.5}], "names no transform; known: random_resized_crop, random_crop, horizontal_flip"),
    (
        [{"name": "rotation", "degree": 5}],
        r"unknown argument 'degree' of rotation; did you mean 'degrees'\?",
    ),
    (["horizontal_flip", "random_resized_crop"], "as it is decoded; give it first"),
    ([{"name": "horizontal_flip", "p": 2}], "less than or equal to 1, got 2"),
    ([{"name": "random_erasing", "scale": [0.5, 0.1]}], "scale is .0.5, 0.1.; give the lower end"),
    ([{"name": "random_resized_crop", "ratio": [0.001, 1]}], "greater than or equal to 0.1"),
    ([{"name": "rand_augment", "magnitude": 31}], "magnitude is 31 of 31 bins; give at most 30"),
    (["color_jitter"], "color_jitter changes nothing; give brightness"),
    (["affine"], "affine changes nothing; give degrees"),
    ([{"name": "affine", "scale": [0, 1]}], "greater than 0"),
    ([7], "valid dictionary or object"),
]


def from_file(folder: Path, values: Mapping[str, Any]) -> InferParams:
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump({"infer": dict(values)}))
    return load_section(InferParams, "infer", file, {})


def test_a_bare_name_takes_the_defaults(tmp_path: Path) -> None:
    spec = [{"name": "random_resized_crop", "scale": [0.5, 1]}, "horizontal_flip"]
    wanted = (RandomResizedCrop(scale=(0.5, 1.0)), HorizontalFlip(p=0.5))
    assert from_file(tmp_path, {"augment": spec, "views": 2}).augment == wanted


@pytest.mark.parametrize(("augment", "reason"), BAD)
def test_what_is_wrong_is_said_in_a_file_and_in_a_flag(
    tmp_path: Path, augment: object, reason: str
) -> None:
    with pytest.raises(ParameterError, match=r"params\.yaml: infer\.augment.*" + reason):
        from_file(tmp_path, {"augment": augment})
    with pytest.raises(ParameterError, match="--augment: .*" + reason):
        load_section(InferParams, "infer", None, {"augment": augment})


def test_views_without_transforms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="views is 3 and augment is empty"):
        from_file(tmp_path, {"views": 3})


def test_the_docs_know_every_transform(repo_root: Path) -> None:
    text = (repo_root / "docs" / "views.md").read_text()
    assert [name for name in TRANSFORMS if f"`{name}`" not in text] == []
