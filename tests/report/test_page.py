"""The page in a browser: what is drawn, what it answers, and that it neither calls anybody nor complains."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jumpahead.formatting import typeset_count, typeset_number, typeset_percent
from jumpahead.frontier import Frontier
from tests import efficiency_json

Json = dict[str, Any]
HOSTILE = (
    "</script><img src=x onerror='window.hacked=1'><b>bold</b><a href='javascript:1'>x</a>&lt;i&gt;<!--\u202e\u2028"
)
PLOTS = ("delta_lm_loss", "fvu", "above_10pct", "above_1pct")
ARGUMENTS = {
    "delta_lm_loss": "delta_loss",
    "l0": "l0",
    "fvu": "fvu",
    "above_10pct": "above_10",
    "above_1pct": "above_1",
}


def nothing_heard(page: Any) -> None:
    """One request, for the file itself, and not a word on the console."""
    assert page.heard["console"] == []
    assert [url.partition(":")[0] for url in page.heard["requests"]] == ["file"]


def until(page: Any, script: str) -> None:
    """Waits for a condition. (Playwright's own waiting evaluates strings, which the page's policy refuses.)"""
    for _ in range(100):
        if page.evaluate(script):
            return
        page.wait_for_timeout(50)
    raise AssertionError(script)


def traces(page: Any, plot: str) -> list[Json]:
    """What plotly was given, reduced to plain values."""
    return page.evaluate(
        "kind => document.querySelector(`[data-plot=${kind}]`).data.map(t => ({"
        "name: t.name, x: [...t.x], y: [...t.y], mode: t.mode, dash: t.line.dash, color: t.line.color,"
        "symbol: t.marker && t.marker.symbol, size: t.marker && t.marker.size, visible: t.visible}))",
        plot,
    )


def of_text(page: Any) -> list[str]:
    """What is said of tokens and text: seen, read out, or shown when pointed at; the study and the manifest apart."""
    return page.evaluate(
        "() => { const said = [...document.querySelectorAll('main *:not(pre)')].flatMap(n => [n.title, n.ariaLabel,"
        "...[...n.childNodes].filter(c => c.nodeType === 3 && !n.closest('pre, script, style')).map(c => c.data)]);"
        "const hovers = [...document.querySelectorAll('[data-plot]')].flatMap(p => (p.data || []).flatMap(t =>"
        "[t.hovertext].flat())); return [...said, ...hovers].filter(t => /token|\\btext|document/i.test(t || '')); }"
    )


def axis_types(page: Any, plot: str) -> list[str]:
    script = "k => ['xaxis', 'yaxis'].map(a => document.querySelector(`[data-plot=${k}]`)._fullLayout[a].type)"
    return page.evaluate(script, plot)


def ask(page: Any, target: str, value: str) -> str:
    """Types a question and returns the answer's text."""
    page.select_option("select[name=target]", target)
    page.fill("input[name=value]", value)
    return page.locator(".answer").first.inner_text()


@pytest.fixture(scope="module")
def invented(make: Any) -> Json:
    """Three series of four SAEs; gated's first SAE is better than its second, so its curve meets some losses twice."""
    evaluations = make.sweep()
    evaluations[4]["metrics"]["delta_lm_loss"] = 0.45
    return make.build(evaluations)


@pytest.fixture(scope="module")
def page(visit: Callable[..., Any], invented: Json) -> Any:
    return visit(invented)


# ---------------------------------------------------------------------------------------------- figures


def test_one_curve_per_series_and_nothing_heard(page: Any) -> None:
    for plot in PLOTS:
        drawn = traces(page, plot)
        assert [one["name"] for one in drawn] == ["JumpReLU", "Gated", "TopK"]
        assert [one["dash"] for one in drawn] == ["solid", "dash", "dot"]
        assert [one["color"] for one in drawn] == ["#0072b2", "#d55e00", "#009e73"]
        assert page.locator(f"[data-plot={plot}] .scatterlayer .trace").count() == 3
        assert page.locator(f"[data-plot={plot}] .scatterlayer .point").count() == 12
        assert page.locator(f"[data-plot={plot}] .scatterlayer .yerror").count() == 12
    assert [axis_types(page, plot) for plot in PLOTS] == [
        ["log", "log"],
        ["log", "log"],
        ["log", "linear"],
        ["log", "linear"],
    ]
    nothing_heard(page)


