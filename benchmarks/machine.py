"""The hardware and the versions that benchmark results are recorded with."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from jumpahead import ENVIRONMENT
from jumpahead.storage.environment import describe_environment

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_fp16", "asimd", "bf16", "i8mm", "sve")
"""Instruction sets that affect the speed of matrix products; those of the CPU are recorded."""


def machine_facts(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return CPU, cores, instruction sets, memory, load and versions; no host name, no path."""
    import torch

    found = describe_environment()
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    hardware = found["hardware"]
    hardware |= {"processor": processor_name(), "threads": torch.get_num_threads()}
    hardware |= {"flags": [flag for flag in FLAGS if flag in flags]}
    hardware |= {"environment": {name: os.environ.get(name, "unset") for name in ENVIRONMENT}}
    if hasattr(os, "getloadavg"):
        hardware["load_before"] = round(os.getloadavg()[0], 2)
    for package in packages:
        try:
            found["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found["versions"][package] = "not installed"
    return found


def processor_name() -> str:
    """Return the CPU's name, with family and model if the name has no number."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in info and not re.search(r"\d", name):
        name += f" family {info['cpu family']} model {info['model']}"
    return name


def file_name_of(name: str) -> str:
    """Return a processor's name as part of a file name: `Intel(R) Xeon(R) 8481C CPU @ 2.7GHz` → `intel-xeon-8481c`."""
    name = re.sub(r"\((R|TM|C)\)", " ", name, flags=re.IGNORECASE).partition("@")[0]
    name = re.sub(r"\b(CPU|Processor|\d+-Core)\b", " ", name)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "cpu"


def describe_machine(found: dict[str, Any]) -> str:
    """`machine_facts` in one line."""
    hardware = found["hardware"]
    memory = f"{hardware['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in hardware else "memory unknown"
    flags = ", ".join(hardware["flags"]) or "no known instruction sets"
    load = f"; load before {hardware['load_before']}" if "load_before" in hardware else ""
    cores = f"{hardware['cores']} cores, {hardware['threads']} threads"
    return f"{hardware['processor']}, {cores}, {flags}, {memory}{load}"


def command_line() -> str:
    """Return the command line of this process."""
    module = sys.modules["__main__"].__spec__
    name = module.name if module else Path(sys.argv[0]).name
    return " ".join(["python -m", name.removesuffix(".__main__"), *sys.argv[1:]])


def _cpuinfo() -> dict[str, str]:
    """Return the first processor of /proc/cpuinfo; {} if there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = [line.partition(":") for line in text.split("\n\n")[0].splitlines()]
    return {key.strip(): value.strip() for key, _, value in pairs}
