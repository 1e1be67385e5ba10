"""The operations of the command line as Python functions, for scripts and notebooks.

    run = jumpahead.run("studies/demo.toml", overrides=["train.tokens=300_000"])
    jumpahead.Frontier.load(run).ask(delta_loss=0.2)

    run = jumpahead.train_on(tensors, series=[{"architecture": "topk", "k": [4, 8]}], width=512, tokens=200_000,
                             out="runs/vision")
    jumpahead.Frontier.load(run).ask(l0=6)

`jumpahead` exports `run`, `train_on`, `load` and `register`; import the others from here. All raise JumpaheadError,
with one sentence that says what to change. Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from jumpahead.api.extensions import register
from jumpahead.api.feature_pages import features, features_of_prompt
from jumpahead.api.machine import EfficiencyResult, efficiency
from jumpahead.api.runs import ask, clean, load_frontier, question_example, report, show, verify
from jumpahead.api.saes import PushResult, compare, evaluate, export, load, push
from jumpahead.api.studies import HarvestResult, dry_run, harvest, init, plan, run, train_on

__all__ = [
    "EfficiencyResult",
    "HarvestResult",
    "PushResult",
    "ask",
    "clean",
    "compare",
    "dry_run",
    "efficiency",
    "evaluate",
    "export",
    "features",
    "features_of_prompt",
    "harvest",
    "init",
    "load",
    "load_frontier",
    "plan",
    "push",
    "question_example",
    "register",
    "report",
    "run",
    "show",
    "train_on",
    "verify",
]