def test_points_are_the_saes(page: Any, invented: Json) -> None:
    points = [p for p in invented["panels"][0]["points"] if p["series"] == "jumprelu"]
    jumprelu = traces(page, "delta_lm_loss")[0]
    assert jumprelu["x"] == [p["metrics"]["l0"] for p in points]
    assert jumprelu["y"] == [p["metrics"]["delta_lm_loss"] for p in points]
    shares = traces(page, "above_10pct")[0]
    assert shares["x"] == jumprelu["y"]
    percent = [100 * p["metrics"]["above_10pct"] / 4096 for p in points]
    assert shares["y"] == pytest.approx([value**0.5 for value in percent])
    page.select_option("select.share-scale", "linear")
    assert traces(page, "above_10pct")[0]["y"] == pytest.approx(percent)
    page.select_option("select.share-scale", "root")


def test_filled_marks_are_pareto_optimal_on_the_axes_of_their_figure(page: Any, invented: Json) -> None:
    seen = set()
    for plot in PLOTS:
        for trace, name in zip(traces(page, plot), ("jumprelu", "gated", "topk"), strict=True):
            own = [p for p in invented["panels"][0]["points"] if p["series"] == name]
            own.sort(key=lambda p: p["metrics"]["l0"])
            filled = [not symbol.endswith("-open") for symbol in trace["symbol"]]
            assert filled == [p["pareto_in"][plot] for p in own]
            seen |= {(plot, is_filled) for is_filled in filled}
    assert len(seen) >= 7  # filled and open marks in at least three of the four figures


def test_shares_have_no_negative_axis_and_can_be_read_near_zero(page: Any) -> None:
    axis = "document.querySelector(`[data-plot=${k}]`)._fullLayout.yaxis"
    read = f"k => [{axis}.tickvals, {axis}.ticktext]"
    for scale in ("linear", "root"):
        page.select_option("select.share-scale", scale)
        places, texts = page.evaluate(read, "above_10pct")
        assert places[0] == 0
        assert len(places) == len(texts) >= 4
        assert texts[0] == "0\u00a0%"
        assert not [text for text in texts if "-" in text or "−" in text]
    assert [float(text.split("\u00a0")[0]) ** 0.5 for text in texts] == pytest.approx(places)


def test_the_second_figure_shows_loss_recovered(page: Any, invented: Json) -> None:
    points = [p for p in invented["panels"][0]["points"] if p["series"] == "jumprelu"]
    page.select_option("select.second", "loss_recovered_zero")
    assert traces(page, "fvu")[0]["y"] == [p["metrics"]["loss_recovered_zero"] for p in points]
    assert "against zero ablation" in page.locator("[data-plot=fvu] .ytitle").text_content()
    page.select_option("select.second", "fvu")
    assert traces(page, "fvu")[0]["y"] == [p["metrics"]["fvu"] for p in points]


def test_hovering_a_point_says_little_and_choosing_it_all(page: Any) -> None:
    point = page.locator("[data-plot=delta_lm_loss] .scatterlayer .trace").first.locator(".point").nth(2)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("[data-plot=delta_lm_loss] .hoverlayer .hovertext")
    text = page.locator("[data-plot=delta_lm_loss] .hoverlayer").text_content()
    assert text.startswith("JumpReLU, l0 = 16L0 16.3delta loss 0.231 (")
    size = page.locator("[data-plot=delta_lm_loss] .hoverlayer .hovertext path").bounding_box()
    plot = page.locator("[data-plot=delta_lm_loss]").bounding_box()
    assert size["width"] * size["height"] < plot["width"] * plot["height"] / 8
    page.mouse.move(0, 0)
    page.locator(".saes .pick", has_text="JumpReLU, l0 = 16").click()
    chosen = page.locator(".chosen-sae").inner_text()
    for part in (
        "delta LM loss 0.231 nats per token (", "L0 16.3 features per token",
        "9 of 4,096 features above 10 %, 0.22\u00a0%", "seed 0, stream seed 0; trained with λ = 0.000188",
        "saes/layers.1.residual/4096/jumprelu/l0-16_seed-0",
    ):  # fmt: skip
        assert part in chosen
    page.locator(".saes .pick", has_text="JumpReLU, l0 = 16").click()
    assert not page.locator(".chosen-sae").is_visible()


def test_the_legend_hides_a_series_everywhere(page: Any) -> None:
    button = page.locator(".legend button", has_text="Gated").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator(".legend button[aria-pressed=false]").count() == 4  # one in each of the panel's legends
    assert [[one["visible"] for one in traces(page, plot)] for plot in PLOTS] == [[True, False, True]] * 4
    button.click()
    assert [one["visible"] for one in traces(page, "fvu")] == [True] * 3


