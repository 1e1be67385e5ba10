"""Peak and available memory of this process, as the operating system reports them."""

from __future__ import annotations

import contextlib
import ctypes
import math
from pathlib import Path
from typing import final


@final
class PeakMemory:
    """Context manager that measures how far the process's resident memory rises; the result is in `bytes`.

    Linux keeps a high-water mark. It is reset on entry, after free memory has been returned to the system. Tensors,
    arrays and the scratch memory of libraries are all counted.
    """

    bytes: int | None = None
    """None if the system does not report it."""

    def __enter__(self) -> PeakMemory:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._before = None
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = _status("VmHWM") if self._before is not None else None
        if peak is not None and self._before is not None:
            self.bytes = max(0, peak - self._before)


def _status(key: str) -> int | None:
    """Return a field of /proc/self/status in bytes, None if there is no such field."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def available_bytes() -> float:
    """Return the memory available without swapping, in bytes; infinity if the system does not report it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return math.inf
