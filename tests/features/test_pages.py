"""The folder of feature pages: what the files hold, and how the page behaves in a browser, opened from the disk."""

from __future__ import annotations

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jumpahead.errors import StudyError
from jumpahead.features.collect import collect
from jumpahead.features.examples import feature_examples, quantile_groups, random_rest, rounded
from jumpahead.features.labels import FeatureLabel
from jumpahead.features.pages import (
    FEATURES_PER_FILE,
    bias_note,
    rewrite_page,
    write_list,
    write_page,
    write_records,
)
from jumpahead.features.similarity import best_cosines, unit_rows
from jumpahead.storage.layout import FeaturesFolder, features_name
from tests.evaluation.test_evaluate import SITE, WIDTH, random_sae
from tests.features.conftest import HOSTILE


def received(path):
    """Return the name and value that a data file hands to the page."""
    text = path.read_text(encoding="utf-8")
    found = re.fullmatch(r'jumpahead\.receive\("([^"]+)",(.*)\);\n', text, re.DOTALL)
    assert found, text[:100]
    return found[1], json.loads(found[2])


def records(pages, sae="sae-jumprelu"):
    files = [received(path) for path in sorted((pages.path / sae).glob("0*.js"))]
    assert [name for name, _ in files] == [f"{sae}/{n}" for n in range(len(files))]
    return [record for _, block in files for record in block]


# ---------------------------------------------------------------------------------------------- the files


def test_every_feature_has_a_record(pages, lm_of, hostile_text):
    found = records(pages)
    assert [record["index"] for record in found] == list(range(WIDTH))
    assert WIDTH > FEATURES_PER_FILE
    lm, sae = lm_of("neox"), random_sae(lm_of("neox"), SITE)
    activity = collect({"x": sae}, lm, hostile_text, SITE).activity["x"]
    assert [record["count"] for record in found] == activity.count.tolist()
    for record in found:
        if record["count"]:
            j = record["index"]
            assert record["max"] == float(f"{activity.top.value[j, 0]:.4g}")
            assert sum(record["histogram"]["counts"]) == record["count"]
            assert record["threshold"] == pytest.approx(float(sae.params["threshold"][j]), rel=1e-3)
            assert record["decoder_norm"] == pytest.approx(float(sae.params["W_dec"][j].norm()), rel=1e-3)


