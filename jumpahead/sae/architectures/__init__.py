"""Architectures: one paper, one file that defines `ARCHITECTURE`. A new one is one new file here and nothing else.

`ARCHITECTURES` lists them without importing torch, with those of other packages (registry.py).
"""

from __future__ import annotations

from jumpahead.registry import Registry

ARCHITECTURES = Registry("architecture", __name__, "ARCHITECTURE", "jumpahead.architectures")
