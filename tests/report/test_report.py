"""The page as a file: what its sentences and tables say, that it is one file, and that no run can break it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jumpahead.errors import ArtefactError
from jumpahead.formatting import (
    TOKENS,
    typeset_count,
    typeset_exact,
    typeset_interval,
    typeset_metric,
    typeset_number,
    typeset_percent,
)
from jumpahead.metrics import METRICS
from jumpahead.report import write_report
from jumpahead.report.assets import csp_hash_source, page_script
from jumpahead.report.colours import DARK_BACKGROUND, LIGHT_BACKGROUND, PALETTE, contrast_ratio, ensure_contrast
from jumpahead.report.findings import findings, typical_entry
from jumpahead.report.notes import group_notes, join_labels
from jumpahead.report.page import render_html
from jumpahead.report.panel import PageContext, Panel
from jumpahead.report.sanitize import sanitize
from jumpahead.report.series_style import ARCHITECTURE_MARKS, series_styles, sort_series
from tests import efficiency_json

HOSTILE = (
    "</script><script>window.hacked=1</script><!--<img src=x onerror=window.hacked=1>\u202eevil\u2028\u0007'\"&amp;"
)


class Text(HTMLParser):
    """The text of the body outside scripts, white space folded, and the attributes of all elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open not in ("script", "style"):
            self.parts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.parts))


def data_of(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.21349, "0.213"), (16.049, "16.0"), (9.996, "10.0"), (0.09996, "0.100"), (999.4, "999"), (999.6, "1,000"),
        (8192, "8,192"), (0.000123, "0.000123"), (0.0000421, "4.2e-5"), (0, "0"), (-0.0105, "−0.0105"),
        (None, "–"), (float("nan"), "–"), (float("inf"), "–"),
    ],
)  # fmt: skip
def test_typeset_number(value: float | None, text: str) -> None:
    assert typeset_number(value) == text


def test_formats_of_metrics() -> None:
    assert typeset_metric("share", 0.00061) == typeset_percent(0.00061) == "0.061\u00a0%"
    assert [typeset_percent(share) for share in (0.0996, 0.1234, 0)] == ["10.0\u00a0%", "12.3\u00a0%", "0\u00a0%"]
    assert [typeset_count(number) for number in (5.0, 5.04, 129.4, 8192)] == ["5", "5.0", "129", "8,192"]
    assert typeset_metric("count", 12.25) == "12.2"
    exact = [typeset_exact(number) for number in (16.0, 0.2, 0.00035, 2e-5, 4096)]
    assert exact == ["16", "0.2", "0.00035", "2e-5", "4,096"]
    assert typeset_interval("number", 4.0, 5.5) == "4.00 to 5.50"
    assert typeset_interval("number", None, 5.5) == ""


def test_sanitize_makes_misleading_characters_readable() -> None:
    found = sanitize({"a\u202eb": ["x\u2028y", "\ud800", "bell\u0007", "line\r\nnext\ttab", float("nan"), 1.5, True]})
    assert found == {"a⟨U+202E⟩b": ["x⟨U+2028⟩y", "⟨U+D800⟩", "bell⟨U+0007⟩", "line\nnext\ttab", None, 1.5, True]}
    json.dumps(found, allow_nan=False).encode()


# ---------------------------------------------------------------------------------------------- colours and marks


def test_every_colour_stands_out_from_both_backgrounds() -> None:
    assert contrast_ratio("#000000", "#ffffff") == pytest.approx(21)
    for colour in ("#0072b2", "#000000", "#ffffff", "#f0e442", "#d55e00"):
        assert contrast_ratio(ensure_contrast(colour, LIGHT_BACKGROUND), LIGHT_BACKGROUND) >= 3
        assert contrast_ratio(ensure_contrast(colour, DARK_BACKGROUND), DARK_BACKGROUND) >= 3
    assert ensure_contrast("#0072b2", LIGHT_BACKGROUND) == "#0072b2"  # what already stands out stays


def series_of(*architectures: str) -> list[dict[str, str]]:
    return [{"name": f"{i}", "title": f"Series {i}", "architecture": name} for i, name in enumerate(architectures)]