def test_choosing_an_sae_marks_it_everywhere(page: Any) -> None:
    page.locator(".pick", has_text="TopK, k = 8").last.click()
    assert page.locator("tr.chosen").count() == 1
    assert "topk/k-8_seed-0" in page.locator("tr.chosen").text_content()
    for plot in PLOTS:
        sizes = [one["size"] for one in traces(page, plot)]
        assert [size.count(15) for size in sizes] == [0, 0, 1]
    assert [one["name"] for one in traces(page, "histogram")] == ["TopK"]
    page.locator(".pick", has_text="TopK, k = 8").last.click()
    assert page.locator("tr.chosen").count() == 0


def test_the_histogram_shows_what_is_selected(page: Any, invented: Json) -> None:
    page.select_option("select.which", label="each series, the SAE nearest to L0 = 16")
    assert [one["name"] for one in traces(page, "histogram")] == ["JumpReLU", "Gated", "TopK"]
    page.select_option("select.which", label="JumpReLU, l0 = 8")
    (drawn,) = traces(page, "histogram")
    point = next(p for p in invented["panels"][0]["points"] if p["path"].endswith("jumprelu/l0-8_seed-0"))
    assert drawn["x"] == pytest.approx([100 * 10**edge for edge in point["histogram"]["log10_edges"]])
    assert drawn["y"][:-1] == [max(n, 0.5) for n in point["histogram"]["counts"]]


def test_any_two_histograms_lie_over_each_other(page: Any) -> None:
    page.select_option("select.which", label="JumpReLU, l0 = 8")
    page.select_option("select.over", label="JumpReLU, l0 = 32")
    below, above = traces(page, "histogram")
    assert [below["name"], above["name"]] == ["JumpReLU, l0 = 8", "JumpReLU, l0 = 32"]
    assert below["color"] != above["color"]
    assert below["dash"] != above["dash"]
    assert page.locator("[data-plot=histogram] .legendtext").all_text_contents() == [below["name"], above["name"]]
    page.select_option("select.over", "")
    assert len(traces(page, "histogram")) == 1


def test_dark_screens_get_their_own_colours(visit: Any, make: Any) -> None:
    data = make.build(make.sweep())
    data["series"][2]["architecture"] = "anthropic"  # black
    page = visit(data)
    colour = "document.querySelector('[data-plot=delta_lm_loss]').data[2].line.color"
    page.emulate_media(color_scheme="dark")
    until(page, f"{colour} === '#666666'")
    page.emulate_media(color_scheme="light")
    until(page, f"{colour} === '#000000'")
    nothing_heard(page)
    page.close()


# ---------------------------------------------------------------------------------------------- answers


def same(found: Any, expected: Any) -> None:
    for part, rel in {"value": 1e-12, "low": 1e-4, "high": 1e-4}.items():  # weights of seeds are there with 16 bits
        assert found[part] == (None if expected[part] is None else pytest.approx(expected[part], rel=rel, abs=1e-7))


def assert_agrees(page: Any, data: Json, key: str, value: float) -> int:
    """The page's answer against `Frontier.ask`; returns how many crossings there were."""
    answer = Frontier(data).ask(**{ARGUMENTS[key]: value}).to_json()["panels"][0]["series"]
    found = page.evaluate("([key, value]) => jumpahead.answer(0, key, value)", [key, value])
    names = [one["name"] for one in data["series"]]
    assert [names[one["series"]] for one in found] == [one["series"] for one in answer]
    for mine, theirs in zip(found, answer, strict=True):
        assert mine["reach"] == theirs["reach"]
        assert mine["measured"] == pytest.approx(theirs["measured"])
        assert len(mine["crossings"]) == len(theirs["crossings"])
        pairs = list(zip(mine["crossings"], theirs["crossings"], strict=True))
        for a, b in [*pairs, *([(mine["end"], theirs["end"])] if theirs["end"] else [])]:
            assert a["metrics"].keys() == b["metrics"].keys() & {one["key"] for one in data["metrics"]}
            for metric in a["metrics"]:
                same(a["metrics"][metric], b["metrics"][metric])
            assert a["setting"] == b["setting"]
            assert a["nearest"]["path"] == b["nearest"]["path"]
            assert (a["lambda"] is None) == (not b["sparsity_coefficient"])
            assert a["lambda"] is None or a["lambda"] == pytest.approx(b["sparsity_coefficient"]["lambda"])
    return sum(len(one["crossings"]) for one in found)


