"""The frontier of many SAEs: evaluations as curves, and what a loss, an L0 or a number of features costs on each.

    build.py      evaluations → frontier.json (intervals, Pareto set, matched tables)
    frontier.py   `Frontier`: reads it, `ask`s it
    answer.py     what `ask` returns, and how it is found
    series.py     the SAEs of one series → its curve: settings, seeds, scales
    curve.py      the mathematics of one measured curve: interpolation, replicates, intervals

numpy only. The command line, the report and the sweep use the names below.
"""

from jumpahead.frontier.answer import (
    TARGETS,
    Answer,
    Crossing,
    PanelAnswer,
    Recommendation,
    SeriesAnswer,
    parse_amount,
)
from jumpahead.frontier.build import build
from jumpahead.frontier.curve import LEVEL, Estimate
from jumpahead.frontier.frontier import SCHEMA, Frontier
from jumpahead.frontier.words import amount, number, percent, setting_label

__all__ = [
    "LEVEL",
    "SCHEMA",
    "TARGETS",
    "Answer",
    "Crossing",
    "Estimate",
    "Frontier",
    "PanelAnswer",
    "Recommendation",
    "SeriesAnswer",
    "amount",
    "build",
    "number",
    "parse_amount",
    "percent",
    "setting_label",
]
