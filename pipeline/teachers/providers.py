"""On what a teacher runs: ONNX Runtime's providers for the device that was asked for, no others."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import (
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    NotImplemented,
)

from softlabel.pipeline.teachers.devices import (
    cpu_name,
    cpu_threads,
    cuda_devices,
    tensorrt_version,
)
from softlabel.schemas.errors import DataError, EnvironmentFault
from softlabel.schemas.params.shared import TeacherDevice

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# Deterministic arithmetic, and a convolution search that does not time: equal bytes within one
# execution record. TF32 would move logits by about 1e-3.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
# Where the external data of a model given as bytes lies.
EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
MODEL_FAULTS = (InvalidGraph, InvalidProtobuf, NoSuchFile, NotImplemented)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the provider is set up: its options, over ours, and the folder of TensorRT's engines."""

    options: Mapping[str, str] = field(default_factory=dict)
    engine_cache: Path | None = None


def create_session(
    path: Path, device: TeacherDevice, model: bytes | None = None, tuning: Tuning | None = None
) -> tuple[onnxruntime.InferenceSession, str]:
    """A session on `device` and that device's name; 'auto' takes CUDA where a device is visible.

    model: what is run instead of the file in `path`; its external data lies beside that. Raises
    EnvironmentFault where the device that was asked for, or is there, cannot be used, and DataError
    where ONNX Runtime does not take the model.
    """
    providers = wanted_providers(device, tuning or Tuning())
    wanted = providers[0][0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_threads()
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    if model is not None:
        options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(path.parent))
    if wanted != CPU:
        _preload_libraries(wanted)
    try:
        session = onnxruntime.InferenceSession(
            str(path) if model is None else model, options, providers=providers, enable_fallback=0
        )
    except Exception as error:
        if wanted == CPU or isinstance(error, MODEL_FAULTS):
            raise DataError(
                f"{path}: ONNX Runtime cannot load it: {first_line(error)}; export it again"
            ) from error
        raise _unusable(wanted, first_line(error)) from error
    got = session.get_providers()[0]
    if got != wanted:
        raise _unusable(wanted, f"ONNX Runtime fell back to {got}")
    number = int(providers[0][1].get("device_id", 0))
    return session, cpu_name() if wanted == CPU else cuda_devices()[number]


def wanted_providers(device: TeacherDevice, tuning: Tuning) -> list[tuple[str, dict[str, str]]]:
    """The provider for `device`, its options, and those for what it leaves over.

    Raises EnvironmentFault where there is no such device, or no such provider in this ONNX Runtime.
    """
    gpus, built = cuda_devices(), onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and not (gpus and CUDA in built)):
        return [(CPU, dict(tuning.options))]
    wanted = TENSORRT if device == "tensorrt" else CUDA
    if not gpus:
        raise EnvironmentFault(
            f"device {device!r} was asked for and the driver shows no CUDA device; "
            "pass --device cpu or run on a machine with one"
        )
    if wanted not in built:
        raise EnvironmentFault(
            f"device {device!r} was asked for and this onnxruntime has no {wanted}; "
            "pip install onnxruntime-gpu or pass --device cpu"
        )
    if wanted == CUDA:
        return [(CUDA, CUDA_OPTIONS | dict(tuning.options)), (CPU, {})]
    options = _engine_options(tuning.engine_cache) | dict(tuning.options)
    same = {name: value for name, value in tuning.options.items() if name == "device_id"}
    return [(TENSORRT, options), (CUDA, CUDA_OPTIONS | same), (CPU, {})]


def packing_device(provider: str, options: Mapping[str, str]) -> str | None:
    """Where torch packs labels beside the provider's outputs; None for the host, by NumPy."""
    if provider == CPU or not hasattr(onnxruntime.OrtValue, "__dlpack__"):
        return None
    import torch

    return f"cuda:{options.get('device_id', 0)}" if torch.cuda.is_available() else None


def cuda_version(provider: str) -> str | None:
    """CUDA's version where `provider` uses it."""
    if provider == CPU:
        return None
    return getattr(onnxruntime, "cuda_version", None) or None


def engine_version(provider: str) -> str | None:
    """TensorRT's version where `provider` builds its engines with it."""
    return tensorrt_version() if provider == TENSORRT else None


def first_line(error: Exception) -> str:
    """What an error of ONNX Runtime says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _engine_options(folder: Path | None) -> dict[str, str]:
    """Building an engine times the device's kernels: kept, it is the same in the next run."""
    if folder is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    kept = ("trt_engine_cache", "trt_timing_cache")
    return {f"{name}_enable": "1" for name in kept} | {f"{name}_path": str(folder) for name in kept}


def _unusable(provider: str, reason: str) -> EnvironmentFault:
    libraries = "CUDA 13 and cuDNN 9"
    if provider == TENSORRT:
        libraries += " and TensorRT 10"
    return EnvironmentFault(
        f"a CUDA device is there ({cuda_devices()[0]}) and {provider} cannot be used: {reason}; "
        f"see that its libraries ({libraries}) are installed and --provider-options are its own, "
        "or pass --device cpu"
    )


def _preload_libraries(provider: str) -> None:
    """Load those of the installed wheels, which the loader would not find by itself."""
    if provider == TENSORRT:
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")
    # It prints what it cannot find; the provider check after it decides.
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
