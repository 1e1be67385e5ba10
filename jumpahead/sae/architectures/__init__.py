"""Architectures, one file per paper; each file defines `ARCHITECTURE`. To add an architecture, add a file here.

`ARCHITECTURES` lists all architectures, also those of other packages (registry.py), without importing torch.
"""

from __future__ import annotations

from jumpahead.registry import Registry

ARCHITECTURES = Registry("architecture", __name__, "ARCHITECTURE", "jumpahead.architectures")
