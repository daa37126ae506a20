from pathlib import Path

import pytest
from pydantic import ValidationError

from softlabel.schemas.params import InferParams, Params, TrainParams
from softlabel.schemas.settings import section_model

FIELDS = [
    (section, name)
    for section in Params.model_fields
    for name in section_model(section).model_fields
]


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_parameter_says_what_it_is(section: str, name: str) -> None:
    description = section_model(section).model_fields[name].description
    assert description is not None and len(description) > 10
    assert not description.endswith(".")


def test_parameters_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        InferParams().batch_size = 3  # type: ignore[misc]


def test_kd_needs_labels_also_from_python() -> None:
    with pytest.raises(ValidationError, match="loss is 'kd' and labels is not set"):
        TrainParams(model="nets:small", loss="kd")
    assert TrainParams(model="nets:small", loss="kd", labels=Path("labels")).loss == "kd"


def test_a_misspelt_parameter_is_refused_from_python() -> None:
    with pytest.raises(ValidationError, match="batch_sise"):
        InferParams.model_validate({"batch_sise": 3})


def test_recorded_temperatures_are_positive_and_at_least_one() -> None:
    for wrong in ((), (0.0,), (1.0, -2.0), (float("nan"),)):
        with pytest.raises(ValidationError, match="temperatures"):
            InferParams(temperatures=wrong)
