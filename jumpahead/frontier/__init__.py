"""The sparsity–fidelity frontier of many SAEs: measured curves per series, and answers to queries about them.

A series is an architecture with its options; its SAEs differ in their sparsity setting and seeds. A panel contains the
SAEs of one site and width, or of one site if SAEs of any make are compared.

    build.py         evaluations → frontier.json (intervals, Pareto set, matched tables)
    frontier.py      `Frontier`: reads frontier.json and answers queries
    table.py         the SAEs as rows: CSV, pandas
    query.py         a query: target value and limits
    panel_answer.py  the answer for one panel: crossings of every series with the target, recommendation
    answer.py        `Answer`, the result of `Frontier.ask`
    pareto.py        which SAEs are Pareto-optimal, by intervals
    matched.py       tables of metrics at equal L0 and at equal loss
    series.py        `SeriesCurve`: the curve through the SAEs of one series
    seeds.py         bootstrap weights of the seeds of a sparsity setting
    curve.py         interpolation, replicates and intervals of one curve

The package uses numpy only, not torch.
"""

from jumpahead.frontier.answer import Answer, Crossing, PanelAnswer, Recommendation, SeriesAnswer
from jumpahead.frontier.build import build_frontier
from jumpahead.frontier.curve import CONFIDENCE_LEVEL, Estimate
from jumpahead.frontier.frontier import SCHEMA, Frontier
from jumpahead.frontier.query import parse_value

__all__ = [
    "CONFIDENCE_LEVEL",
    "SCHEMA",
    "Answer",
    "Crossing",
    "Estimate",
    "Frontier",
    "PanelAnswer",
    "Recommendation",
    "SeriesAnswer",
    "build_frontier",
    "parse_value",
]