def test_answers_are_those_of_frontier_ask(page: Any, invented: Json) -> None:
    questions = [("delta_lm_loss", v) for v in (0.05, 0.2, 0.35, 0.47, 0.69, 2.0)] + [
        ("l0", v) for v in (1, 5.5, 8.16, 20)
    ]
    questions += [("fvu", 0.25), ("fvu", 0.4), ("above_10pct", 0), ("above_10pct", 3.3), ("above_1pct", 77)]
    crossings = [assert_agrees(page, invented, key, value) for key, value in questions]
    assert max(crossings) == 4  # one curve meets a loss twice
    assert min(crossings) == 0  # and some questions lie outside all


def test_answers_agree_on_linear_scales_without_intervals_and_from_single_saes(visit: Any, make: Any) -> None:
    """And a loss that is not above zero makes its axis linear."""
    evaluations = [make.evaluation(0, l0, error=0.2) for l0 in (4.0, 8.0)]  # within 2 SE of zero: linear
    evaluations += [make.evaluation(0, 16.0, delta_lm_loss=-0.01)]
    evaluations += [make.evaluation(1, 8.0, fvu=None)] + [make.evaluation(2, l0) for l0 in (4.0, 32.0)]
    for one in evaluations[-2:]:
        one["bootstrap"] = {}
    data = make.build(evaluations)
    page = visit(data)
    for key, value in [("delta_lm_loss", 0.3), ("delta_lm_loss", 0.517), ("l0", 10), ("above_10pct", 4), ("l0", 100)]:
        assert_agrees(page, data, key, value)
    assert axis_types(page, "delta_lm_loss") == ["log", "linear"]
    assert axis_types(page, "above_10pct") == ["linear", "linear"]
    assert traces(page, "delta_lm_loss")[0]["y"][-1] == -0.01
    nothing_heard(page)
    page.close()


def test_answers_agree_where_settings_have_several_seeds(visit: Any, make: Any) -> None:
    data = make.build([make.evaluation(s, l0, seed) for s in (0, 2) for l0 in (4.0, 8.0, 16.0) for seed in (0, 1, 2)])
    page = visit(data)
    for key, value in [("delta_lm_loss", 0.3), ("l0", 10), ("above_1pct", 40)]:
        assert_agrees(page, data, key, value)
    assert [one["mode"] for one in traces(page, "delta_lm_loss")] == [
        "lines",
        "markers",
    ] * 2  # the curve is the mean of seeds
    assert len(traces(page, "delta_lm_loss")[0]["x"]) == 3
    assert "do not cover" not in page.locator(".answer").inner_text()
    nothing_heard(page)
    page.close()


def test_without_a_language_model_everything_is_by_fvu(visit: Any, make: Any) -> None:
    without = dict.fromkeys(("delta_lm_loss", "ce_clean", "ce_zero", "ce_mean")) | {"kl": float("nan")}
    evaluations = [
        make.evaluation(s, l0, **without, fvu=(0.4 + 0.1 * s) * (l0 / 4) ** -0.4)
        for s in range(3)
        for l0 in (4.0, 8.0, 16.0, 32.0)
    ]
    for one in evaluations:
        one["standard_errors"] = {}
    data = make.build(evaluations, lm={"name": None})
    page = visit(data)
    assert page.locator("[data-plot=delta_lm_loss]").count() == 0
    for plot in ("fvu", "above_10pct", "above_1pct"):
        assert [len(one["x"]) for one in traces(page, plot)] == [4, 4, 4]
    points = [p for p in data["panels"][0]["points"] if p["series"] == "jumprelu"]
    assert traces(page, "fvu")[0]["y"] == traces(page, "above_10pct")[0]["x"] == [p["metrics"]["fvu"] for p in points]
    for key, value in [("fvu", 0.25), ("fvu", 0.45), ("l0", 10), ("above_10pct", 4), ("l0", 100)]:
        assert_agrees(page, data, key, value)
    targets = page.locator("select[name=target] option").evaluate_all("all => all.map((one) => one.value)")
    assert targets == ["fvu", "l0", "above_10pct", "above_1pct"]
    text = ask(page, "l0", "10")
    assert "JumpReLU has the lowest FVU: 0.279. Gated has 0.0699" in text
    assert "JumpReLU needs the fewest active features" in ask(page, "fvu", "0.3")
    assert "nearest end: L0 32.6, FVU 0.174, JumpReLU, l0 = 32" in ask(page, "l0", "200")
    shown = page.locator("main").inner_text()
    assert "FVU is lowest for JumpReLU" in shown
    assert "delta" not in shown.lower()
    assert of_text(page) == []
    assert "Share of features active on more than 10 % of rows, against FVU" in page.content()
    hover = page.evaluate("[...document.querySelector('[data-plot=fvu]').data[0].hovertext][0]")
    assert "FVU 0.4" in hover
    assert "Without a language model no loss was measured" in shown
    assert "delta" not in hover
    nothing_heard(page)
    page.close()