def test_listed_architectures_come_first_and_keep_their_marks() -> None:
    series = sort_series(series_of("mine", "topk", "jumprelu", "topk"))
    assert [one["architecture"] for one in series] == ["jumprelu", "topk", "topk", "mine"]
    assert [one["name"] for one in series] == ["2", "1", "3", "0"]
    found = series_styles(series_of(*ARCHITECTURE_MARKS))
    for style, marks in zip(found, ARCHITECTURE_MARKS.values(), strict=True):
        assert (style.paper, style.dash, style.symbol) == (
            ensure_contrast(marks.colour, LIGHT_BACKGROUND),
            marks.dash,
            marks.symbol,
        )


@pytest.mark.parametrize("others", [["mine"], ["mine", "yours", "jumprelu"], ["jumprelu"] * 4])
def test_other_series_get_marks_that_no_series_has(others: list[str]) -> None:
    found = series_styles(series_of("jumprelu", "gated", *others))
    assert len({one.paper for one in found}) == len(found)
    assert len({one.dash for one in found}) == len(found)
    assert len({one.symbol for one in found}) == len(found)
    assert (found[0].dash, found[1].dash) == ("solid", "dash")


def test_more_series_than_colours_have_colours_again() -> None:
    found = series_styles(series_of("jumprelu", *["mine"] * 20))
    assert {one.paper for one in found} == {ensure_contrast(colour, LIGHT_BACKGROUND) for colour in PALETTE}
    assert series_styles([]) == []


def test_a_new_architecture_is_on_the_page_without_a_second_file(make) -> None:
    evaluations = [make.evaluation(s, l0) for s in (0, 1) for l0 in (4.0, 8.0)]
    data = make.build(evaluations)
    data["series"][1] |= {"architecture": "registered-elsewhere"}
    first, second, _ = data_of(render_html(data))["series"]
    assert (first["symbol"], first["dash"]) == ("circle", "solid")
    assert second["symbol"] != "circle"
    assert second["dash"] != "solid"


# ---------------------------------------------------------------------------------------------- findings


Triple = tuple[float, float, float]


def row(series: str, limit: str | None = None, more: dict[str, Triple] | None = None, **metrics: Triple) -> dict:
    def estimate(value: Triple) -> dict:
        return dict(zip(("value", "low", "high"), value, strict=True))

    kept, differences = ({key: estimate(value) for key, value in each.items()} for each in (metrics, more or {}))
    return {"series": series, "limit": limit, "metrics": kept, "more": differences}


TITLES = {"j": "JumpReLU", "t": "TopK", "g": "Gated"}


def panel(matched_l0: list, matched_loss: list) -> Panel:
    seeds = {"sae_seed": 0, "stream_seed": 0}
    points = [
        {"series": "j", "metrics": {"l0": 4.0, "delta_lm_loss": 0.9}, "setting": {"kind": "l0", "value": 4}, **seeds},
        {"series": "t", "metrics": {"l0": 64.0, "delta_lm_loss": 0.03}, "setting": {"kind": "k", "value": 64}, **seeds},
    ]
    declared = {key: metric.declaration(TOKENS, 61_143) for key, metric in METRICS.items()}
    context = PageContext({name: i for i, name in enumerate(TITLES)}, TITLES, declared, "95 %", [], TOKENS)
    matched = {"l0": matched_l0, "delta_lm_loss": matched_loss}
    data = {"width": 8192, "points": points, "ce_clean": 1.84, "ce_zero": 7.1, "fidelity": "delta_lm_loss"}
    return Panel({**data, "matched": matched}, 1, context)


