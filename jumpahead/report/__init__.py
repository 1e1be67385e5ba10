"""A run's page: one HTML file that needs no network, made from frontier.json and, where there is one, efficiency.json.

    frontier.json ──── numbers.harmless ──► page.py: findings, tables, data for the script ──► page.html.jinja
    efficiency.json ───────────────────────► efficiency.py
                                            page.css, ask.js, figures.js, page.js, plotly ───► report.html

No torch, and nothing from `study` or `sae`: titles, order, colours and the meaning of metrics are in the JSON.
"""

from __future__ import annotations

from pathlib import Path

from jumpahead import store
from jumpahead.report import page

SCHEMA = "jumpahead.frontier/1"
EFFICIENCY_SCHEMA = "jumpahead.efficiency/1"


def write(run_folder: Path) -> Path:
    """Writes the run's report.html atomically and returns its path.

    ArtefactError where the folder is not a run, its frontier.json is missing, or one of the two is torn or of another
    version.
    """
    run = store.Run(run_folder)
    if not run.frontier.exists():
        run = store.Run.open(run_folder)  # says so if this is no run at all
    frontier, efficiency = store.read_json(run.frontier, SCHEMA), None
    if run.efficiency.exists():
        verb = f"jumpahead efficiency --run {run.folder}"
        efficiency = store.read_json(run.efficiency, EFFICIENCY_SCHEMA, verb=verb)
    return store.write_atomic(run.report, page.html(frontier, efficiency))