def test_the_ask_box_answers_in_words(page: Any) -> None:
    text = ask(page, "delta_lm_loss", "0.3")
    lines = page.locator(".answer tbody tr")
    assert lines.count() == 3
    assert lines.nth(0).locator("td").first.inner_text().strip() == "JumpReLU"
    assert "l0 = 11.5" in lines.nth(0).inner_text()
    assert "JumpReLU needs the fewest active features: 11.8 per token." in text
    assert "below the measured range" in ask(page, "delta_lm_loss", "0.01")
    assert "Gated is there 2 times" in ask(page, "delta_lm_loss", "0.47")
    assert page.input_value("input[name=value]") == "0.47"
    shapes = "document.querySelector('[data-plot=delta_lm_loss]').layout.shapes.map(s => [s.y0, s.y1])"
    assert page.evaluate(shapes) == [[0.47, 0.47]]


def test_the_slider_moves_a_line_through_all_figures(page: Any, invented: Json) -> None:
    page.select_option("select[name=target]", "delta_lm_loss")
    losses = [p["metrics"]["delta_lm_loss"] for p in invented["panels"][0]["points"]]
    slide = page.locator("input.slide")
    lines = "k => (document.querySelector(`[data-plot=${k}]`).layout.shapes || []).map(s => [s.x0, s.x1, s.y0, s.y1])"

    def to(step: int) -> float:
        slide.evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", step)
        page.wait_for_timeout(100)
        return float(page.input_value("input[name=value]"))

    assert to(0) == min(losses)
    assert to(1000) == max(losses)
    value = to(700)
    assert min(losses) < value < max(losses)
    assert slide.get_attribute("aria-valuetext") == f"delta LM loss {value:g}"
    assert page.evaluate(lines, "delta_lm_loss") == [[0, 1, value, value]]
    assert page.evaluate(lines, "above_10pct") == page.evaluate(lines, "above_1pct") == [[value, value, 0, 1]]
    answer = Frontier(invented).ask(delta_loss=value).panels[0].series
    expected = [crossing.metrics["l0"].value for series in answer for crossing in series.crossings]
    assert [x0 for x0, *_ in page.evaluate(lines, "fvu")] == pytest.approx(expected)
    assert answer[0].crossings[0].nearest["path"] in page.locator(".answer").inner_text()
    page.fill("input[name=value]", str(min(losses)))
    assert slide.input_value() == "0"
    page.select_option("select[name=target]", "l0")
    value = to(500)
    assert page.evaluate(lines, "delta_lm_loss") == page.evaluate(lines, "fvu") == [[value, value, 0, 1]]
    assert len(page.evaluate(lines, "above_10pct")) == 3  # where each series has it
    slide.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(100)
    assert float(page.input_value("input[name=value]")) >= value
    page.select_option("select[name=target]", "delta_lm_loss")


def test_an_sae_that_is_no_better_than_the_mean_is_not_recommended(visit: Any, make: Any) -> None:
    """As `jumpahead ask` does where SAEs are compared by FVU."""
    without = dict.fromkeys(("delta_lm_loss", "ce_clean", "ce_zero", "ce_mean"))
    evaluations = [make.evaluation(s, l0, **without, fvu=[1.2, 0.9][s] - l0 / 100) for s in (0, 1) for l0 in (4.0, 8.0)]
    data = make.build(evaluations, lm={"name": None})
    page = visit(data)
    text, best = ask(page, "l0", "6"), Frontier(data).ask(l0=6).panels[0].recommendation
    assert best.series == "gated"
    assert "JumpReLU has FVU 1.14, no better than the mean activation" in best.reason
    assert "Only Gated qualifies. JumpReLU is left out: FVU 1.14, no better than the mean activation." in text
    page.close()
    data = make.build(evaluations[:2], lm={"name": None})
    page = visit(data)
    assert "No series qualifies. JumpReLU is left out: FVU 1.14" in ask(page, "l0", "6")
    assert Frontier(data).ask(l0=6).panels[0].recommendation.series is None
    nothing_heard(page)
    page.close()


def test_a_number_of_features_may_be_a_share(page: Any) -> None:
    count_text = ask(page, "above_10pct", "4.096")
    assert ask(page, "above_10pct", "0.1%") == count_text
    assert page.locator("input[name=value]").get_attribute("aria-invalid") == "false"
    for wrong in ("", "many", "0x10", "1e", "--1", "Infinity"):
        assert "Type a number" in ask(page, "above_10pct", wrong)
        assert page.locator("input[name=value]").get_attribute("aria-invalid") == "true"
    assert "Type a number" in ask(page, "l0", "5%")


