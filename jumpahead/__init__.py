"""Train sparse autoencoders of several architectures at many sparsities, and compare their cost at the same loss.

>>> import jumpahead as ja
>>> ja.Frontier.load("runs/demo").ask(delta_loss=0.2)     # the cost of each architecture at that loss
>>> sae = ja.load("runs/demo/saes/layers.1.residual/8192/jumprelu/l0-12_seed-0")      # or an SAE of another library

Names are imported on first use: `import jumpahead` does not load torch. More functions: `jumpahead.api`.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if sys.platform not in ("linux", "darwin"):
    raise ImportError(f"jumpahead runs on Linux and macOS, not on {sys.platform}: on Windows, use WSL 2.")

if TYPE_CHECKING:
    from jumpahead.api import compare as compare
    from jumpahead.api import load as load
    from jumpahead.api import register as register
    from jumpahead.api import run as run
    from jumpahead.api import train_on as train_on
    from jumpahead.evaluation.evaluate import evaluate as evaluate
    from jumpahead.frontier import Frontier as Frontier
    from jumpahead.lm.attribution import attribute as attribute
    from jumpahead.lm.interventions import ablate as ablate
    from jumpahead.lm.interventions import encode_text as encode_text
    from jumpahead.lm.interventions import spliced as spliced
    from jumpahead.lm.interventions import steer as steer
    from jumpahead.lm.interventions import token_ids as token_ids
    from jumpahead.lm.interventions import token_losses as token_losses
    from jumpahead.lm.model import LM as LM
    from jumpahead.sae.saved import SAE as SAE
    from jumpahead.training.loop import train as train

    splice = LM.splice

    __version__: str

# Read when torch loads: torch's idle threads spin for microseconds, not milliseconds, because the compiled kernels need
# their cores; large tensors are allocated on huge pages (docs/LOG.md, 2026-11-24).
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000", "THP_MEM_ALLOC_ENABLE": "1"}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

_MODULES = {
    "SAE": "jumpahead.sae.saved",
    "LM": "jumpahead.lm.model",
    "Frontier": "jumpahead.frontier",
    "run": "jumpahead.api",
    "train_on": "jumpahead.api",
    "load": "jumpahead.api",
    "compare": "jumpahead.api",
    "register": "jumpahead.api",
    "train": "jumpahead.training.loop",
    "evaluate": "jumpahead.evaluation.evaluate",
    "attribute": "jumpahead.lm.attribution",
    **dict.fromkeys(
        ("ablate", "encode_text", "spliced", "steer", "token_ids", "token_losses"), "jumpahead.lm.interventions"
    ),
}
"""The module that defines each public name; `splice` is the method of `LM`, as a function."""

__all__ = [
    "LM",
    "SAE",
    "Frontier",
    "ablate",
    "attribute",
    "compare",
    "encode_text",
    "evaluate",
    "load",
    "register",
    "run",
    "splice",
    "spliced",
    "steer",
    "token_ids",
    "token_losses",
    "train",
    "train_on",
]


def __getattr__(name: str) -> Any:
    """Return a public name, importing its module. Raises AttributeError for any other name."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jumpahead")
    if name == "splice":
        return importlib.import_module(_MODULES["LM"]).LM.splice
    if name not in _MODULES:
        raise AttributeError(f"module 'jumpahead' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the names of the module, the public ones included."""
    return sorted([*globals(), *__all__, "__version__"])
