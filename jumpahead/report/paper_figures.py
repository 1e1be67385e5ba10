"""Figures for a paper, as PDF and PNG: delta LM loss and FVU against L0, high-frequency features, frequencies.

They show the same numbers as the page, in the size of a column or of a page of two columns, in colours and marks that
can be told apart with common colour blindness. Needs matplotlib, the extra `figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jumpahead.errors import JumpaheadError
from jumpahead.formatting import typeset_exact
from jumpahead.report.panel import Json, Panel, page_context
from jumpahead.report.panel_view import histogram_choices
from jumpahead.report.sanitize import sanitize
from jumpahead.report.series_style import SeriesStyle, series_styles
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.layout import RunPaths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE, HEIGHT = 3.35, 6.9, 2.5
"""Width of a column, width of two columns, and height, in inches."""
FORMATS = ("pdf", "png")
SETTINGS: Any = {
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "axes.linewidth": 0.6, "lines.linewidth": 1.1, "lines.markersize": 4, "grid.linewidth": 0.4,
    "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 300,
    "savefig.dpi": 300, "pdf.fonttype": 42, "text.parse_math": False, "axes.formatter.use_mathtext": False,
}  # fmt: skip
"""matplotlib's settings; fonts are embedded as TrueType, and `$` in the names of a run is a dollar sign."""
DASHES: dict[str, Any] = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 2, 1, 2)), "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 3, 1, 3)),
}  # fmt: skip
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "P", "x": "X",
    "pentagon": "p", "hexagon": "h", "star": "*",
}  # fmt: skip
"""Dashes and marks of matplotlib by the names in series_style.py."""


class Axis(NamedTuple):
    """The metric on an axis of a figure."""

    key: str
    """Key of the metric."""
    label: str
    scale: float = 1.0
    """Factor of the values: 100 for shares in per cent."""
    is_log: bool = True
    """True for a logarithmic axis if all values are positive."""

    def value(self, point: Json) -> float:
        """Return the value of an SAE on the axis; nan if it has none."""
        value = point["metrics"].get(self.key)
        return self.scale * value if value is not None else np.nan

    def reach(self, point: Json) -> tuple[float, float]:
        """Return how far the interval of an SAE reaches below and above its value; zeros without an interval."""
        low, high = point["intervals"].get(self.key) or (None, None)
        value = self.value(point)
        if low is None or high is None or not np.isfinite(value):
            return 0.0, 0.0
        return max(value - self.scale * low, 0.0), max(self.scale * high - value, 0.0)


def write_paper_figures(frontier: Json, run: RunPaths) -> list[Path]:
    """Write the figures of every panel as PDF and PNG into the run's folder; return their paths.

    frontier: content of frontier.json. Raises JumpaheadError if matplotlib is not installed.
    """
    data = sanitize(frontier)
    styles, context = series_styles(data["series"]), page_context(data)
    written = []
    with _matplotlib_settings():
        for number, json in enumerate(data["panels"], 1):
            panel = Panel(json, number, context)
            for name, draw in _figures(panel).items():
                figure = draw(panel, styles)
                for suffix in FORMATS:
                    path = run.figure(json["site"], json["width"], name, suffix)
                    written.append(write_atomic(path, _to_bytes(figure, suffix)))
    return written


@contextmanager
def _matplotlib_settings() -> Iterator[None]:
    """Apply `SETTINGS` within the `with` block. Raises JumpaheadError if matplotlib is not installed."""
    try:
        from matplotlib import rc_context
    except ImportError as exc:
        raise JumpaheadError("Figures as PDF need matplotlib: `pip install 'jumpahead[figures]'`.") from exc
    with rc_context(SETTINGS):
        yield


def _to_bytes(figure: Figure, suffix: str) -> bytes:
    """Return a figure as a file; the same figure gives the same bytes."""
    import io

    file = io.BytesIO()
    metadata: dict[str, Any] = {"CreationDate": None} if suffix == "pdf" else {"Software": None}
    figure.savefig(file, format=suffix, metadata=metadata)
    return file.getvalue()


def _figures(panel: Panel) -> dict[str, Callable[[Panel, Sequence[SeriesStyle]], Figure]]:
    """Return the functions that draw the figures of a panel, by name of the file."""
    measured = [point for point in panel.points if point["metrics"].get("l0") is not None]
    drawn: dict[str, Callable[[Panel, Sequence[SeriesStyle]], Figure]] = {}
    if any(point["metrics"].get("delta_lm_loss") is not None for point in measured):
        drawn["figure-2"] = lambda panel, styles: _against_l0(panel, styles, "delta_lm_loss")
    if any(point["metrics"].get("fvu") is not None for point in measured):
        drawn["fvu"] = lambda panel, styles: _against_l0(panel, styles, "fvu")
    if measured:
        drawn["figure-5"] = _high_frequency_features
    if any((point["histogram"].get("counts") or []) for point in measured):
        drawn["frequencies"] = _frequencies
    return drawn


# ---------------------------------------------------------------------------------------------- figures


def _against_l0(panel: Panel, styles: Sequence[SeriesStyle], key: str) -> Figure:
    """Return the figure of a metric against L0, one column wide."""
    figure, (axes,) = _new_figure(COLUMN, 1)
    _draw_curves(axes, panel, styles, _axis(panel, "l0"), _axis(panel, key))
    _add_legend(axes, panel, styles)
    return figure