def test_findings_compare_series_by_paired_differences() -> None:
    """Intervals of JumpReLU and TopK overlap at L0 16, the difference excludes zero; at the loss it is the reverse."""
    l0 = [{"value": 16.0, "rows": [
        row("t", delta_lm_loss=(0.22, 0.21, 0.24), more={"delta_lm_loss": (0.01, 0.004, 0.017)}),
        row("j", delta_lm_loss=(0.21, 0.2, 0.22)),
        row("g", delta_lm_loss=(0.3, 0.29, 0.31), more={"delta_lm_loss": (0.09, 0.08, 0.1)}),
    ]}]  # fmt: skip
    loss = [{"value": 0.2, "rows": [
        row("j", l0=(17.0, 16.5, 17.5), above_10pct=(5.2, 3.0, 7.0), more={"above_10pct": (3.2, 1.1, 5.0)}),
        row("t", l0=(19.0, 18.5, 19.5), above_10pct=(2.0, 1.0, 2.5), more={"l0": (2.0, -0.3, 4.1)}),
        row("g", limit="below"),
    ]}]  # fmt: skip
    found = [f"{lead} {text}" for lead, text in findings(panel(l0, loss))]
    assert found == [
        "2 SAEs (JumpReLU and TopK): L0 4.00 to 64.0 features per token, delta LM loss 0.0300 to 0.900 nats per token. "
        "The loss of the LM on this text is 1.84 nats per token, 7.10 with this site set to zero.",
        "At L0 = 16, delta LM loss is lowest for JumpReLU: 0.210 (0.200 to 0.220) nats per token. TopK has 0.0100 "
        "(0.00400 to 0.0170) more and Gated has 0.0900 (0.0800 to 0.100) more.",
        "At delta LM loss = 0.2 nats per token, JumpReLU needs the fewest active features: 17.0 (16.5 to 17.5) per "
        "token. The difference to JumpReLU may be zero: TopK has 2.00 (−0.300 to 4.10) more. Outside the measured "
        "range of Gated.",
        "Features active on more than 10 % of tokens, at that delta LM loss, of 8,192: TopK 2, 0.024\u00a0% (1 to "
        "2.5); JumpReLU 5.2, 0.063\u00a0% (3 to 7). JumpReLU has 3.2 (1.1 to 5) more.",
    ]  # fmt: skip


def test_findings_name_a_loss_that_says_nothing_and_outliers() -> None:
    there = panel([], [])
    there = replace(there, json={**there.json, "ce_clean": 8.33, "ce_zero": 8.31, "fidelity": "fvu",
                                 "matched": {"l0": [], "fvu": []}})  # fmt: skip
    for point in there.json["points"]:
        point["metrics"] |= {"fvu": 0.02, "outlier_variance": 0.874, "fvu_ordinary": 0.31}
    leads = {finding.lead: finding.text for finding in findings(there)}
    assert leads["The loss does not depend on this site:"].startswith(
        "setting it to zero changes the loss by −0.0200 nats per token"
    )
    assert "87.4\u00a0% of the variance. Judge by FVU without outliers, 0.310 to 0.310" in leads["Outliers:"]
    assert "lowest" not in " ".join(leads.values())
    there.json["points"][0]["metrics"]["outlier_variance"] = 0.09
    there.json["points"][1]["metrics"]["outlier_variance"] = None
    assert "Outliers:" not in {finding.lead for finding in findings(there)}


def test_findings_of_one_series_claim_nothing_about_others() -> None:
    found = findings(panel([{"value": 16.0, "rows": [row("j", delta_lm_loss=(0.21, 0.2, 0.22))]}], []))
    assert len(found) == 1
    empty = panel([], [])
    empty = replace(empty, json={**empty.json, "points": []})
    assert findings(empty)[0].text == "No SAE of this panel has been measured yet."


def test_the_typical_entry_is_the_one_most_series_reach() -> None:
    def entry(l0: float, *limits: str | None) -> dict:
        return {"value": l0, "rows": [{"limit": limit} for limit in limits]}

    entries = [entry(4, None, "above"), entry(8, None, None), entry(16, None, None), entry(32, None, None)]
    assert typical_entry(entries) == entries[2]
    assert typical_entry([entry(4, None, "above")]) is None
    assert typical_entry([]) is None


# ---------------------------------------------------------------------------------------------- the page


def test_the_page_is_one_file_that_admits_nothing_from_outside(make) -> None:
    html = render_html(make.build(make.sweep()))
    tags = Text(html).tags
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    script_sources = policy.split("; ")[1]
    assert not re.search(r"unsafe|\*|https?:|'self'", script_sources)
    assert not [a for _, a in tags if any(key in a for key in ("src", "srcset", "onclick", "onload"))]
    ids = {a["id"] for _, a in tags if "id" in a}
    links = [a["href"] for _, a in tags if "href" in a]
    assert len(links) == 8
    assert all(link and link.startswith("#") and link[1:] in ids for link in links)
    assert not [t for t, _ in tags if t in ("link", "iframe", "object", "base", "img")]
    assert len(html) < 3_000_000
    assert re.findall(r"<script>(.*?)</script>", html, re.DOTALL) == [page_script()]
    assert csp_hash_source(page_script()) in script_sources


