import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn

from softlabel.pipeline.teachers.models import (
    PictureModel,
    build_model,
    check_fits,
    count_parameters,
    load_weights,
    weights_bytes,
)
from softlabel.schemas.errors import DataError, EnvironmentFault, ParameterError

NETS = """
from torch import nn
def linear(num_classes, inputs=4, bias=True):
    return nn.Linear(inputs, num_classes, bias)
def text(num_classes):
    return "no model"
def fails(num_classes):
    raise RuntimeError("no weights here")
number = 3
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the folder that the user stands in, and its name."""
    (tmp_path / "users_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "users_nets", raising=False)
    return "users_nets"


def build(reference: str, classes: int = 3, channels: int = 1, **arguments: Any) -> nn.Module:
    return build_model(reference, arguments, classes, channels)


def test_a_factory_of_ours() -> None:
    model = build("softlabel.pipeline.small_models:conv_net", channels=1, width=4, depth=2)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_a_users_factory_in_this_folder_gets_its_arguments(nets: str) -> None:
    model = build(f"{nets}:linear", inputs=7, bias=False)
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features) == (7, 3)
    assert sorted(model.state_dict()) == ["weight"]


def test_given_arguments_go_before_ours(nets: str) -> None:
    model = build(f"{nets}:linear", num_classes=9)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 9


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("conv_net", "must be package.module:function, timm:NAME or torchvision:NAME"),
        ("users_nets:", "must be package.module:function"),
        ("", "must be package.module:function"),
        ("users_nest:linear", "No module named 'users_nest'; give a module that Python finds"),
        ("users_nets.deep:linear", "No module named 'users_nets.deep'"),
        ("users_nets:liner", "users_nets has no function 'liner'"),
        ("users_nets:number", "users_nets has no function 'number'"),
        ("users_nets:text", "gave a str, must be a torch.nn.Module"),
        ("users_nets:fails", "cannot be built with .*: RuntimeError: no weights here"),
        (":linear", "':linear'"),
        (".users_nets:linear", "'.users_nets:linear'"),
    ],
)
def test_a_bad_reference_is_named_with_its_fault(nets: str, reference: str, problem: str) -> None:
    with pytest.raises(ParameterError, match=rf"^model '.*': .*{problem}|^model {problem}"):
        build(reference)


def test_arguments_that_do_not_fit_are_named(nets: str) -> None:
    wanted = r"cannot be built with \{'num_classes': 3, 'widht': 2\}: TypeError: .*'widht'"
    with pytest.raises(ParameterError, match=wanted):
        build(f"{nets}:linear", widht=2)


@pytest.mark.parametrize("text", ["def linear(:\n", "nothing\n", "raise RuntimeError('no')\n"])
def test_a_users_module_that_fails_on_import_is_a_parameter_error(nets: str, text: str) -> None:
    Path("broken_nets.py").write_text(text)
    with pytest.raises(ParameterError, match="broken_nets"):
        build("broken_nets:linear")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    wanted = rf"model '{library}:net': {library} cannot be imported .*pip install 'softlabel\[vis"
    with pytest.raises(EnvironmentFault, match=wanted):
        build(f"{library}:net")


@pytest.mark.parametrize("reference", ["timm:resnet10t", "torchvision:squeezenet1_1"])
def test_a_model_of_a_library(reference: str) -> None:
    model = build(reference, classes=5, channels=3).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_timm_takes_the_channels_of_the_source() -> None:
    model = build("timm:resnet10t", channels=1).eval()
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize("reference", ["timm:no_such_net", "torchvision:no_such_net"])
def test_an_unknown_name_of_a_library_is_a_parameter_error(reference: str) -> None:
    with pytest.raises(ParameterError, match=f"model '{reference}': cannot be built with"):
        build(reference)


def test_picture_model_scales_and_reorders() -> None:
    model = PictureModel(nn.Identity(), mean=(0.5, 0.0), std=(0.5, 2.0))
    pixels = torch.tensor([[[[0, 255]], [[255, 51]]]], dtype=torch.uint8)
    wanted = [[[[-1.0], [1.0]], [[0.5], [0.1]]]]
    assert model(pixels).shape == (1, 2, 2, 1)
    torch.testing.assert_close(model(pixels), torch.tensor(wanted))


@pytest.mark.parametrize(
    ("inner", "problem"),
    [
        (nn.Conv2d(1, 3, 2), "does not take pictures of 2x2 with 3 channels: RuntimeError"),
        (nn.Identity(), r"makes \[2, 3, 2, 2\] of two pictures of 2x2 with 3 channels, must make"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 5)),
            r"makes \[2, 5\] of .*, must make \[2, 4\]",
        ),
        (nn.LSTM(2, 2), "does not take pictures of 2x2 with 3 channels"),
    ],
    ids=["channels", "axes", "classes", "no picture model"],
)
def test_a_model_that_does_not_fit_the_pictures(inner: nn.Module, problem: str) -> None:
    model = PictureModel(inner, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ParameterError, match=f"model 'mine:net': {problem}"):
        check_fits(model, "mine:net", (2, 2, 3), 4)
    assert model.training


