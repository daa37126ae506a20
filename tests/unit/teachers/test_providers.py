"""Which providers are asked for, and that nothing else is taken in their place."""

from __future__ import annotations

import ctypes
import types
from pathlib import Path

import onnxruntime
import pytest

from softlabel.pipeline.teachers import providers
from softlabel.pipeline.teachers.devices import cuda_devices
from softlabel.pipeline.teachers.providers import (
    Tuning,
    create_session,
    engine_version,
    wanted_providers,
)
from softlabel.schemas.errors import DataError, EnvironmentFault
from softlabel.schemas.params.shared import TeacherDevice
from tests.conftest import Project

ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that shows a device."""
    monkeypatch.setattr(providers, "cuda_devices", lambda: ("Some GPU",))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime with all providers."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)


def names(device: TeacherDevice) -> list[str]:
    return [name for name, _ in wanted_providers(device, Tuning())]


@pytest.mark.usefixtures("gpu", "built")
def test_each_device_and_what_it_leaves_over() -> None:
    assert names("tensorrt") == ALL
    assert names("cuda") == names("auto") == ALL[1:]
    assert names("cpu") == ALL[2:]


@pytest.mark.usefixtures("built")
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "cuda_devices", tuple)
    assert names("auto") == names("cpu") == ALL[2:]
    for device in ("cuda", "tensorrt"):
        with pytest.raises(EnvironmentFault, match=f"'{device}' was asked for and the driver"):
            wanted_providers(device, Tuning())


@pytest.mark.usefixtures("gpu")
def test_without_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL[2:])
    assert names("auto") == ALL[2:]
    with pytest.raises(EnvironmentFault, match="this onnxruntime has no CUDAExecutionProvider"):
        wanted_providers("cuda", Tuning())
    with pytest.raises(EnvironmentFault, match="has no TensorrtExecutionProvider"):
        wanted_providers("tensorrt", Tuning())


@pytest.mark.parametrize(("number", "version"), [(101303, "10.13.3"), (100000, "10.0.0")])
def test_the_version_of_tensorrt_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch, number: int, version: str
) -> None:
    library = types.SimpleNamespace(getInferLibVersion=lambda: number)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert [engine_version(provider) for provider in ALL] == [version, None, None]


@pytest.mark.usefixtures("gpu", "built")
def test_told_options_go_over_ours_and_to_that_provider_alone(tmp_path: Path) -> None:
    told = {"use_tf32": "1", "enable_skip_layer_norm_strict_mode": "1"}
    (_, cuda), (_, cpu) = wanted_providers("cuda", Tuning(told))
    assert cuda == {"cudnn_conv_algo_search": "HEURISTIC", **told}
    assert cpu == {}
    cache = tmp_path / "engines"
    tuning = Tuning({"trt_fp16_enable": "1", "device_id": "1"}, cache)
    (_, tensorrt), (_, left), _ = wanted_providers("tensorrt", tuning)
    assert tensorrt == {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_fp16_enable": "1",
        "device_id": "1",
    }
    assert cache.is_dir()
    assert left == providers.CUDA_OPTIONS | {"device_id": "1"}


@pytest.mark.skipif(
    bool(cuda_devices()) or ALL[0] not in onnxruntime.get_available_providers(),
    reason="needs an ONNX Runtime for GPUs on a machine without their libraries",
)
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("device", ["cuda", "tensorrt", "auto"])
def test_a_provider_that_does_not_load_is_no_slow_run(
    project: Project, device: TeacherDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"\(Some GPU\) and .* cannot be used: .*--device cpu"
    ):
        create_session(project.root / "models/teacher.onnx", device)
    assert capsys.readouterr().out == ""


def test_a_file_that_is_no_model_is_not_blamed_on_the_device(tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(DataError, match="ONNX Runtime cannot load it"):
        create_session(path, "cpu")