def test_the_tables_hold_every_metric_of_every_sae(make) -> None:
    data = make.build(make.sweep())
    text = Text(render_html(data)).text
    for declared in METRICS.values():
        assert declared.declaration(TOKENS, 61_143)["title"] in text
        assert declared.formula in text
    for point in data["panels"][0]["points"]:
        assert point["path"] in text
    tips = [attributes.get("title") or "" for _, attributes in Text(render_html(data)).tags]
    assert any(tip.startswith("Delta LM loss [nats per token] = Σ") and tip.endswith("lower is better") for tip in tips)
    assert "95\u00a0% interval: 0.6" in " ".join(tips)
    assert "recovered" in text
    assert "against zero ablation" in text  # two columns of one short name are told apart


def test_matched_tables_say_where_a_series_was_not_measured(make) -> None:
    evaluations = [one for one in make.sweep() if one["sae"]["series"] != "gated" or one["metrics"]["l0"] < 10]
    text = Text(render_html(make.build(evaluations))).text
    assert re.search(r"Gated above the measured range; nearest end: L0 8\.16, delta loss 0\.517", text)


def test_notes_are_gathered_and_name_their_saes(make) -> None:
    evaluations = make.sweep()
    for one in evaluations:
        one["notes"] = ["Repeated text."]
    evaluations[0]["notes"].append("L0 missed by 12 %.")
    text = Text(render_html(make.build(evaluations))).text
    assert "Repeated text. (every SAE of this panel)" in text
    assert "L0 missed by 12 %. (JumpReLU, l0 = 4)" in text


def test_notes_that_differ_only_in_numbers_are_one() -> None:
    error = "The standard error of delta LM loss is {} nats, more than 5 % of it: raise evaluate.tokens."
    notes = [("Gated, l0 = 4", error.format(0.084)), ("TopK, k = 4", "k is 1,024 of 4e-05."),
             ("Gated, l0 = 8", error.format(0.0121)), ("Gated, l0 = 16, seed 1", error.format(0.3))]  # fmt: skip
    first, second = group_notes(notes)
    assert first.text == error.format("0.0121 to 0.3")
    assert join_labels(first.labels) == "Gated, l0 = 4, 8; Gated, l0 = 16, seed 1"
    assert second == ("k is 1,024 of 4e-05.", ["TopK, k = 4"])
    assert group_notes([]) == []


def test_training_diagnostics_are_one_row_per_sae(make) -> None:
    evaluations = make.sweep()
    where = {"requested": 4.0, "reached": 4.05, "step": 200, "share": 0.41}
    evaluations[0] |= {"health": {"sparsity_gradient_ratio": 0.93, "window": 0.0125}, "converged_after": where}
    evaluations[1]["converged_after"] = {**where, "requested": 8.0, "step": None, "share": None}
    html = render_html(make.build(evaluations))
    text = Text(html).text
    assert "SAE series, setting L0 requested L0 reached, held out converged share of training delta loss" in text
    assert re.search(r"JumpReLU, l0 = 4 4 4\.08 41\.0\s% 0\.700", text)
    assert re.search(r"JumpReLU, l0 = 8 8 8\.16 never ", text)
    assert re.search(r"Gated, λ = 0\.001 – 4\.08 – ", text)
    table = text.split("Training diagnostics", 1)[1]
    assert (
        "SAE L0 requested L0 reached in training converged share of training sparsity × reconstruction in window"
        in table
    )
    assert re.search(r"JumpReLU, l0 = 4 4 4\.05 41\.0\s% 0\.930 1\.2\s%", table)
    assert re.search(r"TopK, k = 32 32 – – – –", table)
    assert 'title="From step 200 on"' in html


