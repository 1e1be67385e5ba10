"""Origins of activations: one file each, which defines the class `Origin`. A new origin needs no other change.

`ORIGINS` lists them without importing torch, with those of other packages (registry.py).
"""

from __future__ import annotations

from jumpahead.registry import Registry

ORIGINS = Registry("origin of activations", __name__, "Origin", "jumpahead.activation_origins")
