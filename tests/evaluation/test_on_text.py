"""SAEs of any make on any text: the numbers of the evaluation that a run does, from the command line too."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from jumpahead import api
from jumpahead.cli import app
from jumpahead.errors import DataError, StudyError
from jumpahead.evaluation.evaluate import evaluate
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.evaluation.on_text import measure_site
from jumpahead.evaluation.outliers import OutlierRule
from jumpahead.evaluation.sums import evaluation_json
from jumpahead.formats import save
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM
from jumpahead.resampling import replicate_weights
from jumpahead.sae.saved import SAE
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents
from jumpahead.text.tokenize import tokenize
from tests.engine.cases import CASES, random_state

SITE, OTHER, WIDTH = "layers.1.residual", "layers.0.residual", 90


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(60):
        (folder / f"{i}.txt").write_text(" ".join(f"word{(i * j) % 37} is {j}" for j in range(20)))
    return folder


@pytest.fixture(scope="module")
def lm():
    return LM.load(LMConfig(model="tiny", context=32))


@pytest.fixture(scope="module")
def saes(lm, tmp_path_factory):
    """Return the folders of one SAE: as a run saves it, and as SAELens's and as Gemma Scope's."""
    case = next(case for case in CASES if case.architecture == "jumprelu")
    d = lm.width_at(SITE)
    x = lm.read([[5, 9, 3, 7, 8, 4, 2, 6]], [SITE])[SITE][0]
    state = random_state(case, d, WIDTH, 3, torch.float32)
    params = state.arch.fold(state.params, float(x.square().sum(1).mean().sqrt()))
    sae = SAE(state.arch, params, {"lm": {"model": "tiny", "digest": lm.digest}, "site": SITE})
    folder = tmp_path_factory.mktemp("saes")
    for name in ("jumpahead", "saelens", "gemma_scope"):
        save(sae, name, folder / name)
    return folder


@pytest.fixture(scope="module")
def found(saes, text, tmp_path_factory):
    names = [saes / name for name in ("jumpahead", "saelens", "gemma_scope")]
    out = tmp_path_factory.mktemp("out") / "found.json"
    result = api.evaluate(
        names, lm="tiny", text=str(text), site=SITE, tokens=500, out=out,
        overrides=["lm.context=32", "text.held_out=0.3", "evaluate.replicates=25"],
    )  # fmt: skip
    assert json.loads(out.read_text())["saes"][0]["metrics"] == result["saes"][0]["metrics"]
    return result


def test_the_numbers_are_those_of_a_runs_evaluation(found, saes, text, lm):
    config = TextConfig(source=str(text), held_out=0.3)
    held_out = HeldOut.first_groups(tokenize(documents(config), lm, split="held_out", held_out=0.3), 500)
    moments = measure_site(lm, held_out, SITE)
    sae, outliers = SAE.load(saes / "jumpahead"), OutlierRule.of({"outliers": moments.outliers()})
    measured = evaluate({"one": sae}, lm, held_out, SITE, moments.mean, outliers=outliers)["one"]
    wanted = evaluation_json(measured, held_out, replicate_weights(held_out.clusters, 25))
    ours = found["saes"][0]
    assert ours["metrics"] == wanted["metrics"]
    assert ours["standard_errors"] == wanted["standard_errors"]
    assert ours["text"] == wanted["text"]
    assert ours["text"]["tokens"] >= 500
    assert (ours["site"], ours["width"], ours["architecture"], ours["made_by"]) == (
        SITE,
        WIDTH,
        "jumprelu",
        "jumpahead",
    )


def test_mean_and_outliers_are_those_of_the_positions_that_are_spliced(text, lm):
    config = TextConfig(source=str(text), held_out=0.3)
    held_out = HeldOut.first_groups(tokenize(documents(config), lm, split="held_out", held_out=0.3), 500)
    rows = []
    for group in range(held_out.groups):
        x = lm.read(held_out.contexts.ids(group), [SITE], held_out.contexts.position_ids(group))[SITE]
        rows.append(x[torch.from_numpy(held_out.contexts.trained_mask(group))].double())
    x, moments = torch.cat(rows), measure_site(lm, held_out, SITE)
    torch.testing.assert_close(moments.mean.double(), x.mean(0), rtol=1e-5, atol=1e-6)
    outliers = moments.outliers()
    assert outliers is not None
    median = float((x - x.median(0).values).norm(dim=1).median())
    assert outliers["norm"] == pytest.approx(10 * median, rel=1e-5)


def test_every_make_of_one_sae_has_the_same_numbers(found):
    first, *others = found["saes"]
    for other in others:
        assert other["metrics"]["l0"] == pytest.approx(first["metrics"]["l0"], rel=1e-6)
        assert other["metrics"]["delta_lm_loss"] == pytest.approx(first["metrics"]["delta_lm_loss"], rel=1e-4)
    assert [sae["made_by"] for sae in others] == ["SAELens 6.54.12", "Gemma Scope"]


def test_the_mean_is_that_of_the_evaluated_text(found):
    """Mean ablation is no worse than zero ablation, by which it is distinguished here."""
    metrics = found["saes"][0]["metrics"]
    assert metrics["ce_mean"] != metrics["ce_zero"]
    assert metrics["ce_clean"] < metrics["ce_mean"]


def test_where_an_sae_belongs_is_found_and_misplacement_noted(saes, text):
    known = api.evaluate(
        [saes / "saelens"], text=str(text), tokens=60, overrides=["lm.context=32", "text.held_out=0.3"]
    )
    assert (known["lm"], known["saes"][0]["site"]) == ("tiny", SITE)
    assert not [note for note in known["saes"][0]["notes"] if "trained for" in note]
    moved = api.evaluate(
        [saes / "saelens"], text=str(text), site=OTHER, tokens=60, overrides=["lm.context=32", "text.held_out=0.3"]
    )
    assert any(f"was trained for site {SITE}, not {OTHER}" in note for note in moved["saes"][0]["notes"])


def test_what_is_not_known_must_be_named(saes, text):
    with pytest.raises(StudyError, match="name the language model with --lm"):
        api.evaluate([saes / "gemma_scope"], text=str(text))
    with pytest.raises(StudyError, match=r"gemma_scope does not say its site: name one with --site"):
        api.evaluate([saes / "gemma_scope"], lm="tiny", text=str(text))
    with pytest.raises(StudyError, match=r"evaluate: there is no key 'lm.dtyp'"):
        api.evaluate([saes / "saelens"], text=str(text), overrides=["lm.dtyp=bfloat16"])
    with pytest.raises(DataError, match="takes activations of width"):
        api.evaluate(
            [saes / "saelens"], text=str(text), site="layers.1.mlp.dense_h_to_4h.output",
            overrides=["lm.context=32", "text.held_out=0.3"],
        )  # fmt: skip


def test_evaluate_on_the_command_line(saes, text):
    options = ["--text", str(text), "--tokens", "60", "--set", "lm.context=32", "--set", "text.held_out=0.3"]
    done = CliRunner().invoke(app, ["evaluate", str(saes / "saelens"), str(saes / "jumpahead"), *options])
    assert done.exit_code == 0, done.output
    assert f"{SITE}, LM tiny" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("saelens ", "jumpahead "))]
    assert [row[0] for row in rows[:2]] == ["saelens", "jumpahead"]
    assert rows[0][1:4] == rows[1][1:4]
    done = CliRunner().invoke(app, ["evaluate", str(saes / "none"), *options])
    assert done.exit_code == 1
    assert "does not exist" in done.stderr
