"""Reports of a run: one HTML page that needs no network, and terminal output.

    page.py          renders page.html.jinja with frontier.json and efficiency.json
    panel_view.py    template values of one panel (a site and width); uses panel.py, findings.py, tables.py
    efficiency.py    template values of the section on the cost of a training step
    series_style.py  colour, dash, symbol and order of each series; colours.py
    sanitize.py      untrusted text → text that is safe to show
    assets.py        style, script, plotly and the content security policy
    notes.py         notes on SAEs, grouped by their words
    training.py      template values and script data of the section on training curves
    paper_figures.py figures as PDF and PNG (needs matplotlib)
    svg.py           one figure without a script, for model cards
    *.js             ask.js (interpolation and answers), numbers.js, figures.js, training.js, question.js (the form),
                     page.js
    terminal/        the same contents as terminal output

The package does not import torch, `study` or `sae`: the JSON contains titles, architectures and metric metadata.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from jumpahead.report.page import render_html
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import read_json
from jumpahead.storage.run_folder import Run

SCHEMA = "jumpahead.frontier/3"
EFFICIENCY_SCHEMA = "jumpahead.efficiency/1"


def write_report(run_folder: Path) -> Path:
    """Write the run's report.html atomically and return its path.

    Raises ArtefactError if the folder is not a run, its frontier.json is missing, or one of the two JSON files is torn
    or of another version.
    """
    run = Run(run_folder)
    if not run.frontier.exists():
        run = Run.open(run_folder)  # raises if this is not a run at all
    frontier, efficiency = read_json(run.frontier, SCHEMA, has_checksum=None), None
    if run.efficiency.exists():
        verb = f"jumpahead efficiency --run {run.folder}"
        efficiency = read_json(run.efficiency, EFFICIENCY_SCHEMA, made_by=verb, has_checksum=None)
    return write_atomic(run.report, render_html(frontier, efficiency, feature_links(run)))


def feature_links(run: Run) -> dict[str, str]:
    """Return the address of the feature pages of each SAE that has some, by its path; both relative to the run."""
    if not run.features.page.exists() or not run.features.contents.exists():
        return {}
    contents = read_json(run.features.contents, made_by="jumpahead features", has_checksum=None)
    points = [contents["points"][sae["number"]] for sae in contents["saes"]]
    page = run.relative(run.features.page)
    return {str(point["path"]): f"{page}#{quote(str(point['name']))}" for point in points}
