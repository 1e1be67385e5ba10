"""SAEs of any make and of runs on one frontier: the numbers of their own evaluations, on one text; what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import jumpahead
from jumpahead import api
from jumpahead.cli import app
from jumpahead.comparison import compare as comparison
from jumpahead.comparison.members import UNKNOWN_TEXT, Named
from jumpahead.errors import ArtefactError, DataError, SiteError, StudyError
from jumpahead.formats import load, save
from jumpahead.progress import SilentProgress
from jumpahead.storage.json_files import read_json
from jumpahead.storage.packed_numbers import unpack_numbers
from tests.texts import random_words

SITE = "layers.1.residual"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def train(folder, lm_folder):
    """Trains a run, with tables in the place of those of the study."""
    text = random_words(folder / "text", 30)

    def make(name, until=None, **tables):
        study = {
            "name": name,
            "lm": {"model": str(lm_folder("neox")), "context": 32, "batch": 4},
            "text": {"source": str(text), "held_out": 0.3},
            "activations": {"sites": [SITE], "block": 64, "scale_rows": 400},
            "sae": {"width": 64},
            "train": {"tokens": 1_280, "batch": 128},
            "evaluate": {"tokens": 600, "replicates": 40},
            "series": [{"architecture": "jumprelu", "l0": [3, 7]}, {"architecture": "topk", "k": [3, 7]}],
        }
        return jumpahead.run(study | tables, out=folder / name, until=until, progress=SilentProgress())

    return make


@pytest.fixture(scope="module")
def first(train):
    return train("first")


@pytest.fixture(scope="module")
def lens(first, folder):
    """Return the folder of SAEs of the first run, exported to SAELens, and of one for dictionary_learning."""
    for number in (3, 7):
        save(load(sae_of(first, "jumprelu", f"l0-{number}")), "saelens", folder / "lens" / f"x{number}")
    save(load(sae_of(first, "topk", "k-3")), "dictionary_learning", folder / "dl" / "trainer_0")
    return folder / "lens"


def sae_of(run, series, setting, width=64):
    return run / "saes" / SITE / str(width) / series / f"{setting}_seed-0"


def compared(out, *named, **options):
    api.compare(named, out=out, progress=SilentProgress(), **options)
    return jumpahead.Frontier.load(out)


def by_label(frontier):
    return {(point["series"], point["label"]): point for point in frontier.points()}


@pytest.fixture
def no_evaluation(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an SAE is evaluated again")

    monkeypatch.setattr(comparison, "evaluate", refuse)


# ---------------------------------------------------------------------------------------------- what is compared


@pytest.fixture(scope="module")
def whole(first, lens, folder):
    return compared(folder / "whole", first, lens / "x3", lens / "x7", f"theirs={folder / 'dl' / 'trainer_0'}")


def test_saes_of_other_makes_have_the_numbers_of_the_runs(whole, first):
    points = by_label(whole)
    assert whole.series == ["jumprelu", "saelens-jumprelu", "topk", "theirs"]
    assert whole.panels == [f"{SITE}/64"]
    pairs = {("jumprelu", f"l0 = {n}"): label for n, label in zip((3, 7), measured_labels(points), strict=True)}
    pairs[("topk", "k = 3")] = ("theirs", "k = 3")
    for own, other in pairs.items():
        ours, theirs = points[own], points[other]
        for key in ("l0", "fvu", "delta_lm_loss", "ce_clean", "ce_mean", "ce_zero"):
            assert theirs["metrics"][key] == pytest.approx(ours["metrics"][key], rel=1e-3), key
        replicates = [unpack_numbers(point["bootstrap"]["delta_lm_loss"]) for point in (ours, theirs)]
        assert np.allclose(*replicates, rtol=0, atol=1e-3 * np.ptp(replicates[0]))  # the same documents are drawn
        assert UNKNOWN_TEXT in theirs["notes"]
        assert UNKNOWN_TEXT not in ours["notes"]
    assert load(whole.folder / points["theirs", "k = 3"]["path"]).architecture == "topk"
    assert load(whole.folder / points["topk", "k = 3"]["path"]).architecture == "topk"


def measured_labels(points):
    found = [key for key in points if key[0] == "saelens-jumprelu"]
    return sorted(found, key=lambda key: points[key]["metrics"]["l0"])


def test_a_runs_own_evaluations_are_used_as_they_are(whole, first):
    for (series, label), point in by_label(whole).items():
        if series in ("jumprelu", "topk"):
            own = read_json(sae_of(first, series, label.replace(" = ", "-")) / "evaluation.json")
            assert point["metrics"] == own["metrics"]
            assert point["training"] == own["training"]
    assert len(list((whole.folder / "evaluations").iterdir())) == 3


def test_a_setting_that_is_not_known_is_the_measured_l0(whole):
    points = by_label(whole)
    labels = measured_labels(points)
    assert all(label.startswith("measured L0 ") for _, label in labels)
    l0 = [points[label]["metrics"]["l0"] for label in labels]
    (answer,) = whole.ask(l0=float(np.sqrt(l0[0] * l0[1])), series="saelens-jumprelu").panels[0].series
    assert answer.crossings[0].label in {label for _, label in labels}  # of a trained SAE, not interpolated
    assert all(points[label]["requested"] is None for label in labels)


def test_the_verbs_of_a_run_take_a_comparison(whole, capsys):
    api.show(whole.folder)
    assert "theirs" in capsys.readouterr().out
    assert "TopK" in api.report(whole.folder).read_text()
    with pytest.raises(StudyError, match=r"study\.toml does not exist"):
        api.efficiency(run=whole.folder, seconds=1)


def test_runs_of_one_recipe_are_one_series(train, first, folder, no_evaluation):
    series = [{"architecture": "jumprelu", "l0": [5]}, {"architecture": "topk", "k": [3]}]
    more = train("more", series=series)
    frontier = compared(folder / "merged", first, more)
    assert list(by_label(frontier)) == [
        ("jumprelu", "l0 = 3"), ("jumprelu", "l0 = 5"), ("jumprelu", "l0 = 7"), ("topk", "k = 3"), ("topk", "k = 7"),
    ]  # fmt: skip
    assert frontier.covers.startswith("The 95 % intervals cover the held-out text")


def test_runs_that_differ_are_series_of_their_own(train, first, folder, no_evaluation):
    """By the recipe and, in one panel, by the width."""
    series = [{"architecture": "topk", "k": [3, 7], "recipe": {"lr": 1e-4}}]
    other = train("other", series=series)
    wide = train("wide", sae={"width": 96}, series=[{"architecture": "topk", "k": [3]}])
    frontier = compared(folder / "differ", first, other, f"x={wide}")
    assert frontier.series == ["jumprelu", "topk-first", "topk-other", "x-topk"]
    assert [series["title"] for series in frontier.data["series"]][1:] == ["TopK (first)", "TopK (other)", "TopK (x)"]
    assert frontier.data["panels"][0]["widths"] == {"jumprelu": 64, "topk-first": 64, "topk-other": 64, "x-topk": 96}
    assert compared(folder / "wide-too", first, wide).series == ["jumprelu", "topk-64", "topk-96"]


def test_an_unfinished_run_is_evaluated(train, first, folder):
    half = train("half", until="train", series=[{"architecture": "topk", "k": [3, 7]}], sae={"width": 64, "seed": 1})
    frontier = compared(folder / "unfinished", half, first)
    points = {(point["series"], point["label"], point["sae_seed"]) for point in frontier.points(series="topk")}
    assert points == {("topk", f"k = {k}", seed) for k in (3, 7) for seed in (0, 1)}
    mine = next(point for point in frontier.points() if point["sae_seed"] == 1)
    assert mine["training"]["tokens"] == 1_280
    own = jumpahead.Frontier.load(train("half", series=[{"architecture": "topk", "k": [3, 7]}],
                                        sae={"width": 64, "seed": 1}))  # fmt: skip
    assert own.points()[0]["metrics"] == mine["metrics"]


def test_another_text_is_measured_for_all_and_noted(first, lens, folder):
    other = folder / "other text"
    shutil.copytree(folder / "text", other)
    frontier = compared(folder / "elsewhere", first, lens / "x3", text=str(other), tokens=300)
    assert frontier.data["panels"][0]["tokens"] < 600
    note = f"Trained on {folder / 'text'}, which may include this text."
    assert all((note in point["notes"]) == (point["series"] != "saelens-jumprelu") for point in frontier.points())


def test_saes_without_a_run(lens, folder, lm_folder):
    options = {"lm": str(lm_folder("neox")), "text": str(folder / "text"), "tokens": 300}
    settings = ["lm.context=32", "text.held_out=0.3", "evaluate.replicates=25"]
    frontier = compared(folder / "alone", lens / "x3", lens / "x7", overrides=settings, **options)
    alone = api.evaluate([lens / "x3"], overrides=settings, progress=SilentProgress(), **options)["saes"][0]
    assert alone["metrics"] in [point["metrics"] for point in frontier.points()]


def test_the_users_name_makes_saes_of_several_folders_one_series(lens, first, folder, tmp_path):
    shutil.copytree(lens / "x7", tmp_path / "a" / "x7")
    apart = compared(tmp_path / "apart", first, lens / "x3", tmp_path / "a" / "x7")
    assert apart.series[1:3] == ["saelens-jumprelu-lens", "saelens-jumprelu-a"]
    together = compared(tmp_path / "together", first, f"mine={lens / 'x3'}", f"mine={tmp_path / 'a' / 'x7'}")
    assert len(together.points(series="mine")) == 2
    assert Named.parse("a/b=c") == Named("a/b=c")
    assert Named.parse(f"{tmp_path}") == Named(str(tmp_path))


# ---------------------------------------------------------------------------------------------- resume, refusals


def test_an_interrupted_comparison_continues(first, lens, tmp_path, monkeypatch):
    named, measured = [first, lens / "x3", lens / "x7"], []

    def evaluate_one(saes, *rest, **options):
        if measured == [1]:
            raise KeyboardInterrupt
        measured.append(len(saes))
        return whole_evaluate(saes, *rest, **options)

    whole_evaluate = comparison.evaluate
    monkeypatch.setattr(comparison, "SAES_AT_ONCE", 1)
    monkeypatch.setattr(comparison, "evaluate", evaluate_one)
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "c", *named)
    measured.append(0)
    frontier = compared(tmp_path / "c", *named)
    assert measured == [1, 0, 1]
    before = frontier.points()
    assert compared(tmp_path / "c", *named).points() == before
    assert measured == [1, 0, 1]


def test_what_cannot_be_compared_is_refused(train, first, lens, folder, lm_folder, tmp_path):
    out = tmp_path / "out"
    small = {"series": [{"architecture": "topk", "k": [3]}]}
    model = train("model", lm={"model": str(lm_folder("neox-serial")), "context": 32, "batch": 4}, **small)
    with pytest.raises(StudyError, match="model is of another language model"):
        compared(out, first, model)
    text = train("text2", text={"source": str(folder / "text"), "held_out": 0.25}, **small)
    with pytest.raises(StudyError, match=r"was trained on other text than .*first: name one text for all with --text"):
        compared(out, first, text)
    site = train("site", activations={"sites": ["layers.0.residual"], "block": 64, "scale_rows": 400}, **small)
    with pytest.raises(StudyError, match="has no SAE at layers"):
        compared(out, first, site)
    with pytest.raises(StudyError, match="no trained SAE to compare at this site"):
        compared(out, first, site="layers.2.residual")
    with pytest.raises(SiteError):
        compared(out, first, site="layer 2")
    with pytest.raises(DataError, match="takes activations of width 24"):
        compared(out, lens / "x3", lm=str(lm_folder("neox")), site="layers.1.mlp.dense_h_to_4h.output",
                 text=str(folder / "text"))  # fmt: skip
    with pytest.raises(ArtefactError, match="does not exist"):
        compared(out, first, tmp_path / "none")
    with pytest.raises(StudyError, match="is the run of a study: name another folder with --out"):
        compared(first, first)
    with pytest.raises(StudyError, match=r"there is no key .lm.dtyp"):
        compared(out, first, overrides=["lm.dtyp=bfloat16"])
    assert not out.exists()
    compared(out, first)
    with pytest.raises(ArtefactError, match="is a comparison, not a run"):
        compared(tmp_path / "again", out)


def test_compare_on_the_command_line(first, lens, tmp_path):
    out = tmp_path / "c"
    done = CliRunner().invoke(app, ["compare", str(first), str(lens / "x3"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"report:   {out / 'report.html'}" in done.stdout
    asked = CliRunner().invoke(app, ["ask", str(out), "--l0", "4"])
    assert "JumpReLU" in asked.stdout
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "none"), "--lm", "tiny", "--out", str(tmp_path / "d")])
    assert done.exit_code == 1
    assert "does not exist" in done.stderr