def test_numbers_in_the_browser_are_written_as_in_the_tables(page: Any) -> None:
    values = [0, 0.21349, 16.049, 9.996, 999.4, 999.6, 8192, 0.000123, 0.0000421, -0.0105, 0.00061, 0.0996, 5.04, 129.4]
    for name, function in {
        "typesetNumber": typeset_number,
        "typesetPercent": typeset_percent,
        "typesetCount": typeset_count,
    }.items():
        shown = page.evaluate(f"values => values.map(jumpahead.{name})", values)
        assert shown == [function(value) for value in values]


# ---------------------------------------------------------------------------------------------- tables and the rest


def test_tables_sort_by_any_column(page: Any, make: Any) -> None:
    column = page.locator(".saes thead th", has_text="delta loss")
    rows = page.locator(".saes tbody tr")
    index = page.evaluate("th => th.cellIndex", column.element_handle())

    def values() -> list[float]:
        return [
            float(rows.nth(i).locator("th, td").nth(index).get_attribute("data-value")) for i in range(rows.count())
        ]

    column.locator(".sort").click()
    assert values() == sorted(values())
    assert column.get_attribute("aria-sort") == "ascending"
    column.locator(".sort").click()
    assert values() == sorted(values(), reverse=True)
    assert column.get_attribute("aria-sort") == "descending"
    page.locator(".saes thead th .sort").first.click()
    assert rows.first.inner_text().strip().startswith("JumpReLU, l0 = 4")


def test_the_table_of_all_saes_shows_the_rest_when_asked(page: Any) -> None:
    heads, table = page.locator(".saes thead th:visible"), page.locator(".saes .scroll")
    assert heads.count() < 13
    assert page.evaluate("s => s.scrollWidth <= s.clientWidth", table.element_handle())
    page.locator(".all-columns").check()
    assert heads.count() == page.locator(".saes thead th").count() > 20
    page.locator(".all-columns").uncheck()