def _high_frequency_features(panel: Panel, styles: Sequence[SeriesStyle]) -> Figure:
    """Return the figure of the shares of features above 10 % and above 1 % against fidelity, two columns wide."""
    figure, both = _new_figure(PAGE, 2)
    for axes, key, percent in zip(both, ("share_above_10pct", "share_above_1pct"), (10, 1), strict=True):
        label = f"features on > {percent} % of {panel.context.unit.plural}, %"
        _draw_curves(axes, panel, styles, _axis(panel, panel.fidelity), Axis(key, label, 100, is_log=False))
        top = axes.get_ylim()[1]
        axes.set_ylim(-0.03 * top, top)  # marks at zero are whole
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= top])
    _add_legend(both[0], panel, styles)
    return figure


def _frequencies(panel: Panel, styles: Sequence[SeriesStyle]) -> Figure:
    """Return the histogram of frequencies of the SAE of each series that the page shows first, one column wide."""
    figure, (axes,) = _new_figure(COLUMN, 1)
    for i in histogram_choices(panel)[0]["points"]:
        point, style = panel.points[i], styles[panel.series_index(panel.points[i])]
        edges, counts = point["histogram"].get("log10_edges") or [], point["histogram"].get("counts") or []
        label = f"{style.title}, L0 {typeset_exact(round(point['metrics']['l0'], 1))}"
        x = 100 * 10.0 ** np.asarray(edges)
        heights = np.maximum([*counts, *counts[-1:]], 0.5)
        axes.step(x, heights, where="post", color=style.paper, linestyle=DASHES[style.dash], label=label)
    for at in (1, 10):
        axes.axvline(at, color="0.6", linewidth=0.6, zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.set_xlim(right=100)
    axes.set_xlabel(f"frequency, % of {panel.context.unit.plural}")
    axes.set_ylabel("features per quarter decade")
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    axes.legend(frameon=False, loc="best", handlelength=2.6)
    return figure


# ---------------------------------------------------------------------------------------------- parts of figures


def _new_figure(width: float, columns: int) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of some inches width, and its axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, HEIGHT), layout="constrained")
    return figure, list(np.ravel(figure.subplots(1, columns)))


def _axis(panel: Panel, key: str) -> Axis:
    """Return the axis of a metric, labelled with its name and unit."""
    declared = panel.context.metrics[key]
    return Axis(key, declared["name"] + (f", {declared['unit']}" if declared["unit"] else ""))


def _draw_curves(axes: Axes, panel: Panel, styles: Sequence[SeriesStyle], x: Axis, y: Axis) -> None:
    """Draw every series: marks with intervals, and the curve through the means of its settings."""
    points = [point for point in panel.points if np.isfinite([x.value(point), y.value(point)]).all()]
    for i in sorted({panel.series_index(point) for point in points}):
        own = sorted((p for p in points if panel.series_index(p) == i), key=lambda p: p["metrics"]["l0"])
        style = styles[i]
        axes.errorbar(
            [x.value(p) for p in own], [y.value(p) for p in own],
            xerr=np.transpose([x.reach(p) for p in own]), yerr=np.transpose([y.reach(p) for p in own]),
            fmt=MARKERS[style.symbol], color=style.paper, elinewidth=0.6, capsize=1.5, capthick=0.6,
        )  # fmt: skip
        axes.plot(*_means(own, x, y), color=style.paper, linestyle=DASHES[style.dash])
    for axis, set_scale, label, ticks in (
        (x, axes.set_xscale, axes.set_xlabel, axes.xaxis), (y, axes.set_yscale, axes.set_ylabel, axes.yaxis),
    ):  # fmt: skip
        if axis.is_log and points and min(axis.value(point) for point in points) > 0:
            set_scale("log")
            _plain_ticks(ticks)
        label(axis.label)
    axes.grid(color="0.9", zorder=0)
    axes.set_axisbelow(True)


def _means(points: Sequence[Json], x: Axis, y: Axis) -> tuple[list[float], list[float]]:
    """Return the coordinates of a series' curve: the means over the seeds of each setting, by increasing L0."""
    groups: dict[tuple[str, float], list[Json]] = {}
    for point in points:
        groups.setdefault((point["setting"]["kind"], point["setting"]["value"]), []).append(point)
    return tuple([float(np.mean([axis.value(p) for p in group])) for group in groups.values()] for axis in (x, y))  # type: ignore[return-value]


def _plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis with numbers, 20 and 0.05, at 1, 2 and 5 of each decade, or at more of a short range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    digits = (1.0,) if decades > 3.2 else (1.0, 2.0, 5.0) if decades > 0.9 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(10, subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: typeset_exact(float(f"{value:.3g}"))))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _add_legend(axes: Axes, panel: Panel, styles: Sequence[SeriesStyle]) -> None:
    """Add the legend of the series of a panel: line, mark and title of each."""
    from matplotlib.lines import Line2D

    shown = [styles[i] for i in sorted({panel.series_index(point) for point in panel.points})]
    handles = [
        Line2D([], [], color=one.paper, linestyle=DASHES[one.dash], marker=MARKERS[one.symbol], label=one.title)
        for one in shown
    ]
    axes.legend(handles=handles, frameon=False, loc="best", handlelength=2.6)
