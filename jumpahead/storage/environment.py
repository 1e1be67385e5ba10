"""The environment of a run: versions of packages and the hardware, as recorded in manifests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def describe_environment() -> dict[str, Any]:
    """Return package versions and hardware. No package is imported; the host name and paths are left out."""
    versions = {"python": platform.python_version()}
    for package in ("jumpahead", "torch", "transformers", "numpy", "numba", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    hardware = {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        hardware["processor"] = names[0] if names else platform.processor()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        hardware["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"versions": versions, "hardware": hardware}
