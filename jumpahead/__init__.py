"""Sparse autoencoders as frontiers: what a given loss costs, in active features, frequent ones and training time.

>>> import jumpahead as ja
>>> ja.Frontier.load("runs/demo").ask(delta_loss=0.2)     # what each architecture costs there
>>> sae = ja.SAE.load("runs/demo/saes/layers.1.residual/8192/jumprelu/l0-12_seed-0")

Names are imported when they are first used: `import jumpahead` loads no torch.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumpahead.evaluate import evaluate as evaluate
    from jumpahead.frontier import Frontier as Frontier
    from jumpahead.lm.model import LM as LM
    from jumpahead.run import run as run
    from jumpahead.sae.base import SAE as SAE
    from jumpahead.train import train as train
    from jumpahead.train_on import train_on as train_on

    splice = LM.splice

    __version__: str

# Read when torch loads (docs/LOG.md, 2026-11-24): torch's idle threads spin for microseconds, not milliseconds, while
# the compiled kernels want their cores; large tensors lie on huge pages.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000", "THP_MEM_ALLOC_ENABLE": "1"}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

_HOMES = {
    "SAE": "jumpahead.sae.base",
    "LM": "jumpahead.lm.model",
    "splice": "jumpahead.lm.model",  # LM.splice, as a function: splice(lm, ids, site, replacement)
    "run": "jumpahead.run",
    "train": "jumpahead.train",
    "evaluate": "jumpahead.evaluate",
    "train_on": "jumpahead.train_on",
    "Frontier": "jumpahead.frontier",
}
_VERBS = frozenset({"run", "train", "train_on", "evaluate"})

__all__ = ["LM", "SAE", "Frontier", "evaluate", "run", "splice", "train", "train_on"]


class _Verb(types.ModuleType):
    """A file that is named as its one function: `jumpahead.train(…)` calls `jumpahead.train.train(…)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(types.ModuleType):
    """The import system sets a file as an attribute of its package once it is imported; verbs then become callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _VERBS and type(value) is types.ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jumpahead")
    if name not in _HOMES:
        raise AttributeError(f"module 'jumpahead' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    if name == "splice":
        return module.LM.splice
    return module if name in _VERBS else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
