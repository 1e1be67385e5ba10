"""Terminal output of frontiers, answers and step costs: 80 columns, plain ASCII, identical when piped.

answer.py      `jumpahead ask`
frontier.py    `jumpahead show`
efficiency.py  `jumpahead efficiency`
evaluation.py  `jumpahead evaluate`
prompt.py      `jumpahead features SAE --prompt`
layout.py      tables, headings and lines
"""

from jumpahead.report.terminal.answer import print_answer
from jumpahead.report.terminal.efficiency import print_efficiency
from jumpahead.report.terminal.evaluation import print_evaluations
from jumpahead.report.terminal.frontier import print_frontier, print_training
from jumpahead.report.terminal.prompt import print_prompt

__all__ = [
    "print_answer",
    "print_efficiency",
    "print_evaluations",
    "print_frontier",
    "print_prompt",
    "print_training",
]
