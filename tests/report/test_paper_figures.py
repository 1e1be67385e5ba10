"""Figures for a paper: which are written, their size, their points, and text that stays text."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jumpahead.errors import JumpaheadError
from jumpahead.report import paper_figures
from jumpahead.report.panel import Panel, page_context
from jumpahead.report.paper_figures import COLUMN, HEIGHT, PAGE, write_paper_figures
from jumpahead.report.series_style import series_styles
from jumpahead.storage.layout import RunPaths


def drawn(data: dict[str, Any], name: str) -> Any:
    """One figure of the first panel, as matplotlib holds it."""
    panel = Panel(data["panels"][0], 1, page_context(data))
    with paper_figures._matplotlib_settings():
        return paper_figures._figures(panel)[name](panel, series_styles(data["series"]))


def curves(axes: Any) -> list[np.ndarray]:
    """The curves of a figure's axes, [points, 2] each: the lines that are drawn as such, without marks."""
    return [line.get_xydata() for line in axes.lines if line.get_linestyle() != "None"]


def page_size(pdf: bytes) -> tuple[float, float]:
    """Width and height of the first page, in inches."""
    found = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", pdf)
    assert found
    return float(found[1]) / 72, float(found[2]) / 72


def test_every_panel_has_its_figures_as_pdf_and_png(make, tmp_path: Path) -> None:
    evaluations = make.sweep()
    for one in make.sweep():
        one["sae"]["site"] = "layers.2.mlp"
        evaluations.append(one)
    data = make.build(evaluations)
    paths = write_paper_figures(data, RunPaths(tmp_path))
    names = ("figure-2", "fvu", "figure-5", "frequencies")
    sites = ("layers.1.residual", "layers.2.mlp")
    assert [path.name for path in paths] == [
        f"{site}-4096-{name}.{suffix}" for site in sites for name in names for suffix in ("pdf", "png")
    ]
    for path in paths:
        content = path.read_bytes()
        width = PAGE if "figure-5" in path.name else COLUMN
        if path.suffix == ".pdf":
            assert page_size(content) == pytest.approx((width, HEIGHT), abs=0.01)
            assert b"/Type3" not in content  # fonts are embedded as TrueType
        else:
            assert int.from_bytes(content[16:20], "big") == pytest.approx(300 * width, abs=1)
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_paper_figures(data, RunPaths(tmp_path))] == before


def test_the_points_are_those_of_the_frontier(make) -> None:
    data = make.build(make.sweep())
    points = [p for p in data["panels"][0]["points"] if p["series"] == "jumprelu"]
    (axes,) = drawn(data, "figure-2").axes
    expected = [(p["metrics"]["l0"], p["metrics"]["delta_lm_loss"]) for p in points]
    np.testing.assert_allclose(curves(axes)[0], expected)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    ten, one = drawn(data, "figure-5").axes
    shares = [100 * p["metrics"]["above_10pct"] / 4096 for p in points]
    np.testing.assert_allclose(curves(ten)[0][:, 1], shares)
    assert ten.get_yscale() == "linear"
    assert min(ten.get_yticks()) == 0
    assert ten.get_ylim()[0] < 0  # marks at zero are whole
    assert "> 1 %" in one.get_ylabel()
    assert [text.get_text() for text in ten.get_legend().get_texts()] == ["JumpReLU", "Gated", "TopK"]
    low, high = points[1]["intervals"]["delta_lm_loss"]
    bars = [segment for bar in axes.collections for segment in bar.get_segments()]
    assert any(np.allclose(np.sort(segment[:, 1]), (low, high)) for segment in bars)


def test_curves_run_through_the_means_of_seeds(make) -> None:
    data = make.build([make.evaluation(0, l0, seed) for l0 in (4.0, 8.0) for seed in (0, 2)])
    (axes,) = drawn(data, "fvu").axes
    (curve,) = curves(axes)
    points = data["panels"][0]["points"]
    expected = [[np.mean([p["metrics"][key] for p in points if p["setting"]["value"] == l0]) for key in ("l0", "fvu")]
                for l0 in (4.0, 8.0)]  # fmt: skip
    np.testing.assert_allclose(curve, expected)


def test_without_a_model_there_is_no_loss_to_draw(make) -> None:
    without = dict.fromkeys(("delta_lm_loss", "ce_clean", "ce_zero", "ce_mean"))
    data = make.build([make.evaluation(0, l0, **without) for l0 in (4.0, 8.0)], lm={"name": None})
    panel = Panel(data["panels"][0], 1, page_context(data))
    assert list(paper_figures._figures(panel)) == ["fvu", "figure-5", "frequencies"]
    assert "tokens" not in drawn(data, "figure-5").axes[0].get_ylabel()


def test_names_of_a_run_stay_text(make, tmp_path: Path) -> None:
    data = make.build(make.sweep())
    data["series"][0]["title"] = r"$\frac{1}{0}$ \u202e"
    assert len(write_paper_figures(data, RunPaths(tmp_path))) == 8  # no formula is parsed, nothing is refused
    assert drawn(data, "figure-2").axes[0].get_legend().get_texts()[0].get_text() == data["series"][0]["title"]


def test_without_matplotlib_a_sentence_says_what_to_install(make, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(JumpaheadError, match=r"need matplotlib: `pip install 'jumpahead\[figures\]'`"):
        write_paper_figures(make.build(make.sweep()), RunPaths(tmp_path))
    assert not (tmp_path / "figures").exists()
