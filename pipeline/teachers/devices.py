"""Which processors and memory this machine has, asked without torch or ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cuda_devices() -> tuple[str, ...]:
    """Names of the CUDA devices that the driver shows to this process; empty without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_cuda_name(driver, index) for index in range(count.value))


def tensorrt_version() -> str | None:
    """The version of the TensorRT 10 library in this process; None where there is none."""
    try:
        number = int(ctypes.CDLL("libnvinfer.so.10").getInferLibVersion())
    except OSError:
        return None
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def cpu_threads() -> int:
    """Processors this process may use: the affinity mask, not the host's count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_memory() -> int:
    """Bytes of memory that this process takes; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_memory() -> float:
    """Bytes that this process may still take, of the machine and its container; else infinity."""
    free = [math.inf]
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        # What files left in memory goes when it is needed.
        kept = (CGROUP / "memory.stat").read_text().splitlines()
        files = sum(int(line.split()[1]) for line in kept if line.startswith("inactive_file "))
        free.append(limit - int((CGROUP / "memory.current").read_text()) + files)
    return min(free)


def _cuda_name(driver: ctypes.CDLL, index: int) -> str:
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    return name.value.decode(errors="replace")
