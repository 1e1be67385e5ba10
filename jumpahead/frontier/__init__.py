"""The frontier of many SAEs: evaluations as curves, and what a loss, an L0 or a number of features costs on each.

    build.py         evaluations → frontier.json (intervals, Pareto set, matched tables)
    frontier.py      `Frontier`: reads frontier.json, answers questions
    query.py         a question: target and limits
    panel_answer.py  crossings of every series with the target, recommendation
    answer.py        what `ask` returns
    matched.py       what every series has at the same L0 and the same loss
    series.py        the SAEs of one series → its curve
    seeds.py         how seeds of a setting count in each bootstrap replicate
    curve.py         interpolation, replicates and intervals of one curve

numpy only.
"""

from jumpahead.frontier.answer import Answer, Crossing, PanelAnswer, Recommendation, SeriesAnswer
from jumpahead.frontier.build import build
from jumpahead.frontier.curve import LEVEL, Estimate
from jumpahead.frontier.frontier import SCHEMA, Frontier
from jumpahead.frontier.query import parse_value

__all__ = [
    "LEVEL",
    "SCHEMA",
    "Answer",
    "Crossing",
    "Estimate",
    "Frontier",
    "PanelAnswer",
    "Recommendation",
    "SeriesAnswer",
    "build",
    "parse_value",
]
