"""The SAEs of a frontier as rows, CSV and DataFrame, and a point as one line."""

from __future__ import annotations

import csv
import sys

import pytest

from jumpahead.errors import JumpaheadError
from jumpahead.frontier import Frontier, build_frontier
from tests.frontiers import evaluation, keywords


@pytest.fixture
def two() -> Frontier:
    saes = [evaluation(l0=4, loss=0.5, replicates={"l0": [3.5, 4.5, 4, 4]}), evaluation("topk", l0=8, loss=0.25)]
    saes[1]["path"] = "=cmd|' /C calc'!A0"
    saes[1]["metrics"]["fvu"] = None
    return Frontier(build_frontier(saes, **keywords("jumprelu", "topk")))


def test_a_row_has_every_number_of_an_sae(two: Frontier) -> None:
    first, second = two.table()
    assert list(first) == list(second)
    assert [first[key] for key in ("series", "setting", "value", "l0", "delta_lm_loss", "delta_lm_loss_se")] == [
        "jumprelu", "l0", 4, 4, 0.5, 1e-6,
    ]  # fmt: skip
    assert first["l0_low"] < 4 < first["l0_high"]
    assert (second["fvu"], second["fvu_low"]) == (None, None)
    assert "bootstrap" not in first


def test_csv_and_dataframe_hold_the_same_rows(two: Frontier, tmp_path) -> None:
    text = two.to_csv(tmp_path / "points.csv")
    assert (tmp_path / "points.csv").read_bytes().decode() == text
    first, second = csv.DictReader(text.splitlines())
    assert (float(first["l0"]), first["pareto"], second["fvu"]) == (4, "true", "")
    assert second["path"] == "'=cmd|' /C calc'!A0"  # no formula
    frame = pytest.importorskip("pandas") and two.to_pandas()
    assert list(frame["l0"]) == [4, 8]
    assert list(frame.columns) == list(two.table()[0])
    assert Frontier(build_frontier([], **keywords("jumprelu"))).to_csv() == ""


def test_without_pandas_a_sentence_says_what_to_use(two: Frontier, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(JumpaheadError, match=r"needs pandas: `pip install pandas`; or use table\(\) or to_csv\(\)"):
        two.to_pandas()


def test_a_point_is_printed_in_one_line(two: Frontier) -> None:
    text = repr(two.points()[0])
    assert text == (
        "FrontierPoint(jumprelu, l0 = 4: L0 4, delta LM loss 0.5, FVU 0.1; "
        "saes/layers.1.residual/1000/jumprelu/l0-4_seed-0-0)"
    )
    assert two.points()[0] == two.data["panels"][0]["points"][0]
