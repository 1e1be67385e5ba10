"""A run's page: one HTML file that needs no network, made from frontier.json alone.

    frontier.json ── numbers.harmless ──► page.py: findings, tables, data for the script ──► page.html.jinja
                                          page.css, ask.js, figures.js, page.js, plotly ───► report.html

No torch, and nothing from `study` or `sae`: titles, order, colours and the meaning of metrics are in the JSON.
"""

from __future__ import annotations

from pathlib import Path

from jumpahead import store
from jumpahead.report import page

SCHEMA = "jumpahead.frontier/1"


def write(run_folder: Path) -> Path:
    """Writes the run's report.html atomically and returns its path.

    ArtefactError where the folder is not a run, or its frontier.json is missing, torn or of another version.
    """
    run = store.Run(run_folder)
    if not run.frontier.exists():
        run = store.Run.open(run_folder)  # says so if this is no run at all
    return store.write_atomic(run.report, page.html(store.read_json(run.frontier, SCHEMA)))
