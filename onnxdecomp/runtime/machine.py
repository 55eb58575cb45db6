"""What the measurements were taken on: processor, versions, threads, memory."""

import os
import platform
import re
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BLOCK_OF_FEATURE = {"AVX512F": 16, "AVX2": 8}
"""float32 lanes of a vector register: the channel block of onnxruntime's NCHWc convolution."""

SMALLEST_BLOCK = 4
"""Channels must be a multiple of this for the blocked convolution on any machine."""

PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxdecomp")


def environment(threads: int) -> dict[str, object]:
    """Return what a reader needs to judge a measurement, ready for JSON.

    Args:
        threads: Threads the measured sessions use inside an operator.
    """
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "instruction_set": instruction_set(),
        "channel_block": channel_block(),
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "threads": threads,
    }


def fingerprint() -> dict[str, str]:
    """Return what a stored value depends on beside its inputs: processor and versions, ready for JSON.

    Latencies depend on onnxruntime, the numbers of an analysis on numpy and scipy, both on the processor.
    """
    return {
        "cpu": _cpu_name(),
        "instruction_set": instruction_set(),
        "system": f"{platform.system()} {platform.machine()}",
        **{package: _version(package) for package in ("numpy", "scipy", "onnxruntime", "onnxdecomp")},
    }


def usable_cores() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def channel_block() -> int:
    """Return the channel block of this processor: 16 with AVX-512, 8 with AVX2, else 4."""
    features = _cpu_features()
    return next((b for name, b in BLOCK_OF_FEATURE.items() if features.get(name)), SMALLEST_BLOCK)


def instruction_set() -> str:
    """Return the widest vector instructions of this processor, such as ``AVX512F``, or ``baseline``."""
    features = _cpu_features()
    known = (*BLOCK_OF_FEATURE, "AVX", "SSE42", "SVE", "ASIMD", "NEON", "VSX", "VX")
    return next((name for name in known if features.get(name)), "baseline")


def int8_saturates() -> bool:
    """Return whether sums of 8-bit products may overflow: x86 without VNNI holds them in 16 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not (_cpu_flags() & {"avx_vnni", "avx512_vnni"} or _cpu_features().get("AVX512VNNI"))


def peak_memory_bytes() -> int:
    """Return the largest resident memory this process has had so far.

    Linux counts it for the program that runs now (``VmHWM``). Its `getrusage` instead carries the peak of
    the process that started this one across the start, so a small child of a large parent would look large.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_features() -> dict[str, bool]:
    """Return numpy's table of what this processor can do: the same on every operating system."""
    return dict(import_module("numpy._core._multiarray_umath").__cpu_features__)


def _cpu_flags() -> set[str]:
    """Return what Linux says this processor can do: more than numpy asks for."""
    return set((_cpu_info("flags") or "").split())


def _cpu_name() -> str:
    """Return the name of this processor, and family and model: under a hypervisor generations share names."""
    name, family, model = map(_cpu_info, ("model name", "cpu family", "model"))
    if name is None:
        return platform.processor() or platform.machine()
    return f"{name} (family {family}, model {model})" if family and model else name


def _cpu_info(key: str) -> str | None:
    """Return what Linux says of its first processor under a key."""
    info = Path("/proc/cpuinfo")
    found = re.search(rf"^{key}\s*:(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group(1).strip() if found else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
