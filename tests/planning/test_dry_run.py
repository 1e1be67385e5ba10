"""The dry run, and the studies that come with jumpahead: each goes from text to page on a random model of its class."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from jumpahead.errors import SiteError, StudyError
from jumpahead.planning.dry_run import perform_dry_run, shrink_study
from jumpahead.progress import SilentProgress
from jumpahead.study import schema
from jumpahead.study.load import load

STUDIES = Path(__file__).resolve().parents[2] / "studies"
CLASSES = {"pythia-70m": "pythia-70m", "gemma-2-2b": "gemma-2-2b", "gemma-scope": "gemma-2-2b"}
"""The random model that stands for a study's own; the others use the bundled one."""
SMALL = ["lm.dtype=float32", "train.batch=256", "activations.block=16", "lm.batch=4", "text.source=stdlib"]


def loaded(name: str, lm_folder, *more: str) -> schema.Study:
    overrides = [*SMALL, *more]
    if name in CLASSES:
        overrides += [f"lm.model={lm_folder(CLASSES[name])}", "lm.context=64"]
    return load(STUDIES / f"{name}.toml", overrides)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_ready_study_runs_on_a_model_of_its_class(name: str, lm_folder):
    seen = perform_dry_run(loaded(name, lm_folder, "sae.width=2048"), SilentProgress())
    series = tomllib.loads((STUDIES / f"{name}.toml").read_text())["series"]
    assert seen.saes == 2 * len(series)
    assert seen.peak_bytes > 10**7
    assert "two steps each; peak memory" in str(seen)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_ready_study_asks_for_rare_features(name: str, lm_folder):
    one = loaded(name, lm_folder)
    assert one.name == name
    assert all(len(series.settings) >= 5 for series in one.series)
    asked = [setting.value for series in one.series for setting in series.settings if setting.kind == "l0"]
    assert max(asked, default=0) <= one.sae.width[0] / 128


def test_what_is_rehearsed_is_the_study_with_less_of_it(lm_folder):
    one = loaded("demo", lm_folder, "sae.seed=[3,4]", "text.max_tokens=700", "evaluate.tokens=90")
    small = shrink_study(one)
    assert (small.lm, small.sae.width, small.train.batch, small.train.recipe) == (one.lm, (8192,), 256, "short")
    assert [series.l0 for series in small.series] == [(4, 64)] * 3
    assert (small.train.tokens, small.sae.seed, small.evaluate.tokens, small.text.max_tokens) == (512, (3,), 90, 700)
    assert shrink_study(loaded("demo", lm_folder)).text.max_tokens == 3 * (256 + 4 * 256)


def test_what_would_fail_later_fails_now(lm_folder):
    with pytest.raises(SiteError, match=r"has no module 'model\.layers\.12\.mlp\.up'"):
        perform_dry_run(
            loaded("gemma-2-2b", lm_folder, "activations.sites=model.layers.12.mlp.up.output"), SilentProgress()
        )
    with pytest.raises(StudyError, match=r"lm\.context = 65 is more than the 64"):
        perform_dry_run(_longer(loaded("gemma-2-2b", lm_folder)), SilentProgress())


def _longer(one: schema.Study) -> schema.Study:
    return one.model_copy(update={"lm": one.lm.model_copy(update={"context": 65})})
