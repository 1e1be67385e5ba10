"""What the machine is: nothing that is measured means anything without it."""

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
"""Instruction sets that decide how fast a product is, where the CPU has them."""


def machine_facts(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """CPU, cores, instruction sets, memory, load, and versions; not the machine's name, nor a path."""
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
    """The CPU's name; with family and model where the name says neither."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in info and not re.search(r"\d", name):
        name += f" family {info['cpu family']} model {info['model']}"
    return name


def file_name_of(name: str) -> str:
    """A CPU's name as part of a file name: `Intel(R) Xeon(R) 8481C CPU @ 2.70GHz` → `intel-xeon-8481c`."""
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
    """How this program was called, as typed."""
    module = sys.modules["__main__"].__spec__
    name = module.name if module else Path(sys.argv[0]).name
    return " ".join(["python -m", name.removesuffix(".__main__"), *sys.argv[1:]])


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = [line.partition(":") for line in text.split("\n\n")[0].splitlines()]
    return {key.strip(): value.strip() for key, _, value in pairs}