def test_what_the_intervals_cover_is_said(make) -> None:
    text = Text(render_html(make.build(make.sweep()))).text
    assert "They cover the choice of held-out text only: each SAE was trained once" in text
    seeds = [make.evaluation(0, l0, seed) for l0 in (4.0, 8.0) for seed in (0, 1)]
    text = Text(render_html(make.build(seeds))).text
    assert "and the SAEs’ seeds are resampled" in text
    assert "JumpReLU, l0 = 4, seed 1 " in text
    for one in seeds:
        one["sae"]["stream_seed"] = 0
    assert "JumpReLU, l0 = 4, SAE seed 1 " in Text(render_html(make.build(seeds))).text
    text = Text(render_html(make.build([*seeds, make.evaluation(0, 16.0)]))).text
    assert "not every setting was trained with several seeds" in text


def test_hostile_text_stays_text(make) -> None:
    evaluations = make.sweep()
    evaluations[0]["notes"] = [HOSTILE]
    evaluations[0]["path"] = HOSTILE
    data = make.build(evaluations, name=HOSTILE, study_text=HOSTILE, manifest={HOSTILE: HOSTILE}, lm={"name": HOSTILE})
    data["series"][0] |= {"title": HOSTILE, "architecture": HOSTILE}
    data["panels"][0]["site"] = HOSTILE
    html = render_html(data)
    assert html.count("</script>") == html.count("<script") == 3
    assert "<img" not in html
    assert "<!--" not in html
    assert "\u202e" not in html
    assert "\u2028" not in html
    assert data_of(html)["series"][0]["title"].startswith("</script><script>window.hacked=1")
    text = Text(html).text
    assert text.count("onerror=window.hacked=1>⟨U+202E⟩evil⟨U+2028⟩⟨U+0007⟩'\"&amp;") >= 8


def test_a_run_with_nothing_or_little_in_it_has_a_page(make) -> None:
    assert "0 sparse autoencoders" in Text(render_html(make.build([]))).text
    lonely = make.evaluation(0, 8.0, delta_lm_loss=None, fvu=None, above_10pct=None)
    lonely |= {"bootstrap": {}, "standard_errors": {}, "histogram": {}, "training": {}, "sparsity_coefficient": {}}
    text = Text(render_html(make.build([lonely]))).text
    assert "No SAE of this panel has been measured yet." in text
    assert "There are no intervals" in text
    data = make.build(make.sweep())
    data["panels"][0]["points"][0]["metrics"]["kl"] = float("nan")
    assert data_of(render_html(data))["panels"][0]["points"][0]["metrics"]["kl"] is None


def test_several_panels_are_linked(make) -> None:
    evaluations = make.sweep()
    for one in make.sweep():
        one["sae"]["site"] = "layers.2.mlp"
        evaluations.append(one)
    html = render_html(make.build(evaluations))
    links = [a["href"] for t, a in Text(html).tags if t == "a"]
    assert links[:3] == ["#panel-1", "#panel-1-ask", "#panel-1-figures"]
    assert "#panel-2" in links
    assert "layers.2.mlp, 4,096 features" in html


# ---------------------------------------------------------------------------------------------- write


def test_write_makes_the_report_beside_the_frontier(make, save) -> None:
    folder = save(make.build(make.sweep()))
    assert write_report(folder) == folder / "report.html"
    first = (folder / "report.html").read_bytes()
    write_report(folder)
    assert (folder / "report.html").read_bytes() == first  # a function of its input
    assert sorted(path.name for path in folder.iterdir()) == ["frontier.json", "manifest.json", "report.html"]