def test_the_csv_of_the_page_is_that_of_the_frontier(page: Any, invented: Json) -> None:
    mine = list(csv.DictReader(page.evaluate("jumpahead.csv(0)").splitlines()))
    theirs = list(csv.DictReader(Frontier(invented).to_csv().splitlines()))
    assert list(mine[0]) == list(theirs[0])
    numbers = [key for key in theirs[0] if key not in ("site", "series", "setting", "pareto", "path")]
    for one, other in zip(mine, theirs, strict=True):
        assert [one[key] for key in ("series", "pareto", "path")] == [
            other[key] for key in ("series", "pareto", "path")
        ]
        for key in numbers:
            assert one[key] == other[key] or float(one[key]) == pytest.approx(float(other[key])), key
    with page.expect_download() as download:
        page.locator("button.csv").click()
    assert download.value.suggested_filename == "invented-layers.1.residual-4096.csv"
    page.heard["requests"] = [url for url in page.heard["requests"] if not url.startswith("blob:")]
    nothing_heard(page)


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(page: Any) -> None:
    nameless = """[...document.querySelectorAll('main button, main input, main select')].filter((one) =>
        !(one.ariaLabel || one.textContent.trim() || (one.labels && one.labels.length))).map((one) => one.outerHTML)"""
    assert page.evaluate(nameless) == []
    reachable = "document.querySelectorAll('main button, main input, main select, .scroll')"
    assert page.evaluate(f"[...{reachable}].filter((one) => one.tabIndex < 0).length") == 0
    assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(one => one.ariaLabel)")
    page.locator("select.share-scale").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('select.share-scale').value === 'linear'")
    page.select_option("select.share-scale", "root")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_runs_out_of_the_page(visit: Callable[..., Any], make: Any, width: int, scheme: str) -> None:
    page = visit(make.build(make.sweep()), color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    until(page, f"document.documentElement.scrollWidth === {width}")
    outside = """width => [...document.querySelectorAll('main *:not(.scroll *):not(.plot *):not(svg *)')]
        .filter((one) => {
            const box = one.getBoundingClientRect();
            return box.width && box.height && (box.right > width + 1 || box.left < -1);
        }).map((one) => one.outerHTML.slice(0, 90))"""
    assert page.evaluate(outside, width) == []
    nothing_heard(page)
    page.close()


def test_contents_lead_to_every_part(page: Any) -> None:
    links = page.locator("nav a")
    assert links.count() == 8
    for i in range(links.count()):
        links.nth(i).click()
        id = links.nth(i).get_attribute("href").removeprefix("#")
        top = page.evaluate("id => document.getElementById(id).getBoundingClientRect().top", id)
        assert -5 <= top < 900, id
    assert [url for url in page.heard["requests"] if not url.startswith("file:")] == []


def test_training_curves_are_drawn(visit: Callable[..., Any], make: Any) -> None:
    lines = {"step": [1, 2, 4], "l0": [300, 40, 8.5], "fvu": [0.9, 0.5, 0.3]}
    theta = {
        "step": [2, 4], "theta_05": [0.1, 0.11], "theta_25": [0.2, 0.21], "theta_50": [0.3, 0.31],
        "theta_75": [0.4, 0.41], "theta_95": [0.5, 0.51],
    }  # fmt: skip
    record = {"site": "layers.1.residual", "width": 4096, "sae_seed": 0, "stream_seed": 0, "steps": 9, "lines": lines}
    training = [
        {**record, "series": "jumprelu", "label": "l0 = 8", "path": "saes/layers.1.residual/4096/jumprelu/l0-8_seed-0",
         "thresholds": theta},
        {**record, "series": "topk", "label": HOSTILE, "path": "elsewhere", "thresholds": {}},
    ]  # fmt: skip
    page = visit(make.build(make.sweep(), training=training))
    page.locator("#training").scroll_into_view_if_needed()
    page.locator("[data-training=thresholds] .main-svg").first.wait_for()
    read = "k => document.querySelector(`[data-training=${k}]`).data.map(t => [t.name, [...t.x], [...t.y]])"
    l0, fvu = page.evaluate(read, "l0"), page.evaluate(read, "fvu")
    assert l0[0] == ["JumpReLU, l0 = 8", [1, 2, 4], [300, 40, 8.5]]
    assert len(l0) == len(fvu) == 2
    assert fvu[1][2] == [0.9, 0.5, 0.3]
    assert page.evaluate("document.querySelector('[data-training=l0]').layout.shapes.map(s => s.y0)") == [8]
    assert page.evaluate("document.querySelector('[data-training=l0]').layout.xaxis.range") == [0, 9]
    assert [len(trace[1]) for trace in page.evaluate(read, "thresholds")] == [2]  # of several, the medians
    page.select_option("#training-which", label="JumpReLU, l0 = 8")
    assert [trace[2] for trace in page.evaluate(read, "thresholds")] == [
        [0.1, 0.11], [0.5, 0.51], [0.2, 0.21], [0.4, 0.41], [0.3, 0.31],
    ]  # fmt: skip
    page.select_option("#training-which", "1")
    assert page.locator(".no-thresholds").is_visible()
    assert page.evaluate("window.hacked") is None
    nothing_heard(page)
    page.close()


def test_an_unfinished_run_has_a_page(visit: Callable[..., Any], make: Any) -> None:
    page = visit(make.build([], progress={"saes": 18, "trained": 4, "evaluated": 0}))
    assert "of 18 SAEs, 4 are trained and 0 evaluated" in page.locator("header").inner_text()
    nothing_heard(page)
    page.close()


def test_the_page_answers_before_figures_are_unpacked(visit: Callable[..., Any], make: Any) -> None:
    """On a quiet machine: 0.2 s to the answers and tables, 0.8 s to the figures. Here is room for a busy one."""
    page = visit(make.build(make.sweep()))
    assert page.evaluate("performance.getEntriesByName('answered')[0].startTime") < 3000
    page.close()


def test_hostile_text_stays_text_in_the_browser(visit: Callable[..., Any], make: Any) -> None:
    evaluations = make.sweep()
    evaluations[0] |= {"path": HOSTILE, "notes": [HOSTILE]}
    data = make.build(evaluations, name=HOSTILE, study_text=HOSTILE, manifest={HOSTILE: HOSTILE})
    data["series"][0] |= {"title": HOSTILE, "symbol": HOSTILE}
    page = visit(data)
    shown = HOSTILE.replace("\u202e", "⟨U+202E⟩").replace("\u2028", "⟨U+2028⟩")
    assert page.locator("h1").inner_text() == shown
    assert shown in page.locator(".notes").inner_text()
    assert shown in page.locator(".answer").inner_text()
    point = page.locator("[data-plot=delta_lm_loss] .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("[data-plot=delta_lm_loss] .hoverlayer .hovertext")
    assert shown in page.locator("[data-plot=delta_lm_loss] .hoverlayer").text_content()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, .findings b b, .notes b, .hoverlayer a").count() == 0
    nothing_heard(page)
    page.close()


def test_without_javascript_the_tables_are_there(visit: Callable[..., Any], invented: Json) -> None:
    page = visit(invented, java_script_enabled=False)
    assert page.locator(".saes tbody tr").count() == 12
    assert not page.locator(".ask").is_visible()
    page.close()


def test_what_a_step_costs_is_drawn_as_bars(visit: Callable[..., Any], invented: Json) -> None:
    page = visit(invented, efficiency_json.example())
    page.locator("#efficiency").scroll_into_view_if_needed()
    page.locator("[data-efficiency=share] .main-svg").first.wait_for()
    read = (
        "k => document.querySelector(`[data-efficiency=${k}]`).data.map(t => ({name: t.name, x: [...t.x], "
        "color: t.marker.color}))"
    )
    bars = page.evaluate(read, "ms")
    assert [bar["name"] for bar in bars][:3] == ["encoder product", "elementwise and selection", "decode"]
    assert bars[0]["x"] == [12, 13, 12, 13, 13]
    assert bars[-1]["x"] == [0.5, 0, 0.5, 0, 0]  # `fold`, the engine's own
    assert bars[0]["color"] == "#0072b2"
    assert [sum(shares) for shares in zip(*(bar["x"] for bar in page.evaluate(read, "share")), strict=True)] == (
        pytest.approx([100] * 5)
    )
    labels = page.locator("[data-efficiency=ms] .ytick").all_text_contents()
    assert [label.strip() for label in labels] == [
        "JumpReLU  jumpahead", "dense recipe", "TopK  jumpahead", "dense recipe", "dense, approximate top-k",
    ]  # fmt: skip
    assert page.locator("[data-efficiency=ms] .annotation-text").all_text_contents()[:2] == ["24.0", "200"]
    page.select_option("#efficiency-shape", label="d = 256, width 131,072, batch 2,048, L0 = 32")
    until(page, "document.querySelector('[data-efficiency=ms]').data[0].x[1] === 0")
    texts = page.locator("[data-efficiency=share] .annotation-text").all_text_contents()
    assert texts == ["skipped: would need 21 GB of memory"] * 3
    page.emulate_media(color_scheme="dark")
    until(page, "document.querySelector('[data-efficiency=ms]').data[5].marker.color !== '#8c3b00'")
    page.set_viewport_size({"width": 390, "height": 800})
    until(page, "document.documentElement.scrollWidth === 390")
    nothing_heard(page)
    page.close()


def test_a_phone_scrolls_tables_not_the_page(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    until(page, "document.documentElement.scrollWidth === 390")
    ask(page, "delta_lm_loss", "0.3")
    answer = page.locator(".answer .scroll").first
    assert page.evaluate("s => s.scrollWidth <= s.clientWidth", answer.element_handle())  # all of it is in sight
    labels = page.evaluate(
        "[...document.querySelectorAll('.answer td')].map(td => getComputedStyle(td, '::before').content)"
    )
    assert {'"train with"', '"nearest SAE"', '"never fired"'} <= set(labels)
    page.set_viewport_size({"width": 1200, "height": 900})


@pytest.mark.parametrize("figure", ["figure-5", "efficiency"])
def test_the_tool_takes_a_picture_of_a_figure(
    browser: Any, invented: Json, save: Any, tmp_path: Path, figure: str
) -> None:
    tool, picture = Path(__file__).parents[2] / "tools" / "screenshot.py", tmp_path / "figures" / "five.png"
    run = str(save(invented, efficiency_json.example()))
    command = [sys.executable, str(tool), run, str(picture), "--figure", figure, "--scale", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{picture}\n"), done.stderr
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert 1000 < width <= 1200
    assert 350 < height < 700


def test_series_of_several_widths_stand_in_one_panel(visit: Callable[..., Any], make: Any) -> None:
    """Answers agree with `Frontier.ask`, whose shares are of a series' own width; a share is no target here."""
    saes = make.sweep()
    for one in saes[:4]:
        one["sae"]["width"] = make.width // 2
    data = make.build(saes, by_width=False)
    page = visit(data)
    assert page.inner_text("h2 >> nth=0").startswith("layers.1.residual, 2,048 and 4,096 features")
    assert "share of the features of an SAE that fire" in page.inner_text("[data-figure='figure-5']")
    for key, value in (("delta_lm_loss", 0.4), ("l0", 8.0), ("above_10pct", 4.0)):
        assert_agrees(page, data, key, value)
    assert "Type a number" in ask(page, "above_10pct", "0.1%")
    assert "Type a number" not in ask(page, "above_10pct", "4")
    nothing_heard(page)