def test_a_model_that_fits_is_left_as_it_was() -> None:
    norm = nn.BatchNorm2d(3)
    model = PictureModel(
        nn.Sequential(norm, nn.Flatten(), nn.Linear(12, 4)), (0.5,) * 3, (0.5,) * 3
    )
    check_fits(model, "mine:net", (2, 2, 3), 4)
    assert model.training and norm.training
    assert norm.num_batches_tracked == 0


def test_preprocessing_is_no_part_of_the_weights() -> None:
    model = PictureModel(nn.Linear(2, 2), mean=(0.5,), std=(0.5,))
    assert sorted(model.state_dict()) == ["model.bias", "model.weight"]


def test_count_parameters() -> None:
    assert count_parameters(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))) == 4 * 3 + 3 + 6


def test_weights_bytes_are_safetensors_and_the_same_each_time() -> None:
    model = nn.Linear(2, 3)
    data = weights_bytes(model)
    assert data == weights_bytes(model)
    torch.testing.assert_close(load(data)["weight"], model.weight.detach())


Save = Callable[[nn.Module, Path], object]

FORMS: dict[str, tuple[str, Save]] = {
    "safetensors": ("w.safetensors", lambda model, path: save_file(model.state_dict(), path)),
    "our own bytes": (
        "w.safetensors",
        lambda model, path: path.write_bytes(weights_bytes(model)),
    ),
    "state dict": ("w.pt", lambda model, path: torch.save(model.state_dict(), path)),
    "under state_dict": (
        "w.ckpt",
        lambda model, path: torch.save({"state_dict": model.state_dict(), "epoch": 3}, path),
    ),
    "under model": ("w.pth", lambda model, path: torch.save({"model": model.state_dict()}, path)),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    name, save = FORMS[form]
    trained, fresh = nn.Linear(4, 3), nn.Linear(4, 3)
    save(trained, tmp_path / name)
    load_weights(fresh, tmp_path / name)
    torch.testing.assert_close(fresh.weight, trained.weight, rtol=0, atol=0)
    torch.testing.assert_close(fresh.bias, trained.bias, rtol=0, atol=0)


def test_missing_weights_are_a_parameter_error(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"w\.pt: no such weights file; pass --weights FILE"):
        load_weights(nn.Linear(1, 1), tmp_path / "w.pt")


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_another_model_are_refused(tmp_path: Path, form: str) -> None:
    name, save = FORMS[form]
    save(nn.Linear(4, 3), tmp_path / name)
    with pytest.raises(DataError, match=r"does not fit the model: size mismatch for weight") as got:
        load_weights(nn.Linear(4, 2), tmp_path / name)
    assert "\n" not in str(got.value)


def test_missing_and_unexpected_weights_are_named(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2, 2), "scale": torch.zeros(1)}, tmp_path / "w.safetensors")
    wanted = r'Missing key\(s\) in state_dict: "bias".*Unexpected key\(s\) in state_dict: "scale"'
    with pytest.raises(DataError, match=wanted):
        load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, target = tmp_path / "w.pt", tmp_path / "touched"
    trap = {"weight": torch.zeros(1, 1), "bias": Trap(target)}
    if how == "torch":
        torch.save(trap, path)
    else:
        path.write_bytes(pickle.dumps(trap, protocol=2))
    with pytest.raises(DataError, match="weights_only"):
        load_weights(nn.Linear(1, 1), path)
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04 cut", b"\x80\x02}q\x00.", bytes(range(256)), b"\x80\x02."],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_is_no_weights_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"torch cannot read it|is no safetensors file"):
        load_weights(nn.Linear(1, 1), tmp_path / name)


@pytest.mark.parametrize("cut", [10, 200, -1])
def test_a_cut_checkpoint_is_refused(tmp_path: Path, cut: int) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "w.pt")
    data = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(data[:cut])
    with pytest.raises(DataError, match="torch cannot read it"):
        load_weights(nn.Linear(1, 1), tmp_path / "w.pt")


@pytest.mark.parametrize(
    "checkpoint",
    [
        [1, 2],
        torch.zeros(2),
        {"weight": 3},
        {"state_dict": {"weight": "text"}},
        {},
        {0: torch.zeros(1)},
    ],
    ids=["list", "tensor", "number", "text", "nothing", "numbered tensors"],
)
def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path: Path, checkpoint: Any) -> None:
    torch.save(checkpoint, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"holds no state dict|does not fit the model"):
        load_weights(nn.Linear(1, 1), tmp_path / "w.pt")


class Tied(nn.Module):
    """The rows that tokens begin with are those that they end with, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_weights_that_two_layers_share_are_published(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    (tmp_path / "tied.safetensors").write_bytes(weights_bytes(model))
    load_weights(other, tmp_path / "tied.safetensors")
    assert other.head.weight is other.embed.weight
    torch.testing.assert_close(other.embed.weight, model.embed.weight)
