"""Origins of activations. Each file of this folder defines one origin as the class `Origin`.

To add an origin, add a file. The registry `ORIGINS` lists all origins, also the origins that other packages register,
without importing torch.
"""

from __future__ import annotations

from jumpahead.registry import Registry

ORIGINS = Registry("origin of activations", __name__, "Origin", "jumpahead.activation_origins")