def test_what_a_step_costs_is_on_the_page_if_it_was_measured(make, save) -> None:
    data = make.build(make.sweep())
    without = write_report(save(data)).read_text()
    assert "What a training step costs" not in without
    assert "efficiency.json" not in without
    assert data_of(without)["efficiency"] is None

    html = write_report(save(data, efficiency_json.example())).read_text()
    text = Text(html).text
    assert "Measured on Invented CPU with 2 threads; kernels: numba." in text
    assert "TopK dense, approximate top-k finds 98.1 % of the exact top-k 200 10,240 – 26.0 0.600 220 27.1 217" in text
    assert "JumpReLU jumpahead 24.0 85,333 71.5 5.00 0.400 53.0 3.26 26.0" in text
    assert "JumpReLU dense recipe skipped: would need 21 GB of memory" in text
    assert "One encoder product alone: bfloat16 10.0 ms, float32 (oneDNN) 30.0 ms. A copy moves 28.5 GB/s." in text
    assert "Made by jumpahead from frontier.json and efficiency.json ." in text
    drawn = data_of(html)["efficiency"]
    assert drawn["stages"][0] == "encoder product"
    assert drawn["stages"][-1] == "fold"
    first, second = drawn["shapes"]
    assert [(bar["title"], bar["method"]) for bar in first[:2]] == [
        ("JumpReLU", "jumpahead"), ("JumpReLU", "dense recipe"),
    ]  # fmt: skip
    assert first[0]["stages"] == [12, 4, 1, 0, 0, 6, 2, 0.5]
    assert second[1] | {"stages": None} == {
        "title": "JumpReLU", "method": "dense recipe", "ms": None, "stages": None,
        "skipped": "skipped: would need 21 GB of memory",
    }  # fmt: skip


def test_hostile_costs_stay_text(make, save) -> None:
    costs = efficiency_json.example(kernels=HOSTILE, notes=[HOSTILE])
    costs["shapes"][0]["label"] = costs["shapes"][0]["rows"][0]["title"] = HOSTILE
    costs["stages"][0] |= {"title": HOSTILE, "colour": "red;} body{display:none"}
    html = write_report(save(make.build(make.sweep()), costs)).read_text()
    assert "window.hacked" not in "".join(re.findall(r"<script>(.*?)</script>", html, re.DOTALL))
    assert "display:none" not in html.partition("--stage-0:")[2].partition("}")[0]
    assert not [attributes for tag, attributes in Text(html).tags if tag == "img"]
    assert "⟨U+202E⟩evil" in Text(html).text


def test_torn_or_foreign_costs_are_named(make, save) -> None:
    folder = save(make.build(make.sweep()), {"schema": "jumpahead.efficiency/7"})
    with pytest.raises(ArtefactError, match=r"efficiency\.json says that it is 'jumpahead\.efficiency/7'"):
        write_report(folder)
    (folder / "efficiency.json").write_text('{"schema": "jumpahead.effic')
    with pytest.raises(ArtefactError, match=r"efficiency\.json is torn .* `jumpahead efficiency --run .*` makes it"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_what_is_no_run_or_no_frontier_is_named(make, save, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"is not a run \(it has no manifest.json\)"):
        write_report(tmp_path)
    folder = save(make.build([]))
    (folder / "frontier.json").write_text('{"schema": "jumpahead.frontier/3", "na')
    with pytest.raises(ArtefactError, match=r"frontier\.json is torn"):
        write_report(folder)
    (folder / "frontier.json").unlink()
    with pytest.raises(ArtefactError, match=r"frontier\.json does not exist: `jumpahead run` makes it"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_the_report_needs_neither_torch_nor_study_nor_sae() -> None:
    code = (
        "import sys, jumpahead.report.page; "
        "names = ('torch', 'plotly', 'pandas', 'jumpahead.sae', 'jumpahead.study.schema', 'jumpahead.frontier'); "
        "print([name for name in names if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_sae_with_feature_pages_links_to_them(make: Any, save: Any) -> None:
    folder = save(make.build(make.sweep()))
    paths = [point["path"] for point in json.loads((folder / "frontier.json").read_text())["panels"][0]["points"]]
    write_report(folder)
    assert "features/index.html" not in (folder / "report.html").read_text()
    (folder / "features").mkdir()
    (folder / "features" / "index.html").write_text("x")
    points = [{"name": f"sae <{i}>", "path": path} for i, path in enumerate(paths)]
    contents = {"points": points, "saes": [{"number": 1}, {"number": 4}]}
    (folder / "features" / "features.json").write_text(json.dumps(contents))
    write_report(folder)
    found = [
        dict(attributes).get("href")
        for tag, attributes in Text((folder / "report.html").read_text()).tags
        if tag == "a"
    ]
    links = [link for link in found if link and link.startswith("features/")]
    assert sorted(set(links)) == ["features/index.html#sae%20%3C1%3E", "features/index.html#sae%20%3C4%3E"]
    assert len(links) == 4, "beside the SAE in the table, and above"
