"""Which features fire on a sentence: equal to dense encoding, in the terminal and as a page; SAEs of other makes."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from jumpahead import api
from jumpahead.cli import app
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.features.pages import read_labels
from jumpahead.features.prompt import features_on_prompt
from jumpahead.formats import save
from jumpahead.storage.layout import FeaturesFolder
from tests.evaluation.test_evaluate import SITE, random_sae

PROMPT = "a 🎉\n<b>"


@pytest.fixture(scope="module")
def lm(lm_of):
    return lm_of("neox")


@pytest.fixture(scope="module")
def folders(lm, lm_folder, tmp_path_factory):
    """One SAE as jumpahead saves it, and as SAELens's."""
    folder, sae = tmp_path_factory.mktemp("saes"), random_sae(lm, SITE)
    for name in ("jumpahead", "saelens"):
        save(sae, name, folder / name)
    return folder


def test_features_are_those_of_dense_encoding(lm):
    sae = random_sae(lm, SITE)
    found = features_on_prompt(sae, lm, SITE, PROMPT, {3: "three", 10**6: "none"})
    ids = [lm.bos_id, *lm.encode([PROMPT])[0].tolist()]
    f = sae.encode(lm.read([ids], [SITE])[SITE][0, 1:])
    assert "".join(one for one in found["tokens"] if not one.startswith("⟨")) == PROMPT
    assert len(found["tokens"]) == len(f) == len(found["active"])
    for row, active in zip(f, found["active"], strict=True):
        assert sorted(j for j, _ in active) == torch.nonzero(row)[:, 0].tolist()
        values = [value for _, value in active]
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx(row[[j for j, _ in active]].tolist(), rel=5e-3)
    fires = {j for active in found["active"] for j, _ in active}
    assert found["labels"] == ({"3": "three"} if 3 in fires else {})


def test_what_cannot_be_encoded_is_named(lm):
    sae = random_sae(lm, SITE)
    with pytest.raises(DataError, match="The prompt is empty"):
        features_on_prompt(sae, lm, SITE, "", {})
    with pytest.raises(DataError, match=r"more than the 32 of a context: shorten it"):
        features_on_prompt(sae, lm, SITE, "x" * 40, {})


@pytest.mark.parametrize("make", ["jumpahead", "saelens"])
def test_the_command_line_prints_a_line_per_token_and_writes_a_page(folders, lm_folder, make, tmp_path):
    page = tmp_path / "page.html"
    command = ["features", str(folders / make), "--prompt", PROMPT, "--lm", str(lm_folder("neox")), "--site", SITE]
    done = CliRunner().invoke(app, [*command, "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "“🎉”" in done.output
    assert "“⏎”" in done.output
    assert f"page: {page}" in done.output
    text = page.read_text(encoding="utf-8")
    assert "<b>" not in text.split('id="data">')[1].split("</script>")[0]
    printed = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(printed.output)["schema"] == "jumpahead.prompt/1"


def test_labels_come_from_the_pages_of_the_sae(folders, lm_folder, tmp_path, monkeypatch):
    texts = tmp_path / "text"
    texts.mkdir()
    for i in range(40):
        (texts / f"{i}.txt").write_text(f"{i} " + "abc <b>" * 9)
    monkeypatch.chdir(tmp_path)
    options = {"lm": str(lm_folder("neox")), "site": SITE}
    page = api.features(
        [folders / "jumpahead", folders / "saelens"], text=str(texts), tokens=200, bias_features=1,
        with_neuronpedia=True, overrides=["lm.context=32", "text.held_out=0.4"], **options,
    )  # fmt: skip
    assert page.parent.name == "features"
    found = api.features_of_prompt(folders / "jumpahead", PROMPT, **options)
    assert found["labels"]
    assert set(found["labels"].values()) <= set(read_labels(FeaturesFolder(page.parent), page_name(page, 0)).values())

    batches = sorted((page.parent / "neuronpedia" / page_name(page, 0)).glob("batch-*.json"))
    assert batches
    batch = json.loads(batches[0].read_text())
    assert batch["model_id"] == str(lm_folder("neox"))
    assert batch["layer"] == 1
    for feature in batch["features"]:
        assert set(feature) == NEURONPEDIA_FIELDS
        assert sum(feature["freq_hist_data_bar_heights"]) > 0
        for activation in feature["activations"]:
            assert set(activation) == {"bin_min", "bin_max", "bin_contains", "tokens", "values"}
            assert len(activation["tokens"]) == len(activation["values"])
            assert max(activation["values"]) > 0
    contents = json.loads((page.parent / "features.json").read_text())
    assert [one["path"] for one in contents["points"]] == [str(folders / name) for name in ("jumpahead", "saelens")]
    first, second = contents["saes"]
    assert {**first, "number": 1} == second, "both are the same SAE"


NEURONPEDIA_FIELDS = {
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
    "correlated_features_l1", "correlated_features_pearson", "neg_str", "neg_values", "pos_str", "pos_values",
    "frac_nonzero", "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt", "dataset", "activations",
    "decoder_weights_dist",
}  # fmt: skip
"""The fields of NeuronpediaDashboardFeature in SAEDashboard."""


def page_name(page, number):
    return json.loads((page.parent / "features.json").read_text())["points"][number]["name"]


def test_what_is_not_an_sae_is_named(folders, tmp_path):
    with pytest.raises(ArtefactError):
        api.features([tmp_path / "nothing"])
    with pytest.raises(StudyError, match="name the language model with --lm"):
        api.features([folders / "saelens"])
    done = CliRunner().invoke(app, ["features", "a", "b", "--prompt", "x"])
    assert done.exit_code == 1
    assert "--prompt takes one SAE" in done.output


def test_a_damaged_list_is_named(tmp_path):
    folder = FeaturesFolder(tmp_path)
    assert read_labels(folder, "x") == {}
    folder.feature_list("x").parent.mkdir()
    folder.feature_list("x").write_text('jumpahead.receive("x/list",{"labels":["a"')
    with pytest.raises(ArtefactError, match="is damaged: remove it, and `jumpahead features` makes it again"):
        read_labels(folder, "x")


def test_the_page_of_a_prompt_shows_what_fires(browser, lm, tmp_path):
    from jumpahead.features.pages import render_prompt_page

    found = features_on_prompt(random_sae(lm, SITE), lm, SITE, PROMPT, {3: "<i>three</i>"})
    path = tmp_path / "page.html"
    path.write_text(render_prompt_page(found), encoding="utf-8")
    page, heard = browser.new_page(), []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-shown=prompt]")
    buttons = page.locator(".tokens button")
    assert buttons.count() == len(found["tokens"])
    busiest = max(range(len(found["active"])), key=lambda t: len(found["active"][t]))
    buttons.nth(busiest).click()
    rows = page.locator("table tr")
    assert rows.count() == len(found["active"][busiest])
    assert rows.first.inner_text().startswith(f"#{found['active'][busiest][0][0]}")
    assert page.locator("i, b").count() == 0
    assert heard == []
    page.close()