def test_examples_lead_to_the_text(pages, hostile_text):
    contexts = hostile_text.contexts
    record = max(records(pages), key=lambda one: one["count"])
    for chunk, offset, value, others in [*record["top"], *record["random"]]:
        name, passages = received(pages.passages(chunk // 16))
        assert name == f"text/{chunk // 16}"
        passage = passages[str(chunk)]
        assert len(passage["tokens"]) == contexts.chunk_length[chunk]
        assert passage["document"] == contexts.document_names[contexts.chunk_document[chunk]]
        assert 0 <= offset < len(passage["tokens"])
        assert value > 0
        assert len(others) % 2 == 0
        assert 0 not in others[::2]
    assert record["top"] == sorted(record["top"], key=lambda one: -one[2])


def test_the_text_survives_as_tokens(pages):
    _, passages = received(pages.passages(0))
    text = "".join("".join(one["tokens"]) for one in passages.values())
    for part in ("</script><img", "onerror=alert(1)>", "⟨U+202E⟩", "日", "ע"):
        assert part in text


def test_the_same_feature_is_found_in_other_saes(pages, points):
    first = unit_rows(points[0].load())
    for record in records(pages)[:40]:
        for number, feature, cosine in record.get("across", []):
            assert number in (1, 2)
            all_cosines = unit_rows(points[number].load()) @ first[record["index"]]
            assert cosine == pytest.approx(float(all_cosines.max()), rel=0.01, abs=1e-3)
            assert float(all_cosines[feature]) == pytest.approx(float(all_cosines.max()), abs=1e-6)
        assert record["index"] not in [feature for feature, _ in record.get("nearest", [])]


def test_the_most_frequent_have_their_bias_likeness(pages):
    measured = [record for record in records(pages) if "bias_likeness" in record]
    assert len(measured) == 3
    counts = sorted((record["count"] for record in records(pages)), reverse=True)
    assert sorted((record["count"] for record in measured), reverse=True) == counts[:3]


def test_the_same_inputs_give_the_same_bytes(pages, build, tmp_path):
    again = build(tmp_path / "again")
    files = sorted(path.relative_to(pages.path) for path in pages.path.rglob("*") if path.is_file())
    assert len(files) > 8
    assert files == sorted(path.relative_to(again.path) for path in again.path.rglob("*") if path.is_file())
    for file in files:
        assert (pages.path / file).read_bytes() == (again.path / file).read_bytes(), file


def test_an_sae_that_is_not_chosen_any_more_loses_its_pages(build, tmp_path):
    folder = build(tmp_path / "features")
    build(tmp_path / "features", chosen=["sae-topk"])
    assert not (folder.path / "sae-jumprelu").exists()
    assert [one["number"] for one in json.loads(folder.contents.read_text())["saes"]] == [1]


def test_the_page_can_be_written_again(build, tmp_path):
    folder = build(tmp_path / "features")
    before = folder.page.read_bytes()
    folder.page.unlink()
    assert rewrite_page(folder).read_bytes() == before


def test_other_files_are_not_mixed_with_pages(build, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StudyError, match="holds other files: name an empty or new folder"):
        build(tmp_path)


def test_names_of_saes_are_safe_names_of_folders():
    assert features_name("saes/layers.1.residual/64/topk/k-3_seed-0") == "layers.1.residual_64_topk_k-3_seed-0"
    assert features_name("/../a b/ü/.x") == "a-b_-_.x"
    assert features_name("../..") == "sae"
    assert FeaturesFolder.__doc__


def test_groups_have_equal_sizes_and_are_sorted():
    drawn = [[0, i, float(v), []] for i, v in enumerate(np.random.default_rng(0).permutation(24))]
    groups = quantile_groups(drawn)
    assert [(group["low"], group["high"]) for group in groups] == [(18, 23), (12, 17), (6, 11), (0, 5)]
    for group in groups:
        assert [one[1] for one in group["examples"]] == sorted(one[1] for one in group["examples"])
        assert all(group["low"] <= one[2] <= group["high"] for one in group["examples"])
    assert quantile_groups(drawn[:3]) == []
    rest = random_rest(drawn, groups)
    assert len(rest) == 5
    assert not [one for one in rest for group in groups if one in group["examples"]]
    assert random_rest(drawn[:3], []) == drawn[:3]


def test_numbers_are_rounded_to_significant_digits():
    assert rounded(np.array([0, 1.23456, 0.00123456, 12345.6, -0.5])).tolist() == [0, 1.23, 0.00123, 12300.0, -0.5]


def test_a_feature_that_never_fires_has_no_examples(pages, lm_of, hostile_text):
    activity = collect({"x": random_sae(lm_of("neox"), SITE)}, lm_of("neox"), hostile_text, SITE).activity["x"]
    activity.top.value[4], activity.sample.value[4] = 0, 0
    (found,) = feature_examples(activity, [4])
    assert found == ([], [], [])


def test_best_cosines_are_those_of_the_whole_product():
    random = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(1500, 6, generator=random), dim=1)
    index, cosine = best_cosines(rows, rows, 3, own=torch.arange(1500))
    product = rows @ rows.T - 3 * torch.eye(1500)
    assert np.allclose(cosine, product.topk(3).values, atol=1e-6)
    assert np.allclose(product.gather(1, torch.from_numpy(index)), cosine, atol=1e-6)


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture
def visit(browser, pages):
    """Opens the pages from the disk; `page.heard` lists requests to a network and complaints of the console."""
    opened = []

    def open_page(address="", folder=None, **options):
        page = browser.new_page(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
        page.heard = []
        page.on("request", lambda request: None if request.url.startswith("file:") else page.heard.append(request.url))
        page.on("console", lambda message: page.heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: page.heard.append(f"dialog: {dialog.message}"))
        page.goto((folder or pages).page.as_uri() + address)
        page.wait_for_selector("html[data-shown]", timeout=30_000)
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        assert page.heard == [], page.heard
        page.close()


def shown(page):
    return page.evaluate("document.documentElement.dataset.shown")


def test_the_most_frequent_feature_comes_first(visit, pages):
    page = visit()
    most = max(records(pages), key=lambda one: (one["count"], -one["index"]))
    assert shown(page) == f"sae-jumprelu/{most['index']}"
    assert page.locator(".row").first.get_attribute("aria-current") == "true"
    page.wait_for_selector(".example .peak")
    assert "fires on" in page.locator(".facts").inner_text()
    assert "Bias-likeness" in page.locator(".verdict").inner_text()


def test_hostile_text_is_shown_and_never_executed(visit):
    page = visit()
    page.wait_for_selector(".example .peak")
    for button in page.locator(".example button").all()[:6]:
        button.click()
    text = page.locator(".feature").inner_text()
    assert "onerror" in text.replace(" ", "")
    assert page.locator("img, b b, i").count() == 0
    assert page.locator("h1").inner_text() == "<b>run</b>: features"
    assert "<b>" in page.locator(".where").first.inner_text()
    assert "日" in HOSTILE


def test_a_link_leads_to_a_feature_and_another_sae(visit):
    page = visit("#sae-topk/7")
    assert shown(page) == "sae-topk/7"
    assert page.locator("header select").input_value() == "sae-topk"
    page.evaluate("location.hash = '#sae-jumprelu/9'")
    page.wait_for_selector("html[data-shown='sae-jumprelu/9']")
    assert page.title() == "Feature 9, jumprelu <i>k</i> = 3"
    page.evaluate("location.hash = '#nothing/12345'")
    page.wait_for_selector("html[data-shown^='sae-jumprelu/']")


def test_keys_move_through_the_list_and_search(visit, pages):
    page = visit()
    order = sorted((one for one in records(pages) if one["count"]), key=lambda one: (-one["count"], one["index"]))
    for n in (1, 2):
        page.keyboard.press("j")
        page.wait_for_selector(f"html[data-shown='sae-jumprelu/{order[n]['index']}']")
    page.keyboard.press("k")
    page.wait_for_selector(f"html[data-shown='sae-jumprelu/{order[1]['index']}']")
    page.keyboard.press("/")
    page.keyboard.type("133")
    assert page.locator(".row .more").first.inner_text().startswith("#133")


def test_filters_and_orders(visit, pages):
    page = visit()
    dead = [one["index"] for one in records(pages) if not one["count"]]
    chip = page.locator("[data-filter=dead]")
    assert chip.inner_text().split()[-1] == str(len(dead))
    chip.click()
    assert page.locator(".found").inner_text() == f"{len(dead)} of {WIDTH} features"
    page.locator("[data-filter=alive]").click()
    page.locator(".controls select").select_option("max")
    largest = max((one for one in records(pages) if one["count"]), key=lambda one: one["max"])
    assert page.locator(".row .more").first.inner_text().startswith(f"#{largest['index']} ")


def test_on_a_telephone_the_list_and_the_feature_take_turns(visit):
    page = visit(viewport={"width": 390, "height": 800})
    assert page.locator(".side").is_visible()
    assert not page.locator(".feature").is_visible()
    page.locator(".row").nth(1).click()
    page.wait_for_selector(".feature h2", state="visible")
    assert not page.locator(".side").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".back").click()
    page.wait_for_selector(".side", state="visible")


def test_everything_that_can_be_operated_has_a_name(visit):
    page = visit()
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, a, input, select")].filter((one) =>
            !(one.textContent.trim() || one.getAttribute("aria-label"))).map((one) => one.outerHTML)"""
    )
    assert unnamed == []


def test_the_policy_allows_no_network_and_no_other_script(pages):
    page = pages.page.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "</script><img" not in page


def test_131_072_features_open_and_are_searched_fast(visit, tmp_path):
    """Opens in 2 s and searches in 0.3 s; compared by `make test-browser` alone, which runs nothing beside it."""
    width, folder = 131_072, FeaturesFolder(tmp_path / "features")
    top = SimpleNamespace(value=np.ones((width, 1)))
    activity = SimpleNamespace(width=width, count=np.arange(width, 0, -1), top=top)
    words = [[f"word{j % 5000}", f"other{j % 77}"] for j in range(width)]
    labels = [FeatureLabel(f"“{first}”, …", "token", 0.75, [first, second]) for first, second in words]
    write_list(folder, "big", SimpleNamespace(activity=activity, labels=labels, bias={}))
    record = {"index": 0, "count": 0, "label": {"text": "x", "rule": "none", "score": None}}
    write_records(folder, "big", iter([record] * 128))
    numbers = {"l0": 3.0, "above_10pct": 0, "above_1pct": 0, "never_fired": 0}
    sae = {"architecture": "topk", "width": width, "d": 256, **numbers, "number": 0, "bias": bias_note([])}
    point = {
        "name": "big",
        "title": "big",
        "site": SITE,
        "series": "topk",
        "path": "x",
        "l0": 3.0,
        "delta_lm_loss": None,
    }
    text = {"source": "invented", "tokens": 200_000}
    write_page(folder, {"inputs": "x", "name": "big", "lm": "x", "text": text, "points": [point], "saes": [sae],
                        "matched_features": 4096})  # fmt: skip
    page = visit(folder=folder)
    opened = page.evaluate("performance.now()")
    searched = page.evaluate(
        """(words) => words.map((word) => {
            const input = document.querySelector("input[type=search]"), begun = performance.now();
            input.value = word;
            input.dispatchEvent(new Event("input"));
            return [performance.now() - begun, document.querySelector(".found").textContent];
        })""",
        ["o", "word12", "word4999", "other76", "nothing"],
    )
    assert [said.split()[0] for _, said in searched][3:] == ["1,702", "0"]
    assert page.locator(".row").count() == 0
    if os.environ.get("BROWSER") == "required":
        assert opened <= 2_000
        assert max(milliseconds for milliseconds, _ in searched) <= 300
